from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, ImageRecord, ImageSet, SetKey, flat_warning
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.alignment import AlignmentMeasure, CLIPScorer
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.features import InceptionFeatures, OpenCLIPImageFeatures
from nodule_plugin.metrics.measures import PUBLISHED, STAND_IN, Measure, Value, columns, missing
from nodule_plugin.metrics.results_table import FLOOR, Row
from nodule_plugin.metrics.studies import NO_STUDIES
from nodule_plugin.report.figures import noise_power_panels
from nodule_plugin.report.files import write_report
from nodule_plugin.report.lights import light_line
from nodule_plugin.report.numbers import rate_text, with_error, with_interval
from nodule_plugin.report.page import render_page
from nodule_plugin.report.pictures import shown_rows
from nodule_plugin.report.results import build_results
from nodule_plugin.report.tables import csv_text, markdown, more_sentence, tables
from nodule_plugin.report.terminal import WIDTH, terminal_text

REAL_KEY = SetKey(REAL, "real images")
KEYS = [SetKey(GENERATED, "tiny", scale) for scale in (5.0, 10.0)]


def _measures() -> list[Measure]:
    tiny = OpenCLIPImageFeatures("folder", name="tiny nodule encoder")
    score = AlignmentMeasure("clip_score_tiny", "Tiny CLIPScore", CLIPScorer("folder"))
    distances = Distances()
    return columns(
        {PUBLISHED: [distances(InceptionFeatures(), "fid")], STAND_IN: [distances(tiny, "kd", suffix="tiny"), score]}
    )


def _row(key: SetKey, distance: Value, score: Value) -> Row:
    return Row(key, 20, 3, {"fid": missing("no weights given"), "kd_tiny": distance, "clip_score_tiny": score})


SENSITIVITY = {
    "convention": {},
    "faults": [{"key": "blur", "name": "Blur", "question": "distance", "unit": "pixels (sigma)", "steps": [0.5, 1.0]}],
    "measures": [],
}
"""Of which no measure is known to see anything."""


def _results() -> dict[str, Any]:
    score = Value(0.2, 0.01, 20, details={"above_shuffled": 0.05, "above_shuffled_error": 0.01})
    rows = [
        _row(REAL_KEY, missing("compared with itself"), score),
        _row(FLOOR, Value(0.1, 0.05, 10), score),
        _row(KEYS[0], Value(0.5, 0.1, 20), score),
        _row(KEYS[1], Value(3.0, 0.2, 20), score),
        _row(SetKey(CONTROL, "uniform noise"), Value(123456789.0, 4000.0, 20), missing("images without prompts")),
    ]
    return build_results(rows, _measures(), {"chain": "roi-cubic-2"}, sensitivity=SENSITIVITY)


def _sets() -> list[ImageSet]:
    def images(key: SetKey, grey: int) -> ImageSet:
        records = [ImageRecord(f"{key.kind}{i}", f"prompt <{i}>") for i in range(3)]
        return ImageSet(key, records, [torch.full((3, 8, 8), grey, dtype=torch.uint8)] * 3)

    return [images(REAL_KEY, 7), images(KEYS[0], 50), images(KEYS[1], 90)]


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lpips(name: str) -> str:
        if name == "lpips":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("nodule_plugin.report.results.version", no_lpips)
    software = build_results([], [], {})["software"]
    assert "lpips" not in software
    assert software["torch"] == "1.0"


def test_metrics_json_has_stable_keys_and_plain_types() -> None:
    results = json.loads(json.dumps(_results()))
    assert set(results) == {
        *(
            "format",
            "version",
            "created",
            "notice",
            "attribution",
            "software",
            "settings",
            "measures",
            "reference",
            "seen_in_training",
            "not_held_out",
            "warnings",
            "rows",
            "studies",
            "sweep",
            "best",
            "lights",
            "verdict",
        )
    }
    assert results["studies"] == NO_STUDIES
    assert "interval" in results["measures"][0]
    assert [row["ceiling"] for row in results["rows"]] == [False, False, False, False, True]
    assert results["measures"][0]["unavailable"] == "no weights given"
    row = results["rows"][2]
    assert (row["kind"], row["model"], row["guidance_scale"], row["images"]) == (GENERATED, "tiny", 5.0, 20)
    assert row["values"]["kd_tiny"]["ci95"] == pytest.approx([0.5 - 0.196, 0.5 + 0.196], abs=1e-3)
    assert row["values"]["fid"] == {
        **{"value": None, "standard_error": None, "ci95": None, "count": 0, "reason": "no weights given"}
    }


