"""The page's part that puts nodules into a CT series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.playground.components import HIDDEN, MODEL, Downloads, add_viewer, gr, shown_errors
from nodule_plugin.playground.drawing import read_order
from nodule_plugin.playground.series import DIAMETER_MM, HostSeries, Inserted, Position
from nodule_plugin.playground.viewer import next_job, shown

WINDOW_HU = (-1350.0, 150.0)
_KEPT_SERIES = 5
_NAMES = ("x", "y", "z")


def add_series_tab(page: Any, series: HostSeries, controls: dict[str, Any], template: str) -> None:
    """Slices, a place by click or numbers, and the nodule that the controls describe.

    Args:
        page: Gradio's Blocks.
        series: the host.
        controls: of the nodule, see :func:`nodule_plugin.playground.drawing.read_order`.
        template: that words the findings.
    """
    tools = _add_tools(series)
    viewer, number, diameter, inserted = (
        tools["viewer"],
        tools["number"],
        tools["diameter"],
        gr.State(time_to_live=3600),
    )
    place = [tools[name] for name in _NAMES]
    answer = answers(series, template)
    looks = {"inputs": [number, *place, diameter, inserted], "queue": False, "trigger_mode": "always_last", **HIDDEN}
    gr.on([page.load, number.input, diameter.input], answer["look"], outputs=viewer, **looks)
    gr.on([part.input for part in place], answer["move"], outputs=[number, viewer], **looks)
    viewer.click(answer["click"], outputs=[*place, viewer], **looks)
    given = controls | {name: tools[name] for name in (*_NAMES, "diameter", "source")}
    outputs = [inserted, number, viewer, tools["file"]]

    def insert(**given: Any) -> tuple[Any, ...]:
        *seen, file = answer["insert"](**given)
        return *seen, gr.update(value=file, interactive=True)

    once = {"show_progress_on": number, "trigger_mode": "once", **MODEL}
    tools["insert"].click(insert, inputs_kwargs=given, outputs=outputs, **once)


def _add_tools(series: HostSeries) -> dict[str, Any]:
    names, start = list(series.sources), series.start
    tools: dict[str, Any] = {"viewer": add_viewer("lung", "mediastinum", "free", kind="slices")}
    slices = len(series.hu)
    tools["number"] = gr.Slider(1, slices, series.number(start) + 1, step=1, label="Slice", info="from below")
    with gr.Row():
        for name, value, to in zip(_NAMES, start, ("left", "back", "head")):
            tools[name] = gr.Number(value, label=f"{name}, mm", info=f"to the {to}", min_width=90)
        tools["diameter"] = gr.Number(DIAMETER_MM, label="Diameter, mm", info="in a slice", minimum=1, min_width=90)
    tools["source"] = gr.Radio(names, value=names[0], label="Pixels", visible=len(names) > 1)
    tools["insert"] = gr.Button("Insert the nodule", variant="primary", size="md")
    tools["file"] = gr.DownloadButton("Save the DICOM series, masks, report and NIfTI (zip)", interactive=False)
    return tools


def answers(series: HostSeries, template: str) -> dict[str, Callable[..., Any]]:
    """What the tab does, by name. Slices count from 1 here, as readers count."""
    downloads = Downloads(_KEPT_SERIES)

    def picture(number: int, position: Position, diameter: float, inserted: Inserted | None, note: str) -> Any:
        images = series.images(number - 1, position, diameter, inserted)
        return shown(next_job(), WINDOW_HU, images, note)

    def look(number: int, x: Any, y: Any, z: Any, diameter: Any, inserted: Inserted | None) -> Any:
        with shown_errors():
            place, size = _where(x, y, z), _above_zero(diameter)
            return picture(number, place, size, inserted, "Click a place in a lung, or press Enter on it.")

    def move(number: int, x: Any, y: Any, z: Any, diameter: Any, inserted: Inserted | None) -> tuple[int, Any]:
        with shown_errors():
            number = series.number(_where(x, y, z)) + 1
        return number, look(number, x, y, z, diameter, inserted)

    def click(
        number: int, x: Any, y: Any, z: Any, diameter: Any, inserted: Inserted | None, event: gr.EventData
    ) -> tuple[Any, ...]:
        place = series.position(number - 1, event.row, event.column)
        return *place, look(number, *place, diameter, inserted)

    def insert(x: Any, y: Any, z: Any, diameter: Any, source: str, **given: Any) -> tuple[Inserted, int, Any, str]:
        with shown_errors():
            order, place, size = read_order(template, **given), _where(x, y, z), _above_zero(diameter)
            made: list[Inserted] = []

            def write(folder: Path) -> Path:
                made.append(series.insert(order, place, size, source, folder))
                return made[0].packed

            file = downloads.pack("synthetic-insertion-", write)
        nodule = made[0].nodule
        note = f"{nodule['measured_diameter_mm']:.1f} mm, {nodule['measured_volume_mm3']:.0f} mm3: {nodule['prompt']}"
        number = made[0].middle + 1
        return made[0], number, picture(number, place, size, made[0], note), file

    return {"look": look, "move": move, "click": click, "insert": insert}


def _where(*place: Any) -> Position:
    if None in place:
        raise InputError("position: x, y and z are needed, mm in the patient; click a place in a slice")
    x, y, z = map(float, place)
    return x, y, z


def _above_zero(diameter: Any) -> float:
    if not diameter or diameter <= 0:
        raise InputError("diameter: a number above 0 is needed, mm")
    return float(diameter)
