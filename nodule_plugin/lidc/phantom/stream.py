"""Phantom regions of interest without end, in memory: pre-training data of small generative models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.findings import Findings
from nodule_plugin.lidc.phantom.crop import Augmentation, render_crop
from nodule_plugin.lidc.phantom.subjects import Subject, load_subjects


def iter_phantom_rois(
    seed: int, size: int = 64, roi_factor: float = 2.0, subjects: Sequence[Subject] | None = None
) -> Iterator[tuple[np.ndarray, Findings]]:
    """Centre slices of phantoms, each nodule once in a random order, then again in another, for ever.

    Every one is drawn anew (other vessels, noise and chance) from outlines rotated by a random angle and flipped at
    random.

    Args:
        seed: the same seed gives the same stream.
        size: pixels a side.
        roi_factor: side of the ROI in nodule diameters.
        subjects: draw these only; all of the database by default.

    Yields:
        (float32 (size, size) HU, the nodule's findings).
    """
    subjects = load_subjects() if subjects is None else subjects
    rng = np.random.default_rng(seed)
    while True:
        for index in rng.permutation(len(subjects)):
            subject = subjects[index]
            yield phantom_roi(subject, np.random.default_rng(rng.integers(2**63)), size, roi_factor), subject.findings


def phantom_roi(subject: Subject, rng: np.random.Generator, size: int = 64, roi_factor: float = 2.0) -> np.ndarray:
    """One centre slice of one nodule's phantom, (size, size) float32 HU."""
    roi_mm = roi_factor * subject.diameter_mm
    augmentation = Augmentation(rng.uniform(0, 2 * np.pi), bool(rng.random() < 0.5))
    crop = render_crop(
        subject.scan,
        subject.cluster,
        subject.findings,
        rng,
        side_mm=roi_mm + 4 * subject.scan.pixel_spacing,
        min_side=8,
        only_centre=True,
        augmentation=augmentation,
    )
    column, row, _ = crop.centre
    top, bottom, left, right = roi_bounds((row, column), crop.spacing[:2], roi_mm)
    roi = crop.volume[left:right, top:bottom, 0].T.astype(np.float32)
    return np.asarray(Image.fromarray(roi).resize((size, size), Image.Resampling.BILINEAR))
