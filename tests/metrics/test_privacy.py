from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.privacy import (
    ABOVE,
    DEAF,
    FORMAT,
    LIMITS,
    UNRESOLVED,
    WITHIN,
    audit_verdict,
    release_clearance,
)

MANIFEST = {"model": {"weights_sha256": "abc"}}


def make_attacks(value: float | None, extracted: int = 0, area: float = 0.5) -> dict[str, Any]:
    """What an audit says of a model that is found at this rate."""
    interval = None if value is None else [max(0.0, value - 0.02), value + 0.02]
    rates = [{"false_positive_rate": rate, "value": value, "ci95": interval} for rate in (0.01, 0.001)]
    attack = {"members": 300, "held_out": 120, "smallest_false_positive_rate": 1 / 120, "rates": rates}
    return {
        "attacks": {"denoising loss": attack | {"area": {"value": area, "ci95": [area - 0.05, area + 0.05]}}},
        "extraction": {"extracted": extracted, "images": 4, "prompts": 1, "cliques": 0, "smallest_clique": 3},
    }


def make_audit(model: dict[str, Any], control: dict[str, Any], sha256: str = "abc") -> dict[str, Any]:
    """The content of privacy.json."""
    verdict, reasons = audit_verdict(model, control)
    audit = {"format": FORMAT, "version": 1, "created": "2026-01-01T00:00:00+00:00", "limits": dict(LIMITS)}
    audit |= {"model": {"weights_sha256": sha256}, "audited": model, "control": control}
    return audit | {"verdict": verdict, "reasons": reasons}


@pytest.mark.parametrize(
    ("own", "heard", "extracted", "verdict", "told"),
    [
        (0.02, 0.9, 0, WITHIN, ""),
        (0.03, 0.9, 0, ABOVE, "3.0% of patients found at 1% false positives, above 2%."),
        (0.0, 0.9, 2, ABOVE, "2 training images extracted, more than 0."),
        (0.0, 0.19, 0, DEAF, "reaches 19.0% at 1% false positives, below 20%: this audit is deaf and gives no verdict"),
        (0.5, 0.19, 0, DEAF, "deaf"),
        (0.0, 0.2, 0, WITHIN, ""),
        (None, None, 0, UNRESOLVED, "0.83% is the smallest false-positive rate"),
    ],
)
def test_the_verdict(own: float | None, heard: float | None, extracted: int, verdict: str, told: str) -> None:
    found, reasons = audit_verdict(make_attacks(own, extracted), make_attacks(heard))
    assert found == verdict
    assert told in " ".join(reasons)


def test_the_better_of_two_attacks_counts() -> None:
    model, control = make_attacks(0.01), make_attacks(0.9)
    for one, rate in ((model, 0.03), (control, None)):
        one["attacks"]["nearest generated"] = make_attacks(rate)["attacks"]["denoising loss"]
    found, reasons = audit_verdict(model, control)
    assert (found, reasons) == (ABOVE, ["3.0% of patients found at 1% false positives, above 2%."])


def _file(folder: Path, **changes: Any) -> Path:
    path = folder / "privacy.json"
    path.write_text(json.dumps(make_audit(make_attacks(0.1), make_attacks(0.9)) | changes))
    return path


def test_a_release_above_limits_needs_a_reason_that_is_kept(tmp_path: Path) -> None:
    path = _file(tmp_path)
    with pytest.raises(InputError, match=r"10\.0% of patients found .* say why in privacy_override"):
        release_clearance(path, MANIFEST)
    with pytest.raises(InputError, match="say why"):
        release_clearance(path, MANIFEST, " ")
    cleared = release_clearance(path, MANIFEST, "patients consented")
    assert cleared is not None
    assert (cleared["override"], cleared["audit"]["verdict"]) == ("patients consented", ABOVE)


@pytest.mark.parametrize("verdict", [DEAF, UNRESOLVED])
def test_an_audit_without_a_verdict_allows_nothing(tmp_path: Path, verdict: str) -> None:
    with pytest.raises(InputError, match=verdict):
        release_clearance(_file(tmp_path, verdict=verdict), MANIFEST)


def test_an_audit_within_limits_allows_its_own_model_alone(tmp_path: Path) -> None:
    path = _file(tmp_path, verdict=WITHIN, reasons=[])
    assert release_clearance(path, MANIFEST) == {
        "audit": {"created": "2026-01-01T00:00:00+00:00", "verdict": WITHIN, "reasons": []}
    }
    with pytest.raises(InputError, match="of other weights"):
        release_clearance(path, {"model": {"weights_sha256": "def"}})
    with pytest.raises(InputError, match="not an audit of this release"):
        release_clearance(_file(tmp_path, format="something"), MANIFEST)
    with pytest.raises(InputError, match="there is no audit to override"):
        release_clearance(None, MANIFEST, "why")
    assert release_clearance(None, MANIFEST) is None
