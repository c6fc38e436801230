from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from small_models.patches import crop_patches


def test_patches_lie_within_the_image_and_repeat_with_the_seed(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(-900, 300, (40, 50, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    items = [{"image": str(tmp_path / "a.nii.gz"), "diameter_mm": 20.0, "spacing": [1.0, 1.0]}] * 2
    patches = crop_patches(items, 5, 16, seed=1)
    assert patches.shape == (5, 1, 16, 16)
    assert patches.isfinite().all()
    assert -1 < patches.min() < patches.max() < 1
    assert torch.equal(patches, crop_patches(items, 5, 16, seed=1))
    assert not torch.equal(patches, crop_patches(items, 5, 16, seed=2))
