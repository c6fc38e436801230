"""Pairs of noise and prompts, where only the speed counts: a data list of any length without any data."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from nodule_plugin.data.datalist import write_datalist
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import findings_to_prompt

_SIDE = 64


def write_noise_pairs(folder: Path, count: int) -> Path:
    """``datalist.json`` in ``folder`` and the crops that it names; once.

    Args:
        folder: made where there is none.
        count: items of the training; validation and test are empty.

    Returns:
        The data list.
    """
    file = folder / "datalist.json"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    items = []
    for number in range(count):
        volume = random.integers(-1000, 400, (_SIDE, _SIDE, 1)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / f"{number:04d}.nii")
        findings = Findings(*(int(rating) for rating in random.integers(1, 6, 4)))
        items.append(
            {
                "id": f"noise-{number:04d}",
                "image": f"{number:04d}.nii",
                "slice_index": 0,
                "centre": [_SIDE / 2, _SIDE / 2],
                "spacing": [0.7, 0.7],
                "diameter_mm": 12.0,
                "roi_mm": 24.0,
                "padding": 0.0,
                "prompt": findings_to_prompt(findings),
                "findings": findings.to_dict(),
            }
        )
    empty = {"validation": [], "test": [], "numValidation": 0, "numTest": 0}
    name = {"name": "noise", "synthetic": True, "dataset_dir": str(folder.resolve()), "numTraining": count}
    return write_datalist({**name, **empty, "training": items}, file)