def test_tables_hold_only_what_was_computed() -> None:
    (table,) = tables(_results())
    assert table.headings == ["Set", "Guidance scale", "KD (tiny nodule encoder) ↓", "Tiny CLIPScore ↑", "Images"]
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["real images", "–", "–", "0.200 [0.180, 0.220]", "20"]
    assert rows[2] == ["tiny", "5", "0.50 [0.30, 0.70]", "0.200 [0.180, 0.220]", "20"]
    assert [row[0].partition(":")[0] for row in rows] == ["real images", "floor", "tiny", "tiny", "ceiling"]
    assert (table.rows[4][3].text, table.rows[4][3].note) == ("–", "a")
    assert table.notes == {"a": "images without prompts"}  # "compared with itself" needs no note


def test_one_line_says_what_else_could_be_computed() -> None:
    results = _results()
    assert more_sentence(results) == "Settings that give more: FID with inception_weights."
    for row in results["rows"]:
        row["values"]["clip_score_tiny"] = missing("images without prompts").to_dict()
    assert more_sentence(results) == (
        "Settings that give more: FID with inception_weights. "
        "No number of the generated images: Tiny CLIPScore (images without prompts)."
    )


def test_stand_ins_are_never_called_by_the_published_names() -> None:
    stand_ins = markdown(_results()).split("## Stand-in metrics")[1]
    assert "must not be set beside published numbers" in stand_ins
    header = next(line for line in stand_ins.splitlines() if line.startswith("| Set"))
    assert not re.search(r"\| (FID|KID|LPIPS|CLIPScore|BioCLIPScore)\b", header)


def test_the_verdict_has_three_sentences() -> None:
    first, second, third = _results()["verdict"]
    assert first == (
        "Of 2 generated sets tiny at guidance scale 5 is closest to the real images: it has KD (tiny nodule encoder) "
        "0.50 [0.30, 0.70], two halves of the real images have 0.10 [0.00, 0.20] (not to be set beside published FID "
        "or KID)."
    )
    assert second.startswith("Beside real images it is not judged in distance, findings followed, ")
    assert third.startswith("What no measure computed here is known to see: ")


def test_patients_of_the_training_are_said_to_be_no_test() -> None:
    results = build_results([_row(REAL_KEY, Value(0.1, 0.05, 10), Value(0.2, 0.01, 20))], _measures(), {}, False, 7)
    assert results["warnings"][0].startswith("7 of the real images are of patients that the bundle's small models")


def test_reference_images_of_training_patients_are_said_to_prove_nothing() -> None:
    rows = [_row(REAL_KEY, Value(0.1, 0.05, 10), Value(0.2, 0.01, 20))]
    warnings = build_results(rows, _measures(), {}, not_held_out=3)["warnings"]
    assert warnings[0].startswith("3 of the real images are of patients whose images the model was trained on")


def test_few_images_are_said_to_be_few() -> None:
    value = Value(0.2, 0.01, 4)
    rows = [Row(REAL_KEY, 4, 1, {"fid": value, "kd_tiny": value, "clip_score_tiny": value})]
    assert build_results(rows, _measures(), {})["warnings"][0].startswith("There are only 4 real images")


def test_pictures_of_one_grey_value_are_warned_of_first() -> None:
    noise = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    white[0, 0, 0] = 250
    pictures = [
        ImageSet(KEYS[0], [ImageRecord(str(i)) for i in range(4)], one) for one in ([noise] * 4, [white, noise] * 2)
    ]
    assert flat_warning(pictures[0]) is None
    warning = flat_warning(pictures[1])
    assert warning is not None
    assert warning.startswith("2 of 4 images looked at of tiny at guidance scale 5 are (nearly) one grey value")
    rows = [_row(key, Value(0.1, 0.05, 10), Value(0.2, 0.01, 20)) for key in (REAL_KEY, FLOOR, KEYS[0])]
    assert build_results(rows, _measures(), {}, warnings=[warning])["warnings"][0] == warning


