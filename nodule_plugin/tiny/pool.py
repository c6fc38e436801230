"""The images and findings that the small base model is pre-trained on, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.transforms import crop_padded, read_slice
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.findings import Findings
from nodule_plugin.lidc.phantom import iter_phantom_rois


class Pool(NamedTuple):
    """Regions of interest with the findings of their nodules.

    Attributes:
        images: (N, 1, size, size) float32 in [-1, 1].
        findings: one for each image.
    """

    images: torch.Tensor
    findings: list[Findings]


def real_pool(items: Sequence[Mapping[str, Any]], size: int) -> Pool:
    """The ROIs of a data list's items."""
    images = []
    for item in tqdm(items, desc="nodules"):
        pixels = torch.from_numpy(read_slice(Path(item["image"]), item["slice_index"]).copy())[None]
        images.append(_resize(crop_padded(pixels, roi_bounds(item["centre"], item["spacing"], item["roi_mm"])), size))
    return Pool(torch.stack(images), [Findings.from_dict(item["findings"]) for item in items])


def phantom_pool(count: int, size: int, seed: int = 0) -> Pool:
    """The first ``count`` ROIs of the stream of phantoms; takes about a tenth of a second each."""
    images, findings = [], []
    for roi, ratings in tqdm(islice(iter_phantom_rois(seed, size), count), desc="phantoms", total=count):
        images.append(torch.from_numpy(hu_to_unit(roi))[None])
        findings.append(ratings)
    return Pool(torch.stack(images), findings)


def save_pool(pool: Pool, file: Path) -> None:
    """Keep a pool for another run."""
    torch.save({"images": pool.images, "findings": [findings.to_dict() for findings in pool.findings]}, file)


def load_pool(file: Path) -> Pool:
    """What :func:`save_pool` kept."""
    kept = torch.load(file, weights_only=True)
    return Pool(kept["images"], [Findings.from_dict(ratings) for ratings in kept["findings"]])


def _resize(image: torch.Tensor, size: int) -> torch.Tensor:
    resized = interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
    return torch.from_numpy(hu_to_unit(resized.numpy()))
