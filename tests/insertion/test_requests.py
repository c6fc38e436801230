"""What cannot be used: one error each, and nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from ct_hosts import FINDINGS, chest, write_host

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.host import Host, read_host
from nodule_plugin.insertion.lesions import place_lesions, read_lesions
from nodule_plugin.insertion.lungs import Lungs, find_lungs, random_places
from nodule_plugin.insertion.mask_shapes import draw_mask
from nodule_plugin.insertion.place import Place
from nodule_plugin.insertion.sources import CopyPaste

GIVEN: dict[str, Any] = {"diameter_mm": 10, "findings": FINDINGS}


@pytest.fixture(scope="module")
def series(host: Path) -> tuple[Host, Lungs]:
    volume = read_host(host)
    return volume, find_lungs(volume)


@pytest.mark.parametrize(
    ("position", "diameter", "message"),
    [
        ((0, 0, 400), 10, "is outside the series"),
        ((0, -80, 2), 10, "is outside the body"),
        ((0, -46, 2), 10, "is not in the lung"),
        ((30, 0, 18), 10, "beyond the series"),
        ((52, 0, 2), 12, "reaches out of the lung"),
        ((30, 0, 2), 60, "are larger than"),
        ((30, 0, 2), 0.5, "fills no voxel by half"),
    ],
)
def test_places_that_cannot_be(
    position: tuple[float, ...], diameter: float, message: str, series: tuple[Host, Lungs], crops: Path
) -> None:
    lesions = read_lesions(position=position, diameter_mm=diameter, findings=FINDINGS)
    source = CopyPaste.from_folder(crops)
    with pytest.raises(InputError, match=message) as error:
        place_lesions(lesions, *series, source, source.draw_mask, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("diameter", "message"), [(25, "are larger than the 20 x 28 x 28 mm"), (20, "does not fit")])
def test_nodules_larger_than_the_shipped_models_grid(
    diameter: float, message: str, series: tuple[Host, Lungs], crops: Path
) -> None:
    source = replace(CopyPaste.from_folder(crops), grid=Grid((2.0, 0.7, 0.7), (10, 40, 40), (-1024, 3071)))
    lesions = read_lesions(position=(30, 0, 2), diameter_mm=diameter, findings=FINDINGS)
    with pytest.raises(InputError, match=f"^position.*{message}.*; give a smaller nodule$"):
        place_lesions(lesions, *series, source, draw_mask, seed=0)


def test_nothing_half_written_stays(host: Path, insert: Any, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps([{"position": [30, y, 2]} for y in (0, 12)]))
    with pytest.raises(InputError, match="touches lesion 1; move them apart"):
        insert(host, tmp_path / "out", lesions=read_lesions(lesions=tmp_path / "l.json", **GIVEN))
    assert [path.name for path in tmp_path.iterdir()] == ["l.json"]


def test_the_series_own_folder_is_left_alone(insert: Any, tmp_path: Path) -> None:
    host = tmp_path / "host"
    before = sorted(write_host(host))
    with pytest.raises(InputError, match=f"^output_dir: {host}/out lies in the series' own folder {host}; choose one"):
        insert(host, host / "out")
    assert sorted(host.iterdir()) == before


def test_a_folder_in_use_is_left_alone(host: Path, insert: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="already there"):
        insert(host, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of position, lesions and random, not none"),
        ({"position": "1,2,3", "random": 2}, "not position and random"),
        ({"position": "1,2"}, "position: x, y and z are needed"),
        ({"position": "1,2,up"}, "'up' is not a number"),
        ({"position": "1,1,3", "diameter_mm": None}, "diameter_mm is missing"),
        ({"position": "1,1,3", "diameter_mm": -4}, "a number above 0"),
        ({"position": "1,1,3", "prompt": "A nodule."}, "give either findings or a prompt; both are there"),
        ({"position": "1,1,3", "findings": None}, "give either findings or a prompt; neither is there"),
        ({"position": "1,1,3", "findings": {"sphericity": 9}}, "is missing"),
        (
            {"position": "1,1,3", "findings": "sphericity=3"},
            "position: findings: sphericity=3: cannot be read .*or a",
        ),
        ({"random": 0.5}, "random: a whole number"),
        ({"random": 0}, "random: a whole number of 1 or above is needed, not 0"),
        ({"position": "1_0,1,3"}, "'1_0' is not a number"),
        ({"position": "1,nan,3"}, "position: a finite number is needed, not nan"),
        ({"lesions": [{"position": [1, 2, 3], "diameter": 4}]}, "lesion 1: there is no key 'diameter' .* diameter_mm"),
        ({"lesions": [{"position": [1, 2, 3], "margin": 4}]}, "lesion 1: there is no key 'margin' to read"),
        ({"lesions": [{"position": [1, 2, 3], "findings": {"margin": 4}}]}, "lesion 1: findings: .* is missing"),
        ({"lesions": [{"position": [1, 2, 3], "findings": {**FINDINGS, "margin": 9}}]}, "lesion 1: margin: .* not 9"),
        ({"lesions": "missing.csv"}, "missing.csv: cannot be read"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_lesions(**(GIVEN | settings))


def test_lists_of_lesions(tmp_path: Path) -> None:
    table = tmp_path / "lesions.csv"
    head = "x,y,z,diameter_mm,sphericity,margin,texture,spiculation,calcification,prompt"
    table.write_text(f"{head}\n1,2,-3.5,8,3,4,5,1,6,\n4,5,6,,,,,,,A strange nodule.\n")
    first, second = read_lesions(lesions=table, **GIVEN)
    assert (first.position, first.diameter_mm) == ((1, 2, -3.5), 8)
    assert first.findings is not None
    assert first.findings.sphericity == 3
    assert (second.diameter_mm, second.prompt, second.findings) == (10, "A strange nodule.", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,z,size\n1,2,3,4\n", "lesion 1: there is no column 'size'"),
        ("a,b\n1,2\n", "lines below a head of x, y, z.*its head is 'a,b'"),
        ("x;y;z\n1;2;3\n", "divided by commas, are needed; its head is 'x;y;z'"),
        ("X,Y,Z\n1,2,3\n", "its head is 'X,Y,Z'"),
        ("", "its head is ''"),
        ("x,y,z\n", "no line below its head"),
        ("x,y,z,x\n1,2,3,4\n", "the column 'x' is there twice"),
        ("x,y,z\n1,2,3\n1,2,3,4\n", "lesion 2: it has 1 more cells than the head"),
        ("x,y,z\n1,,3\n", "lesion 1: y is empty"),
        ("x,y,z\n1,2\n", "lesion 1: z is empty"),
        ("x,y,z\n1,up,3\n", "lesion 1: y: 'up' is not a number"),
    ],
)
def test_tables_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "lesions.csv").write_text(text)
    with pytest.raises(InputError, match=f"^{tmp_path}/lesions.csv: .*{message}") as error:
        read_lesions(lesions=tmp_path / "lesions.csv", **GIVEN)
    assert "\n" not in str(error.value)


def test_a_position_can_be_an_array() -> None:
    (lesion,) = read_lesions(position=np.array([0.0, 2.5, 3.0]), **GIVEN)
    assert lesion.position == (0, 2.5, 3)


def test_a_prompt_in_the_templates_words_has_findings() -> None:
    prompt = "The nodule is oval in shape, solid internally, with well-defined margins. marked spiculation is seen."
    (lesion,) = read_lesions(position=(1, 2, 3), diameter_mm=5, prompt=prompt)
    assert lesion.findings is not None
    assert (lesion.findings.sphericity, lesion.findings.spiculation) == (3, 5)


def broken(folder: Path, what: str) -> None:
    paths = write_host(folder)
    if what == "missing":
        paths[7].unlink()
        return
    if what == "one":
        for path in paths[1:]:
            path.unlink()
        return
    dataset = pydicom.dcmread(paths[7])
    if what == "mixed":
        dataset.SeriesInstanceUID = "2.25.77"
    elif what == "doubled":
        dataset.InstanceNumber = 99
    elif what == "in another frame":
        dataset.FrameOfReferenceUID = "2.25.77"
    elif what == "without an identifier":
        dataset.SOPInstanceUID = ""
    elif what == "with another's identifier":
        dataset.SOPInstanceUID = pydicom.dcmread(paths[3]).SOPInstanceUID
    elif what == "in colour":
        dataset.SamplesPerPixel, dataset.PixelData = 3, 3 * dataset.PixelData
    elif what == "without bits":
        del dataset.BitsStored
    elif what == "uneven":
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], dataset.ImagePositionPatient[2] + 0.7]
    elif what == "size":
        dataset.PixelSpacing = [1, 1]
    elif what == "damaged":
        paths[7].write_bytes(paths[7].read_bytes()[:-200])
        return
    dataset.save_as(folder / "other.dcm" if what == "doubled" else paths[7])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("mixed", "2 series"),
        ("missing", r"a slice is missing between z = \S+ and \S+ mm"),
        ("doubled", "1 slices of .* lie where another lies"),
        ("uneven", "from where even spacing puts it"),
        ("size", "number and size"),
        ("damaged", "truncated"),
        ("one", "its only slice"),
        ("in another frame", r"2 values of FrameOfReferenceUID \(2.25.1002, 2.25.77\)"),
        ("without an identifier", "000052.dcm: SOPInstanceUID is missing"),
        ("with another's identifier", r"000052.dcm has the SOPInstanceUID of 000024.dcm"),
        ("in colour", "000052.dcm: SamplesPerPixel is 3"),
        ("without bits", r"cannot be decoded \(.*Bits ?Stored.*\); get the file anew"),
    ],
)
def test_series_that_cannot_be_a_host(what: str, message: str, tmp_path: Path) -> None:
    broken(tmp_path / "host", what)
    with pytest.raises(InputError, match=message) as error:
        read_host(tmp_path / "host")
    assert "\n" not in str(error.value)


def test_a_series_without_lungs_or_units(tmp_path: Path) -> None:
    y, x = np.mgrid[:112, :112] - 55.5
    write_host(tmp_path / "water", np.repeat(np.where(np.hypot(y, x) < 40, 40.0, -1000.0)[None], 9, axis=0))
    write_host(tmp_path / "raw", chest() + 1024, intercept=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no lung is found"):
        find_lungs(read_host(tmp_path / "water"))
    with pytest.raises(InputError, match="Hounsfield"):
        read_host(tmp_path / "raw")
    with pytest.raises(InputError, match="no axial CT series"):
        read_host(tmp_path / "empty")


def test_random_places_keep_their_distances(series: tuple[Host, Lungs]) -> None:
    volume, lungs = series
    places = random_places(lungs, 6, radius_mm=4, pleura_mm=3, vessel_mm=2, apart_mm=13, seed=5)
    points = volume.geometry.to_patient(places)
    assert all(lungs.objection(place) is None for place in places)
    ellipses = [
        ((points[:, 0] - middle) / (24 - 7 + 2.5)) ** 2 + (points[:, 1] / (38 - 7 + 2.5)) ** 2 for middle in (-30, 30)
    ]
    assert np.minimum(*ellipses).max() < 1  # to within a coarse voxel
    vessel = np.hypot(points[:, 0] - 42, points[:, 1] + 10)
    assert vessel.min() > 4 + 2
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)[~np.eye(6, dtype=bool)]
    assert apart.min() >= 13
    assert random_places(lungs, 6, 4, 3, 2, 13, seed=5)[0].tolist() == places[0].tolist()
    assert random_places(lungs, 6, 4, 3, 2, 13, seed=6)[0].tolist() != places[0].tolist()
    with pytest.raises(InputError, match="there is room for"):
        random_places(lungs, 500, 4, 3, 2, 13, seed=5)


def test_random_places_are_drawn_for_balls_that_do_not_touch(
    series: tuple[Host, Lungs], crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    random = "nodule_plugin.insertion.lesions.random_places"
    monkeypatch.setattr(random, lambda lungs, *wanted, accept: asked.extend(wanted))
    source, lesions = CopyPaste.from_folder(crops), read_lesions(random=3, diameter_mm=6, findings=FINDINGS)
    place_lesions(lesions, *series, source, source.draw_mask, seed=7, pleura_mm=4.0, vessel_mm=1.5)
    assert asked == [3, 6 / 2, 4.0, 1.5, 6 + 2 * 2.5, 7]  # each change fades out within 2.5 mm


def test_a_position_in_voxels_is_column_row_and_slice(series: tuple[Host, Lungs], crops: Path) -> None:
    source, lesions = CopyPaste.from_folder(crops), read_lesions(position=(75, 60, 9), **GIVEN)
    (place,) = place_lesions(lesions, *series, source, source.draw_mask, seed=0, coordinates="voxel")
    # 1.6 mm a pixel and 2.5 mm a slice; the middle of 112 x 112 x 16 voxels is at 0.
    assert place.centre.tolist() == pytest.approx([(75 - 55.5) * 1.6, (60 - 55.5) * 1.6, (9 - 7.5) * 2.5])


def test_seeds_share_no_nodules(series: tuple[Host, Lungs], crops: Path) -> None:
    source, lesions = CopyPaste.from_folder(crops), read_lesions(random=2, diameter_mm=5, findings=FINDINGS)
    placed = [place_lesions(lesions, *series, source, source.draw_mask, seed=seed) for seed in (0, 1)]
    assert [places[0].seed for places in placed] == [0, 1]
    assert len({place.seed for places in placed for place in places}) == 4
    again = place_lesions(lesions, *series, source, source.draw_mask, seed=1)
    assert [place.seed for place in again] == [place.seed for place in placed[1]]


def test_a_random_place_that_touches_is_drawn_again(
    series: tuple[Host, Lungs], crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Place] = []

    def touches(place: Place, other: Place) -> bool:
        asked.append(place)
        return len(asked) == 1

    monkeypatch.setattr(Place, "touches", touches)
    source, lesions = CopyPaste.from_folder(crops), read_lesions(random=2, diameter_mm=5, findings=FINDINGS)
    places = place_lesions(lesions, *series, source, source.draw_mask, seed=0)
    assert len(places) == len(asked) == 2
    assert asked[0] is not places[1] is asked[1]


def test_a_random_place_that_does_not_fit_is_drawn_again(
    series: tuple[Host, Lungs], crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, lesions = CopyPaste.from_folder(crops), read_lesions(random=1, diameter_mm=5, findings=FINDINGS)
    (first,) = place_lesions(lesions, *series, source, source.draw_mask, seed=0)
    monkeypatch.setattr("nodule_plugin.insertion.lesions._TRIES", 3)
    cut = iter([True, False])
    monkeypatch.setattr(Place, "is_cut", property(lambda place: next(cut, True)))
    (second,) = place_lesions(lesions, *series, source, source.draw_mask, seed=0)
    assert second.centre.tolist() != first.centre.tolist()
    with pytest.raises(InputError, match=r"random .* reaches beyond the series or what the model sees"):
        place_lesions(lesions, *series, source, source.draw_mask, seed=0)


@pytest.mark.parametrize("margin", ["pleura_mm", "vessel_mm"])
def test_margins_are_not_negative(margin: str, series: tuple[Host, Lungs], crops: Path) -> None:
    source, lesions = CopyPaste.from_folder(crops), read_lesions(random=1, diameter_mm=5, findings=FINDINGS)
    with pytest.raises(InputError, match=f"^{margin}: a number of 0 or above is needed, not -1$"):
        place_lesions(lesions, *series, source, source.draw_mask, seed=0, **{margin: -1.0})
