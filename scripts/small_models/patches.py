"""Training patches for the small autoencoder: many views of few nodule volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nodule_plugin.data.nifti import read_voxels
from nodule_plugin.data.orientation import SHOWN, turned
from nodule_plugin.data.transforms import DEFAULT_KERNEL, resample_roi


def crop_patches(
    items: Sequence[Mapping[str, Any]], count: int, size: int, seed: int = 0, kernel: str = DEFAULT_KERNEL
) -> torch.Tensor:
    """Square views of the volumes of ``items``, at random slices, places and scales, all within the image.

    An autoencoder learns CT texture, not nodules: every slice of a volume and every scale between 1.2 and 2.6 times the
    nodule's diameter serves.

    Args:
        items: of a data list; NIfTI volumes.
        count: how many patches, spread evenly over the items.
        size: pixels along a patch's side.
        seed: of the draws.
        kernel: of the resampling, see :func:`nodule_plugin.data.transforms.resample_roi`.

    Returns:
        (count, 1, size, size) float32 in [-1, 1].
    """
    rng = np.random.default_rng(seed)
    patches = torch.empty(count, 1, size, size)
    each = -(-count // len(items))
    for number, item in enumerate(tqdm(items, desc="patches")):
        volume = turned(read_voxels(Path(item["image"])), item.get("axes", SHOWN))
        for index in range(number * each, min((number + 1) * each, count)):
            pixels = item["diameter_mm"] / item["spacing"][0]
            side = int(np.clip(rng.uniform(1.2, 2.6) * pixels, 20, min(volume.shape[:2])))
            x, y = (rng.integers(0, extent - side + 1) for extent in volume.shape[:2])
            hu = volume[:, :, rng.integers(volume.shape[2])].T
            patch = resample_roi(hu, (y, y + side, x, x + side), (size, size), kernel=kernel)
            patches[index] = torch.from_numpy(patch)
    return patches
