"""Phantoms: what each rating does to the picture, measured in pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, label

from nodule_plugin.findings import Findings
from nodule_plugin.lidc.phantom import Crop, render_crop
from nodule_plugin.lidc.phantom import crop as crop_module
from nodule_plugin.lidc.phantom.scanner import Scanner
from nodule_plugin.lidc.records import Annotation, Contour, Scan

SPACING = 0.7
SLICE_SPACING = 1.25
SEEDS = range(8)


def make_scan(radius_mm: float = 7.0, stretch: float = 1.0, readers: int = 3) -> Scan:
    """A ball, outlined alike by every reader; ``stretch`` draws it out along the rows."""
    turns = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    contours = []
    for z in np.arange(-radius_mm + 0.5, radius_mm, SLICE_SPACING):
        reach = np.sqrt(radius_mm**2 - z**2) / SPACING
        points = np.column_stack([200 + reach * np.sin(turns), 150 + stretch * reach * np.cos(turns)])
        contours.append(Contour(float(z), True, np.unique(np.rint(points).astype(int), axis=0)[_order(points)]))
    annotations = tuple(Annotation(str(n), f"nodule {n}", {}, tuple(contours)) for n in range(1, readers + 1))
    slice_z = tuple(float(z) for z in np.arange(-radius_mm + 0.5 - 10 * SLICE_SPACING, 30, SLICE_SPACING))
    return Scan("LIDC-IDRI-0000", "1.2", "1.2.3", 1.25, SPACING, slice_z, annotations)


def _order(points: np.ndarray) -> np.ndarray:
    unique = np.unique(np.rint(points).astype(int), axis=0)
    offsets = unique - unique.mean(axis=0)
    return np.argsort(np.arctan2(offsets[:, 0], offsets[:, 1]))


def findings(**ratings: int) -> Findings:
    return Findings(**{"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "lobulation": 1, **ratings})


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner without noise and a lung without haze, walls, fissures and vessels: only the nodule differs."""
    scanner = Scanner(blur_mm=0.4, tails=0.05, sharpening=0.0, noise_hu=0.0, noise_peak=0.5, streaks=1.0)
    monkeypatch.setattr(crop_module.Scanner, "draw", classmethod(lambda *_: scanner))
    monkeypatch.setattr(crop_module.surroundings, "vessels", lambda distance, *_: crop_module.Layer(0 * distance, 0.0))
    monkeypatch.setattr(crop_module.surroundings, "HAZE_FRACTION", 0.0)
    monkeypatch.setattr(crop_module, "WALL_FRACTION", 0.0)
    monkeypatch.setattr(crop_module, "FISSURE_FRACTION", 0.0)


def draw(rating: str, code: int, **others: int) -> list[Crop]:
    scan = make_scan()
    wanted = findings(**{**others, rating: code})
    return [render_crop(scan, scan.annotations, wanted, np.random.default_rng(seed)) for seed in SEEDS]


def measure(rating: str, codes: list[int], value, **others: int) -> list[float]:
    return [float(np.mean([value(crop) for crop in draw(rating, code, **others)])) for code in codes]


def depth_mm(crop: Crop) -> np.ndarray:
    """Distance to the mask's border in plane, positive inside, mm."""
    inside = crop.mask.astype(bool)
    planes = [
        distance_transform_edt(inside[..., k]) - distance_transform_edt(~inside[..., k]) for k in range(inside.shape[2])
    ]
    return np.stack(planes, axis=2) * SPACING


def middle_slices(crop: Crop) -> np.ndarray:
    """Indices of the slices around the centre, where the ball is nearly as wide as it gets."""
    return np.arange(crop.centre[2] - 2, crop.centre[2] + 3)


