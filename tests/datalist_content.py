"""The content of a data list without images, written for tests."""

from __future__ import annotations

from typing import Any

from nodule_plugin.data.split import SPLITS
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import get_template


def make_item(number: int, split: str, template: str = "reference", **changes: Any) -> dict[str, Any]:
    """A nodule of a patient of its own; ``changes`` are ratings and fields."""
    ratings = {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6, "malignancy": 3}
    findings = Findings(**{name: changes.pop(name, code) for name, code in ratings.items()})
    item = {"id": f"{split}-{number}", "image": f"{split}-{number}.nii.gz", "slice_index": 0, "centre": [9.0, 9.0]}
    item |= {"spacing": [0.5, 0.5], "diameter_mm": 5.0, "roi_mm": 10.0, "padding": 0.0, "readers": 3}
    item |= {"prompt": get_template(template).render(findings), "findings": findings.to_dict(), "synthetic": False}
    return item | {"patient_id": f"P-{split}-{number}", "series_instance_uid": f"2.25.{number}"} | changes


def make_content(*items: dict[str, Any], template: str = "reference", **changes: Any) -> dict[str, Any]:
    """A data list of items made by :func:`make_item`, in the splits that their ids begin with."""
    splits = {split: [item for item in items if item["id"].startswith(split)] for split in SPLITS}
    content: dict[str, Any] = {"consensus": "median", "template": {"name": template, "version": 1}, "skipped": []}
    return content | splits | changes