def test_phantoms_are_never_called_real() -> None:
    rows = [_row(key, Value(0.1, 0.05, 10), Value(0.2, 0.01, 20)) for key in (REAL_KEY, FLOOR, KEYS[0])]
    results = build_results(rows, _measures(), {}, phantoms=True)
    assert "phantoms (synthetic CT)" in results["warnings"][0]
    assert [row["model"] for row in results["rows"]] == ["phantoms", "phantoms, half against half", "tiny"]
    assert "real images" not in markdown(results)


@pytest.mark.parametrize(
    ("chain", "learnt", "expected"),
    [
        ("roi-cubic-2", "roi-cubic-2", None),
        (
            "roi-cubic-2",
            None,
            "Reference images are cut by roi-cubic-2; how those were that the model of g learnt from is",
        ),
        (None, "roi-cubic-2", "How the reference images were cut is not known. Part of a distance may come from a"),
    ],
)
def test_a_warning_says_where_the_chain_is_not_recorded(
    chain: str | None, learnt: str | None, expected: str | None
) -> None:
    rows = [_row(key, Value(0.1, 0.05, 10), Value(0.2, 0.01, 20)) for key in (REAL_KEY, FLOOR, KEYS[0])]
    settings = {"chain": chain, "generated": [{"folder": "g", "count": 3, "model": {"chain": learnt}}]}
    warnings = build_results(rows, _measures(), settings)["warnings"]
    assert [warning.startswith(str(expected)) for warning in warnings] == ([True] if expected else [])


def test_real_images_of_another_kernel_are_neither_floor_nor_ceiling() -> None:
    other = SetKey(CONTROL, "real images, other kernel")
    rows = [_row(key, Value(0.1, 0.05, 10), Value(0.2, 0.01, 20)) for key in (REAL_KEY, FLOOR, KEYS[0], other)]
    results = build_results(rows, _measures(), {}, sensitivity=SENSITIVITY)
    assert [row["control"] for row in results["rows"]] == [None, None, None, "other kernel"]
    assert not results["rows"][3]["ceiling"]
    assert tables(results)[0].rows[3][0].text == "real images, other kernel"


def test_conventions_are_told_once() -> None:
    results = _results()
    for measure, side in zip(results["measures"], (299, 64, 64)):
        measure["convention"] = {"chain": "roi-cubic-2", "bits": 8, "input_size": side}
    page = render_page(results, _sets())
    assert page.count("All images: chain roi-cubic-2; bits 8") == 1
    assert "Tiny CLIPScore (input size 64)" in page


def test_noise_power_is_drawn_where_it_was_measured() -> None:
    curve = {"model": "tiny", "guidance_scale": 3.0, "ci95": [[1.0, 3.0], [0.5, 1.5]]}
    study = {
        "unit": "HU² mm²",
        "frequency_per_mm": [0.1, 0.2],
        "sets": [curve | {"kind": GENERATED, "power": [2.0, 1.0]}, curve | {"kind": REAL, "power": [2.0, 1.0]}],
        "ratio_db": [curve | {"value": [0.0, -1.0]}],
    }
    assert noise_power_panels({"studies": {}, "reference": "real images"}) == {}
    panels = noise_power_panels({"studies": {"noise_power": study}, "reference": "real images"})
    assert list(panels) == ["Noise power", "Noise power against frequency, in dB"]
    assert all(Image.open(io.BytesIO(panel)).width > 400 for panel in panels.values())


def test_verdict_without_any_distance() -> None:
    rows = [_row(KEYS[0], missing("1 real image, 2 needed"), missing("images without prompts"))]
    assert "could be computed" in build_results(rows, _measures(), {})["verdict"][0]


