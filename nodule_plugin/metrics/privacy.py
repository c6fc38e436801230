"""What a privacy audit says: its limits, its verdict, and whom it holds for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json

FORMAT, VERSION = "nodule-plugin privacy audit", 1
LIMITS = {"false_positive_rate": 0.01, "true_positive_rate": 0.02, "control": 0.2, "extracted": 0}
"""At that false-positive rate the model's true-positive rate must not exceed the second, and the control's must reach
the third; and so many training images may be extracted."""
WITHIN, ABOVE, DEAF, UNRESOLVED = "within limits", "above limits", "deaf", "too few patients"


def rate_at(attack: Mapping[str, Any], false_positives: float) -> Mapping[str, Any]:
    """The rate of an attack (see :func:`nodule_plugin.metrics.membership.describe_attack`) at a false-positive rate."""
    return next(rate for rate in attack["rates"] if rate["false_positive_rate"] == false_positives)


def worst_rate(attacks: Mapping[str, Mapping[str, Any]], limits: Mapping[str, float]) -> Mapping[str, Any]:
    """The greatest rate of several attacks at the limits' false-positive rate."""
    rates = [rate_at(attack, limits["false_positive_rate"]) for attack in attacks.values()]
    return max(rates, key=lambda rate: -1.0 if rate["value"] is None else rate["value"])


def audit_verdict(
    model: Mapping[str, Any], control: Mapping[str, Any], limits: Mapping[str, float] = LIMITS
) -> tuple[str, list[str]]:
    """The verdict of an audit and the sentences that give its reasons.

    Args:
        model: the audit of the model in question: "attacks" (name -> what each reached) and "extraction" ("extracted").
        control: the same of a model that was overfitted on purpose. Where the audit does not hear it, it has no say.
        limits: see :data:`LIMITS`.
    """
    accepted, heard, own = limits["false_positive_rate"], *(worst_rate(m["attacks"], limits) for m in (control, model))
    if heard["value"] is None or own["value"] is None:
        smallest = max(attack["smallest_false_positive_rate"] for attack in model["attacks"].values())
        return UNRESOLVED, [f"{smallest:.2%} is the smallest false-positive rate that the held-out patients can show."]
    if heard["value"] < limits["control"]:
        return DEAF, [
            f"The control, overfitted on purpose, reaches {heard['value']:.1%} at {accepted:.0%} false positives, below"
            f" {limits['control']:.0%}: this audit is deaf and gives no verdict."
        ]
    extracted, most = model["extraction"]["extracted"], limits["true_positive_rate"]
    reasons = []
    if own["value"] > most:
        reasons.append(f"{own['value']:.1%} of patients found at {accepted:.0%} false positives, above {most:.0%}.")
    if extracted > limits["extracted"]:
        reasons.append(f"{extracted} training images extracted, more than {limits['extracted']:g}.")
    return (ABOVE, reasons) if reasons else (WITHIN, [])


def read_audit(path: str | Path) -> dict[str, Any]:
    """The content of ``privacy.json``.

    Raises:
        InputError: if it is missing or something else.
    """
    audit = read_json(Path(path), "run the audit, or leave out privacy")
    if not isinstance(audit, dict) or audit.get("format") != FORMAT or audit.get("version") != VERSION:
        raise InputError(f"privacy: {path} is not an audit of this release; run nodule privacy")
    return audit


def audit_of(path: str | Path, generated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """:func:`read_audit` of a model that made one of these sets at least.

    Args:
        path: of ``privacy.json``.
        generated: manifests of generated sets.

    Raises:
        InputError: also if it is of other weights.
    """
    audit = read_audit(path)
    made_by = [manifest.get("model", {}).get("weights_sha256") for manifest in generated]
    if audit["model"]["weights_sha256"] not in made_by:
        raise InputError(f"privacy: {path} is of other weights than those that made these images; audit these")
    return audit


def release_clearance(
    path: str | Path | None, manifest: Mapping[str, Any], override: str | None = None
) -> dict[str, Any] | None:
    """What a release's manifest keeps of an audit, if it allows the release or the user does with a reason.

    Args:
        path: of ``privacy.json``; None: there was no audit.
        manifest: of the generated set that is to be released.
        override: the user's reason to release in spite of the verdict.

    Returns:
        "audit" (its creation and verdict with reasons) and, where it was needed, "override"; None without an audit.

    Raises:
        InputError: if the audit is of another model, or is not within limits and there is no reason.
    """
    if path is None:
        if override is not None:
            raise InputError("privacy_override: there is no audit to override; give privacy, or leave this out")
        return None
    audit = audit_of(path, [manifest])
    cleared = {"created": audit["created"], "verdict": audit["verdict"], "reasons": audit["reasons"]}
    if audit["verdict"] == WITHIN:
        return {"audit": cleared}
    if override is None or not override.strip():
        told = " ".join([audit["verdict"] + ".", *audit["reasons"]])
        raise InputError(f"privacy: {path}: {told} Release nothing, or say why in privacy_override")
    return {"audit": cleared, "override": override}
