"""The part of the page that puts nodules into a CT series; what is written is tried in tests/insertion."""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from ct_hosts import FINDINGS, round_crops, write_host
from tiny_inpainter import make_tiny_inpainter

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.mask_shapes import draw_mask
from nodule_plugin.insertion.sources import CopyPaste
from nodule_plugin.playground.drawing import START, Order
from nodule_plugin.playground.series import HostSeries, Inserted
from nodule_plugin.playground.series_tab import answers

PLACE = (30.0, 12.0, 1.2)
"""In the left lung of the host, x, y, z, mm."""
CONTROLS = {
    **{name: START.to_dict()[name] for name in ("sphericity", "margin", "texture", "spiculation", "calcification")},
    **{"by": "findings", "prompt": "", "guidance": 2.0, "seed": 4, "count": 2, "steps": 2, "size": 16, "roi_mm": 20},
}


def pixels(image: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(image["hu"]), "<i2").reshape(image["rows"], image["columns"])


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> HostSeries:
    folder = tmp_path_factory.mktemp("series")
    write_host(folder / "host")
    pasted = CopyPaste.from_folder(round_crops(folder / "crops"))
    base = make_tiny_inpainter(folder / "inpainter", Grid((2.5, 1.0, 1.0), (16, 24, 24), (-1024, 976)))
    return HostSeries(
        folder / "host",
        {"pasted": (pasted, pasted.draw_mask), "painted": (NoduleInpainter.from_folder(base), draw_mask)},
    )


@pytest.fixture(scope="module")
def inserted(series: HostSeries, tmp_path_factory: pytest.TempPathFactory) -> Inserted:
    folder = tmp_path_factory.mktemp("inserted") / "set"
    return series.insert(Order(FINDINGS, seed=3), PLACE, 10.0, "pasted", folder)


def test_a_place_is_a_voxel_and_back(series: HostSeries) -> None:
    assert series.position(8, 63, 74) == pytest.approx((29.6, 12.0, 1.2), abs=0.06)
    assert series.number(PLACE) == 8
    assert series.number((0.0, 0.0, 999.0)) == len(series.hu) - 1
    assert series.hu[series.number(series.start)].shape == (112, 112)


def test_a_slice_shows_the_host_and_where_the_nodule_is_to_be(series: HostSeries) -> None:
    (image,) = series.images(8, PLACE, 10.0)
    np.testing.assert_array_equal(pixels(image), series.hu[8])
    rows, columns = np.divmod(image["outline"], 112)
    x, y, _ = np.array([series.position(8, row, column) for row, column in zip(rows, columns)]).T
    distance = np.hypot(x - PLACE[0], y - PLACE[1])
    assert (distance > 5).all()
    assert (distance < 5 + 1.6 * np.sqrt(2)).all()
    assert series.images(0, PLACE, 10.0)[0]["outline"] == []


def test_after_an_insertion_slices_are_those_that_were_written(series: HostSeries, inserted: Inserted) -> None:
    with zipfile.ZipFile(inserted.packed) as archive:
        names = set(archive.namelist())
        for number in range(len(series.hu)):
            with archive.open(f"seed3/ct/{number + 1:06d}.dcm") as file:
                written = pydicom.dcmread(file)
            before, after = series.images(number, PLACE, 10.0, inserted)
            np.testing.assert_array_equal(pixels(after), written.pixel_array + written.RescaleIntercept)
            np.testing.assert_array_equal(pixels(before), series.hu[number])
            assert (pixels(after) != pixels(before)).any() == after["caption"].endswith("SYNTHETIC nodule")
    others = ("segmentation_binary.dcm", "segmentation_labelmap.dcm", "report.dcm", "volume.nii.gz", "mask.nii.gz")
    assert {"manifest.json", *(f"seed3/{name}" for name in others)} <= names
    assert inserted.middle in (7, 8)
    assert 3 < len(inserted.slices) < len(series.hu)
    assert inserted.nodule["measured_diameter_mm"] == pytest.approx(10, rel=0.1)


def test_the_model_paints_what_a_prompt_says(series: HostSeries, tmp_path: Path) -> None:
    order = Order(FINDINGS, prompt="A nodule.", steps=2)
    made = series.insert(order, PLACE, 10.0, "painted", tmp_path / "set")
    assert made.nodule["prompt"] == "A nodule."
    assert made.slices[made.middle][1].any()


def test_what_cannot_be_is_one_line_and_leaves_nothing(series: HostSeries, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside the body; choose a place in the lung"):
        series.insert(Order(FINDINGS), (-85.0, -85.0, 0.0), 10.0, "pasted", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_click_moves_the_place_and_the_sliders_say_what_is_inserted(series: HostSeries) -> None:
    answer = answers(series, "reference")
    *place, viewer = answer["click"](9, *series.start, 10.0, None, SimpleNamespace(row=63, column=74))
    assert place == pytest.approx([29.6, 12.0, 1.2], abs=0.06)
    assert viewer["images"][0]["caption"] == "slice 9, before"
    number, viewer = answer["move"](1, *place, 10.0, None)
    assert (number, viewer["images"][0]["caption"]) == (9, "slice 9, before")
    x, y, z = place
    made, number, viewer, file = answer["insert"](x=x, y=y, z=z, diameter=10.0, source="pasted", **CONTROLS)
    assert made.nodule["prompt"].startswith("The nodule is nearly round in shape, solid internally")
    assert made.nodule["seed"] == 4
    assert len(viewer["images"]) == 2
    assert number == made.middle + 1
    assert Path(file).name.startswith("synthetic-insertion-")
    assert [path.name for path in Path(file).parent.iterdir()] == [Path(file).name]


def test_what_the_visitor_can_mend_is_shown(series: HostSeries) -> None:
    gradio = pytest.importorskip(
        "gradio", reason="gradio (extra playground) is not installed: it needs an older pillow"
    )
    answer = answers(series, "reference")
    with pytest.raises(gradio.Error, match="position: x, y and z are needed"):
        answer["look"](1, None, 0.0, 0.0, 10.0, None)
    with pytest.raises(gradio.Error, match="outside the body"):
        answer["insert"](x=-85.0, y=-85.0, z=0.0, diameter=10.0, source="pasted", **CONTROLS)