def test_csv_names_the_convention_once() -> None:
    made = {"chain": "roi-cubic-2", "bits": 8}
    results = _results()
    results["measures"] = [
        measure | {"convention": made | {"layer": n}} for n, measure in enumerate(results["measures"])
    ]
    assert csv_text(results).splitlines()[1].endswith(",chain roi-cubic-2; bits 8")


def test_csv_has_numbers_and_blanks() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(_results()))))
    assert lines[2]["kd_tiny"] == "0.5"
    assert lines[2]["kd_tiny_standard_error"] == "0.1"
    assert float(lines[2]["kd_tiny_low"]) == pytest.approx(0.304, abs=1e-3)
    assert lines[2]["fid"] == ""


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (96.3412, 1.83, "96.3 ± 1.8"),
        (0.03812, 0.00123, "0.0381 ± 0.0012"),
        (1.23456, None, "1.235"),
        (538.0, 15.2, "538 ± 15"),
        (13659207.0, 482686.0, "1.37e+07 ± 4.8e+05"),
    ],
)
def test_numbers_carry_the_digits_their_error_allows(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (96.3412, [92.75, 99.93], "96.3 [92.8, 99.9]"),
        (0.03812, [0.036, 0.0405], "0.0381 [0.0360, 0.0405]"),
        (1.0, [0.86, 1.0], "1.00 [0.86, 1.00]"),
        (1.23456, None, "1.23"),
        (1e-16, [-2e-16, 4e-16], "0"),
        (13659207.0, [12.7e6, 14.6e6], "1.37e+07 [1.27e+07, 1.46e+07]"),
    ],
)
def test_numbers_carry_their_interval(value: float, interval: list[float] | None, text: str) -> None:
    assert with_interval(value, interval) == text


def test_shares_are_counts_with_an_interval() -> None:
    rate = {"hits": 3, "count": 72, "share": 3 / 72, "ci95": [0.0087, 0.117]}
    assert rate_text(rate) == "3 of 72 (4.2 % [0.9 %, 11.7 %])".replace(" %", "\N{NO-BREAK SPACE}%")


