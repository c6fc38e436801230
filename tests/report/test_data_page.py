from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crops_folder import write_crops
from datalist_content import make_item
from PIL import Image

from nodule_plugin.cli import main
from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.datalist import build_datalist, write_datalist
from nodule_plugin.data.nodule import Skipped
from nodule_plugin.errors import InputError
from nodule_plugin.report.data_page import choose_samples, page_file, write_data_page


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """Twelve crops whose ROI lies wholly inside, one left out."""
    nodules = nodules_from_crops(write_crops(tmp_path / "crops", count=12, diameter_mm="4", margin="2"))
    nodules.skipped.append(Skipped("P99_R_1", "diameter below 3 mm <&>"))
    return write_datalist(build_datalist(nodules, ratios=(2, 1, 1)), tmp_path / "list.json")


def _page(datalist: Path, **settings: Any) -> str:
    page = write_data_page(datalist, **settings)
    assert page is not None
    return page.read_text(encoding="utf-8")


def _pictures(page: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        for encoded in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]


def test_page_stands_alone_and_can_be_used_by_everybody(datalist: Path) -> None:
    page = _page(datalist)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\(|@import|<script|<link|http-equiv", page)
    assert page.count("<img") == page.count('alt="CT of the nodule')
    assert page.count("<table") == page.count("<caption>")
    assert {'name="viewport"', "prefers-color-scheme: dark", "@media print", 'lang="en"'} <= {
        part for part in ('name="viewport"', "prefers-color-scheme: dark", "@media print", 'lang="en"') if part in page
    }
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links == set(re.findall(r'<h2 id="([^"]+)"', page))


def test_page_is_well_formed(datalist: Path) -> None:
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balance().feed(_page(datalist))
    assert open_tags == []


def test_page_tells_what_is_in_the_data_list(datalist: Path) -> None:
    page = _page(datalist)
    assert "12 pairs: 6 for training, 3 for validation, 3 for test." in page
    assert "1 × diameter below 3 mm &lt;&amp;&gt;" in page
    assert "“mostly poorly defined margins”" in page
    assert "near poorly defined" in page
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in page
    assert "2 : 1 : 1 by patient" in page
    assert "no example" in page


def test_samples_are_cut_windowed_and_sized_as_for_training(datalist: Path) -> None:
    pictures = _pictures(_page(datalist, samples=2))
    assert [picture.shape for picture in pictures] == [(160, 160)] * 6
    # write_crops fills crop N with -700 + N HU; the window is -1000 to 400.
    shown = {int(picture[80, 80]) for picture in pictures}
    assert all((picture == picture[0, 0]).all() for picture in pictures)
    assert shown <= {round((300 + number) / 1400 * 255) for number in range(12)}


@pytest.mark.parametrize(("samples", "shown"), [(0, 0), (2, 6), (100, 12)])
def test_number_of_samples(datalist: Path, samples: int, shown: int) -> None:
    assert len(_pictures(_page(datalist, samples=samples))) == shown


def test_the_same_seed_gives_the_same_page(datalist: Path) -> None:
    assert _page(datalist, samples=1, seed=3) == _page(datalist, samples=1, seed=3)
    assert len({_page(datalist, samples=1, seed=seed) for seed in range(4)}) > 1


def test_samples_show_different_prompts_first() -> None:
    items = [make_item(number, "training") for number in range(20)] + [make_item(20, "training", margin=1)]
    for seed in range(5):
        chosen = choose_samples(items, 2, seed)
        assert len({item["prompt"] for item in chosen}) == 2
    assert choose_samples(items, 99, 0) == items


def test_real_patients_are_said_to_be_real(datalist: Path) -> None:
    assert "real patients' CT" in _page(datalist).replace("&#39;", "'")
    content = json.loads(datalist.read_text())
    for part in ("training", "validation", "test"):
        for item in content[part]:
            item["synthetic"] = True
    write_datalist(content, datalist)
    page = _page(datalist).replace("&#39;", "'")
    assert "Synthetic CT (phantoms): no image is a patient's" in page
    assert "real patients" not in page


def test_an_unreadable_image_leaves_the_data_list_and_no_page(datalist: Path) -> None:
    page = write_data_page(datalist)
    assert page is not None
    before = datalist.read_bytes()
    image = sorted((datalist.parent / "crops" / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(InputError, match=r"page .*list\.html: not written; the data list .* stands: image: .*P0_R"):
        write_data_page(datalist, samples=12)
    assert datalist.read_bytes() == before
    assert {path.name for path in datalist.parent.iterdir()} == {"crops", "list.json"}


def test_a_page_that_cannot_be_written(datalist: Path) -> None:
    (datalist.parent / "file").touch()
    with pytest.raises(InputError, match=r"page .*file/page\.html: cannot be written .*; the data list .* stands"):
        write_data_page(datalist, datalist.parent / "file" / "page.html")


def test_a_data_list_of_an_older_version(datalist: Path) -> None:
    content = json.loads(datalist.read_text())
    del content["selection"]
    write_datalist(content, datalist)
    with pytest.raises(InputError, match=r"list\.json: the field 'selection' is missing; run prepare again"):
        write_data_page(datalist)


@pytest.mark.parametrize(
    ("page", "file"),
    [
        (True, "a/list.html"),
        ("true", "a/list.html"),
        (False, None),
        ("False", None),
        (None, None),
        ("b.html", "b.html"),
    ],
)
def test_where_the_page_goes(page: bool | str | None, file: str | None) -> None:
    assert page_file(page, "a/list.json") == (Path(file) if file else None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page": "a/list.json"}, "page: true, false or a name that ends in .html is needed, not 'a/list.json'"),
        ({"page": "a/../list.html", "datalist": "list.html"}, "page: a/../list.html would take the data list's place"),
        ({"page": True, "datalist": "list.html"}, "page: list.html would take the data list's place"),
        ({"page": True, "samples": -1}, "page_samples: a whole number of 0 or above is needed, not -1"),
        ({"page": True, "samples": "6"}, "page_samples: a whole number of 0 or above is needed, not '6'"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        page_file(**{"datalist": "a/list.json", **settings})


def test_a_seed_that_draws_nothing_is_refused(datalist: Path) -> None:
    with pytest.raises(InputError, match="page_seed: a whole number of 0 or above is needed, not -1"):
        write_data_page(datalist, seed=-1)


def test_no_page_leaves_no_file(datalist: Path) -> None:
    assert write_data_page(datalist, page=False) is None
    assert not datalist.with_suffix(".html").exists()


def test_command_on_an_existing_data_list(
    datalist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(datalist.parent)
    main(["data-page", "list.json", "--page", "my.html", "--samples", "1"])
    assert capsys.readouterr().out == "my.html\n"
    assert "12 pairs" in Path("my.html").read_text(encoding="utf-8")
