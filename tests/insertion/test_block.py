from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from nodule_plugin.insertion.block import Block
from nodule_plugin.insertion.host import Geometry

AXES = {"as scanned": [2, 1, 0], "turned": [2, 0, 1], "reversed": [2, 1, 0], "tilted gantry": [2, 1, 0]}
THICKNESS = 4.0


@pytest.fixture(params=list(AXES))
def geometry(request: pytest.FixtureRequest) -> Geometry:
    """Of 20 slices of 30 x 34 voxels, 2.5 x 0.6 x 0.8 mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    matrix[AXES[request.param], range(3)] = [2.5, 0.6, 0.8]
    if request.param == "reversed":
        matrix[:3, :3] *= [[-1, 1, -1]]
    if request.param == "tilted gantry":
        matrix[1, 0] = 0.5
    return Geometry(matrix, (20, 30, 34), THICKNESS)


@pytest.fixture
def block(geometry: Geometry) -> Block:
    """Within the series."""
    centre = geometry.to_patient([10.2, 14.3, 16.0])
    return Block.around(centre, geometry, (2.0, 0.7, 0.7), (10, 16, 18))


def test_samples_are_means_of_cubic_splines_over_their_cells(block: Block) -> None:
    hu = np.random.default_rng(0).normal(size=block.geometry.shape).astype(np.float32)
    cells = [np.zeros(1) if pitch >= extent else np.array([-0.25, 0.25]) for extent, pitch in spacings(block)]
    expected = means(hu, block.matrix, block.shape, cells, "nearest")
    # The splines of a part of the series, which from_series fits, and of all of it differ by so little.
    np.testing.assert_allclose(block.from_series(hu), expected, atol=5e-3)


def test_a_voxel_takes_the_mean_over_its_slices_thickness(block: Block) -> None:
    values = np.random.default_rng(1).normal(size=block.shape).astype(np.float32)
    box = block.box()
    inverse = np.linalg.inv(block.matrix)
    inverse[:3, 3] += inverse[:3, :3] @ [part.start for part in box]
    shape = tuple(part.stop - part.start for part in box)
    depth = (np.arange(2) + 0.5) / 2 - 0.5  # 4 mm in samples of 2 mm
    columns = [np.zeros(1) if pitch >= extent else np.array([-0.25, 0.25]) for pitch, extent in spacings(block)]
    cells = [depth * THICKNESS / block.geometry.spacing[0], *columns[1:]]
    expected = means(values, inverse, shape, cells, "constant")
    found = block.to_series(values, box)
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def spacings(block: Block) -> list[tuple[float, float]]:
    return list(zip(block.spacing, block.geometry.spacing))


def means(values: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], cells: list, mode: str) -> np.ndarray:
    """Every point of every cell, looked up by itself."""
    total, points = np.zeros(shape), np.stack(np.meshgrid(*cells, indexing="ij"), -1).reshape(-1, 3)
    for shift in points:
        indices = np.moveaxis(np.indices(shape).astype(float), 0, -1) + shift
        places = np.moveaxis(indices @ matrix[:3, :3].T + matrix[:3, 3], -1, 0)
        total += map_coordinates(values.astype(float), places, order=3, mode=mode)
    return total / len(points)