class _Outline(HTMLParser):
    """What a page is made of, in its order: headings, cells, pictures, columns that can be sorted."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[tuple[int, str]] = []
        self.cells: list[str] = []
        self.alts: list[str | None] = []
        self.sortable = self.values = 0
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.sortable += tag == "table" and "sortable" in (own.get("class") or "")
        self.values += tag == "td" and "data-value" in own
        if tag == "img":
            self.alts.append(own.get("alt"))
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((int(tag[1]), ""))
        if tag == "td":
            self.cells.append("")
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag in ("h1", "h2", "h3", "h4"):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data.strip())
        if self._tag == "td":
            self.cells[-1] += data


def test_page_stands_alone_and_escapes() -> None:
    page = render_page(_results(), _sets())
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script src" not in page
    assert "prompt &lt;0&gt;" in page
    assert "Synthetic images. For research use only; not for diagnosis." in page
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in page
    assert 'name="viewport"' in page
    assert "@media print" in page


def test_the_page_goes_from_the_verdict_to_the_settings() -> None:
    results = _results()
    outline = _Outline(render_page(results, _sets()))
    sections = [text for level, text in outline.headings if level == 2]
    assert sections == ["Verdict", "Pictures", "Curves", "Tables", "How this was made"]
    levels = [level for level, _ in outline.headings]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    warned = build_results([], _measures(), {}, phantoms=True)
    assert [text for _, text in _Outline(render_page(warned, [])).headings[1:3]] == ["Before you read on", "Verdict"]


def test_no_cell_says_that_nothing_was_computed() -> None:
    page = render_page(_results(), _sets())
    outline = _Outline(page)
    assert not [text for text in outline.cells if "computed" in text or "weights" in text]
    assert page.count("FID with inception_weights") == 1
    assert page.count("images without prompts") == 1


def test_tables_can_be_sorted_and_taken_along() -> None:
    results = _results()
    page = render_page(results, _sets())
    outline = _Outline(page)
    assert (outline.sortable, outline.values) == (1, 2 + 4 + 4 + 5)  # scales, distances, scores, numbers of images
    assert "aria-sort" in page
    (encoded,) = re.findall(r'href="data:text/csv;base64,([^"]+)" download="metrics.csv"', page)
    assert base64.b64decode(encoded).decode() == csv_text(results)


def test_every_picture_says_what_it_shows() -> None:
    alts = _Outline(render_page(_results(), _sets(), show_real=True)).alts
    assert all(alts)
    assert "Image 1, 5" in alts
    assert any("KD (tiny nodule encoder)" in str(alt) for alt in alts)


def test_pictures_show_the_ends_of_every_rating() -> None:
    asked = [{"margin": 5, "texture": 5}] * 3 + [{"margin": 5, "texture": 1}, {"margin": 1, "texture": 3}]
    records = [ImageRecord(f"{i}", f"prompt {i}", ratings=codes) for i, codes in enumerate(asked)]
    shown = [(row.title, row.record.id) for row in shown_rows(records)]
    assert shown == [
        ("Margin: poorly defined", "4"),
        ("Margin: sharp", "0"),
        ("Texture: non-solid (ground-glass)", "3"),
        ("Texture: solid", "1"),
    ]
    assert [row.title for row in shown_rows([ImageRecord("a"), ImageRecord("b")])] == ["Image 1", "Image 2"]


@pytest.mark.parametrize("name", ["tiny", "a model whose name goes on and on " * 8, "x" * 300])
def test_the_terminal_table_fits_a_hundred_columns(name: str) -> None:
    results = _results()
    for row in results["rows"]:
        row["model"] = name
    for measure in results["measures"]:
        measure["name"] = f"Distance ({name})"
    for light in results["lights"]:  # as many columns as there can be
        light["candidates"] = light["candidates"] or ["kd_tiny"]
    *lines, last = terminal_text(results, Path("/out/report.html")).splitlines()
    assert last == "Report: /out/report.html"
    assert max(map(len, lines)) <= WIDTH == 100
    assert "5   0.50 ± 0.10 0.200 ± 0.010" in "\n".join(lines)


def test_the_terminal_cuts_no_name() -> None:
    results = _results()
    for number, row in enumerate(results["rows"]):  # which differ at their ends only
        row["model"] = f"stable-diffusion-v1-5 fine-tuned, run {number}"
    for measure in results["measures"]:
        measure["name"] = "Tiny perceptual diversity within a prompt"
    text = terminal_text(results, Path("/out/report.html"))
    table = text[: text.index("\n\n", text.index("-" * 30))]
    assert "…" not in table
    assert re.search(r"Tiny\b.*\n.*perceptual.*\n.*diversity.*\n.*within a.*\n.*prompt", table)
    shown = [row for row in results["rows"] if any(value["value"] is not None for value in row["values"].values())]
    assert sorted(re.findall(r"run (\d+)", table)) == sorted(re.search(r"\d+$", row["model"])[0] for row in shown)


def test_the_terminal_says_of_every_rating_what_its_measures_cannot_see() -> None:
    results = _results()
    for light in results["lights"]:
        light["evidence"] = [
            {**one, "name": f"{one['name']}, {'a long name ' * 9}"} for one in light["evidence"] for _ in range(4)
        ]
    text = " ".join(terminal_text(results, Path("/out/report.html")).split())
    for light in results["lights"]:
        assert " ".join(light_line(light).split()) in text


def test_real_images_are_shown_only_when_asked_for() -> None:
    plain, with_real = (render_page(_results(), _sets(), show_real=show) for show in (False, True))
    assert with_real.count("data:image/png") == plain.count("data:image/png") + 3
    assert (">real</th>" in with_real, ">real</th>" in plain) == (True, False)
    assert ("--show_real true" in with_real, "--show_real true" in plain) == (False, True)


def test_files_are_whole_and_leave_nothing_else(tmp_path: Path) -> None:
    written = write_report(_results(), _sets(), tmp_path / "out")
    names = {"metrics.csv", "metrics.json", "metrics.md", "metrics.png", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names == {path.name for path in written}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["version"] == 3
    assert Image.open(tmp_path / "out" / "metrics.png").width > 400


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(_results(), _sets(), tmp_path / "file")
