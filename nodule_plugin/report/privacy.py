"""The files of a privacy audit: numbers that may be shown, and pictures for the owner of the training images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from nodule_plugin.errors import InputError
from nodule_plugin.files import write_files
from nodule_plugin.lidc.citation import ATTRIBUTION
from nodule_plugin.privacy.audit import Audit, Finding
from nodule_plugin.report.numbers import markdown_table, with_interval

OWNERS = "owner_only"
"""Folder, beside the report, of training images that were extracted: for the eyes of whoever may see these."""


def write_audit(audit: Audit, output_dir: str | Path) -> list[Path]:
    """Write ``privacy.json`` and ``privacy.md`` and, where something was extracted, pictures that only the owner reads.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(output_dir)
    text = json.dumps({**audit.content, "attribution": ATTRIBUTION}, indent=4) + "\n"
    written = write_files({"privacy.md": privacy_text(audit.content).encode(), "privacy.json": text.encode()}, folder)
    return [*written, *_write_findings(audit, folder / OWNERS)]


def _write_findings(audit: Audit, folder: Path) -> list[Path]:
    if not audit.findings:
        return []
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # an older one, whatever the umask
        for old in folder.glob("*.png"):
            old.unlink()
        for number, finding in enumerate(audit.findings):
            _strip(finding).save(folder / f"{number:03}.png")
    except OSError as error:
        raise InputError(f"output_dir: {folder} cannot be written ({error.strerror}); give another folder") from error
    listed = {
        f"{number:03}.png": {"training": finding.training, "prompt": finding.clique.prompt,
                             "likeness": finding.clique.likeness, "near_identical": len(finding.images)}
        for number, finding in enumerate(audit.findings)
    }  # fmt: skip
    content = {"notice": "First the training image, then the generated ones. Not to be handed on.", "files": listed}
    text = json.dumps(content, indent=4) + "\n"
    return [*(folder / name for name in listed), *write_files({"extracted.json": text.encode()}, folder)]


def _strip(finding: Finding) -> Image.Image:
    """The training image, then the generated ones, side by side."""
    side = finding.images[0].shape[-1]
    original = F.interpolate(finding.original[None].float(), (side, side), mode="nearest")[0].to(torch.uint8)
    return Image.fromarray(torch.cat([original, *finding.images], dim=2).permute(1, 2, 0).numpy())


def privacy_text(content: Mapping[str, Any]) -> str:
    """``privacy.md``: the verdict and a table of both models, in numbers that name nobody."""
    lines = ["# Privacy audit", "", f"Verdict: **{content['verdict']}**. {' '.join(content['reasons'])}".rstrip(), ""]
    accepted = [rate["false_positive_rate"] for rate in next(iter(content["control"]["attacks"].values()))["rates"]]
    headings = ["", "members", "held out", "area", *(f"found at {each:.1%} false positives" for each in accepted)]
    rows = []
    for name, model in (("model", content["audited"]), ("control", content["control"])):
        for attack, found in model["attacks"].items():
            area = with_interval(found["area"]["value"], found["area"]["ci95"])
            rates = [_rate_text(rate) for rate in found["rates"]]
            rows.append([f"{name}, {attack}", str(found["members"]), str(found["held_out"]), area, *rates])
    lines.append(markdown_table(headings, rows))
    smallest = max(found["smallest_false_positive_rate"] for found in content["audited"]["attacks"].values())
    lines += [f"The smallest false-positive rate that so many held-out patients can show is {smallest:.2%}.", ""]
    for name, model in (("model", content["audited"]), ("control", content["control"])):
        found = model["extraction"]
        lines.append(
            f"Extraction, {name}: {found['images']} images of {found['prompts']} prompts; {found['cliques']} cliques of"
            f" at least {found['smallest_clique']}; {found['extracted']} training images extracted."
        )
    return "\n".join([*lines, "", "95 % intervals by patient. " + ATTRIBUTION, ""])


def _rate_text(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "cannot be shown"
    return f"{rate['value']:.1%} [{rate['ci95'][0]:.1%}, {rate['ci95'][1]:.1%}]"
