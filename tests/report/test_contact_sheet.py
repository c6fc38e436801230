from __future__ import annotations

import io
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nodule_plugin.cli import tools
from nodule_plugin.data.generated import FORMAT, VERSION, GeneratedSet, load_generated
from nodule_plugin.errors import InputError
from nodule_plugin.report.contact_sheet import (
    beside_real,
    by_finding,
    by_guidance,
    by_seed,
    contact_sheet,
)

BASE = {"sphericity": 4, "margin": 4, "texture": 5, "spiculation": 1}


def write_set(folder: Path, items: list[dict[str, Any]]) -> GeneratedSet:
    folder.mkdir()
    listed = []
    for number, item in enumerate(items):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
        known = {"id": str(number), "image": f"{number}.png", "findings": None, "roi_mm": 20, "source_id": None}
        listed.append(known | {"prompt": "a", "guidance_scale": 1.0, "seed": 0} | item)
    manifest = {"format": FORMAT, "version": VERSION, "synthetic": True, "window_hu": [-1000, 400], "images": listed}
    manifest |= {"model": {}, "scheduler": "x", "num_inference_steps": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_generated(folder)


@pytest.fixture
def sweep(tmp_path: Path) -> GeneratedSet:
    items = [
        {"prompt": prompt, "guidance_scale": scale, "seed": seed}
        for prompt, scale, seed in product("ab", (5.0, 1.0), (0, 1))
    ]
    return write_set(tmp_path / "sweep", items)


def numbers(cells: Any) -> dict[tuple[str, str], int]:
    """Which image stands where; the images' grey value is their number."""
    return {key: round((float(image.mean()) + 1) * 127.5) for key, image in cells.items()}


def test_guidance_scales_rise_across_and_a_rows_seed_stays(sweep: GeneratedSet) -> None:
    cells = numbers(by_guidance(sweep))
    assert cells == {
        **{("a", "guidance 1"): 2, ("b", "guidance 1"): 6},
        **{("a", "guidance 5"): 0, ("b", "guidance 5"): 4},
    }
    assert next(iter(cells))[1] == "guidance 1"
    assert {row for row, _ in by_guidance(sweep, limit=1)} == {"a"}


def test_requests_of_a_data_list_have_seeds_of_their_own(tmp_path: Path) -> None:
    listed = [{"prompt": p, "guidance_scale": s, "seed": n} for n, p in enumerate("abb") for s in (1.0, 5.0)]
    generated = write_set(tmp_path / "listed", listed)
    assert numbers(by_guidance(generated)) == {
        **{("a", "guidance 1"): 0, ("a", "guidance 5"): 1},
        **{("b", "guidance 1"): 2, ("b", "guidance 5"): 3},
    }
    assert numbers(by_seed(generated, 1.0)) == {("b", "1"): 2, ("b", "2"): 4, ("a", "1"): 0}


def test_seeds_stand_side_by_side(sweep: GeneratedSet) -> None:
    assert numbers(by_seed(sweep, 5.0)) == {("a", "1"): 0, ("a", "2"): 1, ("b", "1"): 4, ("b", "2"): 5}
    assert numbers(by_seed(sweep, 5.0, limit=1, across=1)) == {("a", "1"): 0}


def test_one_finding_moves_and_the_rest_stays(tmp_path: Path) -> None:
    moved = [BASE | {"margin": code} for code in (1, 3, 4)] + [BASE | {"spiculation": code} for code in (3, 5)]
    scales = (1.0, 5.0)
    doses = write_set(tmp_path / "dose", [{"findings": m, "guidance_scale": s} for s in scales for m in moved])
    assert numbers(by_finding(doses, 1.0, seed=0)) == {
        **{("margin", "1"): 0, ("margin", "3"): 1, ("margin", "4"): 2},
        **{("spiculation", "1"): 2, ("spiculation", "3"): 3, ("spiculation", "5"): 4},
    }
    assert numbers(by_finding(doses, 5.0, seed=0))["margin", "1"] == len(moved)
    with pytest.raises(InputError, match="at 5 with seed 7"):
        by_finding(doses, 5.0, seed=7)


def test_generated_nodules_stand_below_the_real_ones(tmp_path: Path) -> None:
    generated = write_set(tmp_path / "set", [{"source_id": name} for name in ("n1", "n2", "other", "n1")])
    real = {name: np.full((8, 8), value / 127.5 - 1, np.float32) for name, value in (("n1", 100), ("n2", 200))}
    assert numbers(beside_real(generated, real, 1.0)) == {
        **{("1\nreal", "1"): 100, ("1\ngenerated", "1"): 0},
        **{("1\nreal", "2"): 200, ("1\ngenerated", "2"): 1},
    }
    with pytest.raises(InputError, match="no image of these nodules at 3"):
        beside_real(generated, real, 3.0)


def test_a_sheet_shows_its_images_and_grows_with_them(sweep: GeneratedSet, tmp_path: Path) -> None:
    bright = {("row", "column"): np.ones((8, 8))}
    one = Image.open(io.BytesIO(contact_sheet(bright))).convert("L")
    dark = Image.open(io.BytesIO(contact_sheet({("row", "column"): -np.ones((8, 8))}))).convert("L")
    assert np.mean(np.asarray(one) > 250) - np.mean(np.asarray(dark) > 250) > 0.2
    assert Image.open(io.BytesIO(contact_sheet(by_guidance(sweep)))).height > one.height


def test_the_command_writes_its_sheets_and_names_no_other(
    sweep: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sheets"
    output.mkdir()
    (output / "mine.png").write_bytes(b"")
    tools.contact_sheet(["--generated", str(sweep.folder), "--output", str(output)])
    assert capsys.readouterr().out == f"wrote guidance.png, seeds.png to {output}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guidance-scale", "3"], "guidance_scale: .* holds no image at 3; choose one of 1, 5"),
        (["--limit", "-1"], "limit: a whole number of 1 or above is needed, not -1"),
        (["--output", __file__], "output .*: cannot be written"),
        (["--dose-response", "there is no folder"], "there is no folder"),
    ],
)
def test_where_something_is_wrong_no_sheet_is_written(
    sweep: GeneratedSet, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tools.contact_sheet(["--generated", str(sweep.folder), "--output", str(tmp_path / "sheets"), *words])
    assert not (tmp_path / "sheets").exists()


def test_what_cannot_be_shown_is_refused(sweep: GeneratedSet, tmp_path: Path) -> None:
    (sweep.folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="only a set that inference wrote"):
        by_guidance(load_generated(sweep.folder))
    with pytest.raises(InputError, match="says at which guidance scales"):
        tools.contact_sheet(["--generated", str(sweep.folder), "--output", str(tmp_path / "sheets")])
    with pytest.raises(InputError, match="no image"):
        contact_sheet({})