def test_a_crop_is_a_ct_volume_that_holds_the_region_of_interest() -> None:
    scan = make_scan()
    crop = render_crop(scan, scan.annotations, findings(), np.random.default_rng(0))
    assert crop.volume.dtype == np.int16
    assert crop.mask.dtype == np.uint8
    assert crop.volume.shape == crop.mask.shape
    assert crop.spacing == pytest.approx((SPACING, SPACING, SLICE_SPACING))
    assert crop.volume.shape[0] * SPACING >= 2 * 14.0
    assert crop.volume.min() >= -1024
    assert -950 < np.median(crop.volume[crop.mask == 0]) < -700
    x, y, z = (axis.mean() for axis in np.nonzero(crop.mask))
    assert (x, y) == pytest.approx(crop.centre[:2], abs=1)
    assert crop.z[round(z)] == pytest.approx(0, abs=SLICE_SPACING)
    assert np.diff(crop.z) == pytest.approx(SLICE_SPACING)
    assert (crop.first[0] + crop.centre[0], crop.first[1] + crop.centre[1]) == pytest.approx((150, 200), abs=0.5)
    volume_mm3 = crop.mask.sum() * np.prod(crop.spacing)
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 7.0**3, rel=0.15)


def test_the_same_state_of_chance_draws_the_same_crop_and_another_one_another() -> None:
    scan = make_scan()
    first, again, other = (
        render_crop(scan, scan.annotations, findings(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.volume, again.volume)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.volume, other.volume)


def test_a_nodule_outlined_by_single_points_is_drawn() -> None:
    point = Contour(0.0, True, np.array([[200, 150]]))
    scan = Scan("LIDC-IDRI-0000", "1.2", "1.2.3", 2.5, SPACING, (-2.5, 0.0, 2.5), (Annotation("1", "a", {}, (point,)),))
    crop = render_crop(scan, scan.annotations, findings(), np.random.default_rng(0))
    assert 1 <= crop.mask.sum() <= 30


def test_a_hole_in_the_outlines_is_a_hole_in_the_mask() -> None:
    scan = make_scan()
    hole = [(row, column) for row, column in ((197, 147), (197, 153), (203, 153), (203, 147))]
    annotations = tuple(
        Annotation(a.id, a.nodule_id, {}, (*a.contours, *(Contour(c.z, False, np.array(hole)) for c in a.contours)))
        for a in scan.annotations
    )
    crop = render_crop(scan, annotations, findings(), np.random.default_rng(0))
    column, row, index = (round(value) for value in crop.centre)
    assert crop.mask[column, row, index] == 0
    assert crop.mask[:, :, index].sum() > 100


@pytest.mark.usefixtures("quiet")
class TestRatings:
    def test_attenuation_rises_with_texture(self) -> None:
        values = measure("texture", [1, 2, 3, 4, 5], lambda crop: crop.volume[depth_mm(crop) > 2].mean())
        assert np.all(np.diff(values) > 25), values
        assert -650 < values[0] < -350
        assert 0 < values[-1] < 70

    def test_a_part_solid_nodule_has_a_core_denser_than_its_rim(self) -> None:
        def rise(crop: Crop) -> float:
            depth = depth_mm(crop)[..., middle_slices(crop)]
            volume = crop.volume[..., middle_slices(crop)]
            return volume[depth > 4.5].mean() - volume[(depth > 1.0) & (depth < 2.0)].mean()

        part_solid, solid = measure("texture", [3, 5], rise)
        assert part_solid > 250
        assert solid < 100

    def test_the_border_is_steeper_with_a_better_defined_margin(self) -> None:
        def steepness(crop: Crop) -> float:
            depth, volume = depth_mm(crop)[..., middle_slices(crop)], crop.volume[..., middle_slices(crop)]
            return volume[(depth > 1.2) & (depth < 1.9)].mean() - volume[(depth > -1.5) & (depth < 0)].mean()

        values = measure("margin", [1, 2, 3, 4, 5], steepness)
        assert np.all(np.diff(values) > 10), values
        assert values[-1] > 2 * values[0]

    def test_strands_reach_into_the_lung_with_spiculation(self) -> None:
        def strands(crop: Crop) -> float:
            depth, volume = depth_mm(crop)[..., middle_slices(crop)], crop.volume[..., middle_slices(crop)]
            return (volume[(depth < -1.0) & (depth > -3.0)] > -700).mean()

        values = measure("spiculation", [1, 2, 3, 4, 5], strands)
        assert np.all(np.diff(values) > 0), values
        assert values[0] < 0.02
        assert values[-1] > 0.1

    def test_strands_are_separate(self) -> None:
        crop = draw("spiculation", 5)[0]
        middle = crop.centre[2]
        depth, plane = depth_mm(crop)[..., middle], crop.volume[..., middle]
        pieces = label((plane > -700) & (depth < -0.8) & (depth > -2.2), np.ones((3, 3)))[1]
        assert pieces >= 5

    def test_the_outline_is_more_notched_with_lobulation(self) -> None:
        def roughness(crop: Crop) -> float:
            x, y = np.nonzero(crop.mask[..., crop.centre[2]])
            reach = np.hypot(x - x.mean(), y - y.mean())
            angle = np.arctan2(y - y.mean(), x - x.mean())
            starts = np.linspace(-np.pi, np.pi, 36, endpoint=False)
            outline = [reach[(angle >= low) & (angle < low + np.pi / 18)].max() for low in starts]
            return float(np.std(outline) / np.mean(outline))

        values = measure("lobulation", [1, 2, 3, 4, 5], roughness)
        assert values == sorted(values), values
        assert values[-1] > 3 * values[0]

    def test_the_ball_is_drawn_out_with_low_sphericity(self) -> None:
        def aspect(crop: Crop) -> float:
            spread = np.linalg.eigvalsh(np.cov(np.nonzero(crop.mask[..., crop.centre[2]])))
            return float(np.sqrt(spread[1] / spread[0]))

        values = measure("sphericity", [1, 2, 3, 4, 5], aspect)
        assert np.all(np.diff(values) < -0.05), values
        assert values[-1] < 1.15
        assert values[0] > 1.8

    @pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
    def test_calcium_is_seen_where_there_is_calcification(self, code: int) -> None:
        for crop in draw("calcification", code):
            assert np.percentile(crop.volume[crop.mask > 0], 98) > 250

    def test_no_calcium_is_seen_where_there_is_none(self) -> None:
        for crop in draw("calcification", 6):
            assert crop.volume[crop.mask > 0].max() < 200

    def test_central_calcium_lies_in_the_centre_and_non_central_does_not(self) -> None:
        def eccentricity(crop: Crop) -> float:
            bright = np.argwhere((crop.volume > 300) & (crop.mask > 0)) * crop.spacing
            return float(np.linalg.norm(bright.mean(axis=0) - (np.argwhere(crop.mask) * crop.spacing).mean(axis=0)))

        central, non_central = measure("calcification", [5, 4], eccentricity)
        assert central < 1.0
        assert non_central > 1.8

    def test_solid_calcium_fills_the_nodule_and_central_does_not(self) -> None:
        filled = measure("calcification", [3, 5], lambda crop: (crop.volume[depth_mm(crop) > 2] > 300).mean())
        assert filled[0] > 0.95
        assert filled[1] < 0.5

    def test_laminated_calcium_lies_in_shells(self) -> None:
        crop = draw("calcification", 2)[0]
        depth, plane = depth_mm(crop)[..., crop.centre[2]], crop.volume[..., crop.centre[2]]
        shells = [plane[(depth > low) & (depth <= low + 0.7)].mean() for low in np.arange(0.7, 6.3, 0.7)]
        turns = np.sum(np.diff(np.sign(np.diff(shells))) != 0)
        assert turns >= 2, shells

    def test_a_cavity_holds_air(self) -> None:
        for crop in draw("internal_structure", 4):
            column, row, index = (round(value) for value in crop.centre)
            assert crop.volume[column, row, index] < -800
            assert crop.volume[crop.mask > 0].max() > -100


def test_the_scanner_adds_the_noise_it_says() -> None:
    scan = make_scan()
    for noise_hu, streaks in ((15.0, 1.0), (60.0, 3.0)):
        scanner = Scanner(blur_mm=0.5, tails=0.1, sharpening=0.2, noise_hu=noise_hu, noise_peak=0.5, streaks=streaks)
        grid = crop_module._grid(scan, scan.annotations)
        image = scanner.image(np.full(grid.samples, -850.0, dtype=np.float32), grid, np.random.default_rng(0))
        assert image.std() == pytest.approx(noise_hu, rel=0.05)
        assert image.mean() == pytest.approx(-850, abs=3)
        along_rows, along_columns = np.abs(np.diff(image, axis=2)).mean(), np.abs(np.diff(image, axis=1)).mean()
        assert (along_columns > 1.3 * along_rows) == (streaks > 1)
