"""Image-prompt pairs for contrastive learning, and the two halves of the training patients that share them out."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.datalist import datalist_kernel
from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import findings_to_prompt

IMAGE_SIZE = 64
CONDITIONING, JUDGING = "conditioning", "judging"
"""Folds of the training patients: one teaches the text encoder that conditions, the other the scorer that judges."""


@dataclass(frozen=True)
class Examples:
    """Images with prompts.

    Attributes:
        images: (N, 3, 64, 64) in [-1, 1].
        prompts: N.
        ratings: (N, R) what the prompts say, as numbers.
        source: what the images are, in words.
    """

    images: Tensor
    prompts: list[str]
    ratings: Tensor
    source: str


def load_examples(datalist: Path, split: str, fold: str | None = None, templates: Sequence[str] = ()) -> Examples:
    """The images of one split of a data list that lie wholly inside their slices.

    Args:
        datalist: as ``prepare`` writes it.
        split: of it.
        fold: :data:`CONDITIONING` or :data:`JUDGING`, to take only their patients, see :func:`fold_of`.
        templates: each image comes again with its prompt in each of these wordings.

    Raises:
        InputError: see :func:`nodule_plugin.data.datalist.load_datalist`; or if the split is empty.
    """
    items = real_items(datalist=datalist, split=split)
    if fold is not None:
        items = [item for item in items if fold_of(item["patient_id"]) == fold]
    load = LoadSetImaged((IMAGE_SIZE, IMAGE_SIZE), kernel=datalist_kernel(datalist))
    images = torch.stack([load(item)["image"] for item in tqdm(items, desc=split)])
    synthetic = sum(item["synthetic"] for item in items)
    source = {0: "real LIDC-IDRI", len(items): "phantom"}.get(synthetic, "real LIDC-IDRI and phantom")
    findings = [Findings.from_dict(item["findings"]) for item in items]
    prompts = [item["prompt"] for item in items]
    prompts += [findings_to_prompt(rated, template) for template in templates for rated in findings]
    ratings = torch.stack([_ratings(rated) for rated in findings])
    times = 1 + len(templates)
    return Examples(images.repeat(times, 1, 1, 1), prompts, ratings.repeat(times, 1), source)


def fold_of(patient_id: str) -> str:
    """The fold of a training patient: a third conditions, two thirds judge; the same on every machine."""
    return CONDITIONING if zlib.crc32(patient_id.encode()) % 3 == 0 else JUDGING


def _ratings(findings: Findings) -> Tensor:
    # Calcification is present or not, no matter of degree: it weighs as much as two steps on another scale.
    degrees = (findings.sphericity, findings.margin, findings.texture, findings.spiculation)
    return torch.tensor([*degrees, 2 * findings.calcified], dtype=torch.float32)
