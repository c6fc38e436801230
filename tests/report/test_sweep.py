from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.report.figures import _compress, _spread_out, sweep_panels
from nodule_plugin.report.sweep import PAPER, guidance_sweep


def _value(value: float | None) -> dict[str, Any]:
    return {"value": value, "ci95": None if value is None else [value - 0.1, value + 0.1]}


def _row(kind: str, scale: float | None, fidelity: float | None, alignment: float, diversity: float) -> dict[str, Any]:
    values = {"kd_tiny": _value(fidelity), "clip_score_tiny": _value(alignment), "diversity_tiny": _value(diversity)}
    return {"kind": kind, "floor": False, "model": "tiny", "guidance_scale": scale, "values": values}


def _results(*rows: dict[str, Any]) -> dict[str, Any]:
    measures = [
        {"key": key, "name": key, "better": better}
        for key, better in (("kd_tiny", "lower"), ("clip_score_tiny", "higher"), ("diversity_tiny", "near real"))
    ]
    results = {"measures": measures, "rows": [_row(REAL, None, None, 0.3, 5.0), *rows]}
    return results | {"sweep": guidance_sweep(results)}


def test_the_pareto_set_is_what_no_other_scale_beats() -> None:
    rows = [
        _row(GENERATED, 1.0, 1.0, 0.1, 5.0),  # nearest, most diverse
        _row(GENERATED, 5.0, 2.0, 0.3, 4.0),  # best aligned
        _row(GENERATED, 10.0, 3.0, 0.2, 3.0),  # beaten by 5
        _row(GENERATED, 20.0, 2.0, 0.3, 6.5),  # beaten by 5: further from the real images' diversity
    ]
    sweep = _results(*rows)["sweep"]
    assert [point["pareto"] for point in sweep["points"]] == [True, True, False, False]
    assert (sweep["fidelity"], sweep["alignment"], sweep["diversity"]) == (
        "kd_tiny",
        "clip_score_tiny",
        "diversity_tiny",
    )
    assert sweep["points"][0]["fidelity"] == {"value": 1.0, "ci95": [0.9, 1.1]}


def test_curves_are_drawn_for_a_sweep_only() -> None:
    rows = [_row(GENERATED, scale, scale, 0.1, 5.0) for scale in (1.0, 5.0)]
    assert set(sweep_panels(_results(*rows))) == {
        "Fidelity against alignment",
        "Fidelity against diversity",
        "Alignment against diversity",
    }
    assert sweep_panels(_results(rows[0])) == {}


@pytest.mark.parametrize("rows", [[], [_row(GENERATED, 1.0, None, 0.1, 5.0), _row(GENERATED, 5.0, None, 0.1, 5.0)]])
def test_without_two_complete_scales_there_is_no_sweep(rows: list[dict[str, Any]]) -> None:
    assert _results(*rows)["sweep"] is None


def test_the_papers_numbers_are_labelled_as_its_own() -> None:
    assert "Urata" in str(PAPER["source"])
    by_model = {row["model"]: dict(zip(PAPER["columns"], row["values"])) for row in PAPER["rows"]}
    assert by_model["real images"]["BioCLIPScore"] == 0.84
    assert by_model["Stable Diffusion 2.0"] == {
        "FID": 96.34,
        "KID": 0.038,
        "LPIPS": 0.441,
        "CLIPScore": 0.663,
        "BioCLIPScore": 0.87,
    }


@pytest.mark.parametrize(
    ("scales", "kind"), [({1.0, 1.5, 60.0}, "log"), ({5.0, 20.0, 50.0}, "linear"), ({0.0, 60.0}, "linear")]
)
def test_guidance_scales_over_more_than_a_decade_are_spread_out(scales: set[float], kind: str) -> None:
    axis = Figure().subplots()
    _spread_out(axis, scales)
    assert axis.get_xscale() == kind
    if kind == "log":
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "1.5", "60"]


@pytest.mark.parametrize(
    ("values", "kind"), [([0.05, -0.01, 300.0], "symlog"), ([0.2, 0.3], "linear"), ([-0.1, 0.0], "linear")]
)
def test_distances_of_which_one_dwarfs_the_others_are_compressed(values: list[float], kind: str) -> None:
    axis = Figure().subplots()
    _compress(axis, values)
    assert axis.get_yscale() == kind
