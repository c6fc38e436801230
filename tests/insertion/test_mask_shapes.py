from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings
from nodule_plugin.insertion.mask_shapes import _points, draw_mask, longest_diameter_mm

SPACING, SHAPE = (2.0, 0.7, 0.7), (12, 40, 40)


def findings(**ratings: int) -> Findings:
    return Findings(**{"sphericity": 4, "margin": 5, "texture": 5, "spiculation": 1} | ratings)


def draw(rated: Findings, diameter_mm: float = 12.0, seed: int = 0, spacing: tuple = SPACING) -> np.ndarray:
    return draw_mask(rated, diameter_mm, spacing, SHAPE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("diameter_mm", [4.0, 12.0])
def test_the_diameter_is_what_was_asked_for_over_the_ratings(diameter_mm: float) -> None:
    scales = {"sphericity": (1, 5), "margin": (1, 5), "lobulation": (1, 5), "spiculation": (1, 5)}
    for seed, codes in enumerate(product(*scales.values())):
        mask = draw(findings(**dict(zip(scales, codes))), diameter_mm, seed)
        assert longest_diameter_mm(mask, SPACING) == pytest.approx(diameter_mm, rel=0.1)
        assert mask.dtype == np.float32
        assert mask.min() == 0
        assert mask.max() <= 1
        assert mask[6, 20, 20] > 0.5  # of the four voxels around the middle


def test_a_seed_gives_one_outline() -> None:
    rated = findings(spiculation=3)
    np.testing.assert_array_equal(draw(rated, seed=3), draw(rated, seed=3))
    assert (draw(rated, seed=3) != draw(rated, seed=4)).any()


def mean_over_seeds(value: object, rated: Findings) -> float:
    return float(np.mean([value(draw(rated, seed=seed)) for seed in range(8)]))  # type: ignore[operator]


def volume_mm3(mask: np.ndarray) -> float:
    return float(mask.sum() * np.prod(SPACING))


def roughness(mask: np.ndarray) -> float:
    """Outline by area of the middle slices, against that of a disc."""
    planes = mask[5:7] >= 0.5
    edges = sum(float(np.abs(np.diff(planes.astype(float), axis=axis)).sum()) for axis in (1, 2))
    return edges / np.sqrt(planes.sum())


def soft_voxels(mask: np.ndarray) -> float:
    return float(((mask > 0.05) & (mask < 0.95)).sum() / (mask > 0.5).sum())


def test_ratings_shape_the_outline() -> None:
    """Rounder nodules fill more, rough ones have a longer outline, poorly defined ones a wider edge."""
    assert mean_over_seeds(volume_mm3, findings(sphericity=5)) > 1.3 * mean_over_seeds(
        volume_mm3, findings(sphericity=1)
    )
    plain = mean_over_seeds(roughness, findings(sphericity=5))
    assert mean_over_seeds(roughness, findings(sphericity=5, spiculation=5)) > 1.05 * plain
    assert mean_over_seeds(roughness, findings(sphericity=5, lobulation=5)) > plain
    assert mean_over_seeds(soft_voxels, findings(margin=1)) > 1.5 * mean_over_seeds(soft_voxels, findings(margin=5))


def test_a_nodule_lies_in_the_middle_and_along_slices() -> None:
    assert _points(SPACING, SHAPE).mean(0) == pytest.approx(0, abs=1e-5)

    def steepness(mask: np.ndarray) -> float:
        """How much of the longest axis runs through the slices, 0 to 1."""
        return float(abs(np.linalg.eigh(np.cov((np.argwhere(mask > 0.5) * SPACING).T))[1][0, -1]))

    assert mean_over_seeds(steepness, findings(sphericity=1)) < 0.4  # the tilt is within 30 degrees, evenly: 0.26


def test_a_nodule_is_one_piece() -> None:
    for seed in range(6):
        mask = draw(findings(spiculation=5, lobulation=5, sphericity=2), seed=seed)
        assert label(mask > 0, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize("diameter_mm", [27.0, 60.0, 0.0, -3.0, float("nan")])
def test_what_cannot_be_drawn_is_refused(diameter_mm: float) -> None:
    with pytest.raises(InputError, match="diameter_mm"):
        draw(findings(), diameter_mm)


def disc(diameter_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """Two slices: a small disc, and one of this diameter, with fractions of voxels at its edge."""
    fine = [(np.arange(count * 8) - (count * 8 - 1) / 2) * step / 8 for count, step in zip((60, 50), spacing[1:])]
    distance = np.hypot(*np.meshgrid(*fine, indexing="ij"))
    planes = [(distance <= size / 2).reshape(60, 8, 50, 8).mean((1, 3)) for size in (diameter_mm / 2, diameter_mm)]
    return np.stack(planes).astype(np.float32)


@pytest.mark.parametrize("spacing", [(2.0, 0.7, 0.7), (1.0, 0.5, 0.9)])
@pytest.mark.parametrize("diameter_mm", [3.0, 9.3, 21.0])
def test_the_diameter_of_a_disc(diameter_mm: float, spacing: tuple[float, float, float]) -> None:
    assert longest_diameter_mm(disc(diameter_mm, spacing), spacing) == pytest.approx(diameter_mm, abs=0.15)


def test_a_mask_without_a_half_filled_voxel_has_no_diameter() -> None:
    assert longest_diameter_mm(np.full((2, 5, 5), 0.4, np.float32), SPACING) == 0
