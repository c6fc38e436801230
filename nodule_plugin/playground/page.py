"""The playground's page: Gradio's components, the project's viewer and words, and what happens between them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES
from nodule_plugin.lidc.citation import ATTRIBUTION
from nodule_plugin.playground.components import HIDDEN, MODEL, Downloads, add_viewer, gr, shown_errors, web_file
from nodule_plugin.playground.drawing import (
    FINDINGS,
    FREE_PROMPT,
    MOST_IMAGES,
    MOST_STEPS,
    START,
    START_SEED,
    USUAL_STEPS,
    Drawing,
    Order,
    Studio,
    TrainingImages,
    quick_label,
    read_order,
    sizes,
    worded,
)
from nodule_plugin.playground.viewer import image, next_job, shown
from nodule_plugin.prompts import get_template
from nodule_plugin.settings import whole_number

if TYPE_CHECKING:
    from nodule_plugin.playground.series import HostSeries

TITLE = "Chest CT nodules from findings"
_LARGEST_UPLOAD = "1mb"  # the page takes no file; what is sent all the same may not fill the disk
_KEPT_DOWNLOADS = 20
_READABLE = {  # Gradio's own greys have less contrast than WCAG 2.2 AA asks for
    name + mode: colour
    for name in ("block_info_text_color", "block_title_text_color", "block_label_text_color", "body_text_color_subdued")
    for mode, colour in (("", "*neutral_700"), ("_dark", "*neutral_200"))
} | {
    name + mode: "*primary_700"
    for name in ("button_primary_background_fill", "button_primary_background_fill_hover")
    for mode in ("", "_dark")
}

Asked = Callable[[Order], list[dict[str, Any]]]


def draw(
    studio: Studio, order: Order, asked_for: Asked, training: TrainingImages | None = None
) -> Iterator[tuple[dict[str, Any], list[Drawing]]]:
    """Draw image after image.

    Args:
        studio: that draws.
        order: of the controls.
        asked_for: what of it, such as :meth:`Order.grid`.
        training: to warn of copies.

    Yields:
        What the viewer takes (``web/viewer.js``) and the drawings so far; at first none.

    Raises:
        InputError: see :class:`Order` and :meth:`Studio.draw`.
    """
    requests = asked_for(order)
    job, started = next_job(), time.monotonic()
    images: list[dict[str, Any]] = []
    drawings: list[Drawing] = []

    def state(note: str) -> tuple[dict[str, Any], list[Drawing]]:
        return shown(job, studio.window_hu, images, note, len(requests)), drawings

    yield state(f"Drawing {len(requests)}")
    for drawing in studio.draw(requests, order):
        drawings = [*drawings, drawing]
        images = [*images, _describe(studio, drawing, _caption(drawing.request, requests, order.quick), training)]
        yield state(f"{len(images)} of {len(requests)}, {time.monotonic() - started:.1f} s")


def _caption(request: dict[str, Any], requests: Sequence[dict[str, Any]], quick: bool) -> str:
    """The findings in which the requests differ, guidance and seed."""
    findings = request["findings"] or {}
    moved = [name for name in findings if len({other["findings"][name] for other in requests}) > 1]
    words = [f"{name} {findings[name]} ({SCALES[name].labels[findings[name]]})" for name in moved]
    how = "quick" if quick else f"guidance {request['guidance_scale']:g}"
    return ", ".join([*words, how, f"seed {request['seed']}"])


def _describe(studio: Studio, drawing: Drawing, caption: str, training: TrainingImages | None) -> dict[str, Any]:
    warning = ""
    if training is not None:
        near = training.nearest(drawing)
        caption += f", likeness {near.likeness:.2f} to {near.id}"
        if near.suspicious:
            warning = f"Perhaps a copy: 99 % of held-out images are below {training.threshold:.2f}."
    return image(unit_to_hu(drawing.unit, studio.window_hu), caption, warning)


def serve(
    studio: Studio,
    host: str,
    port: int | None,
    template: str = "reference",
    training: TrainingImages | None = None,
    series: HostSeries | None = None,
) -> None:
    """Serve the page until the process is stopped.

    Args:
        studio, template, training, series: see :func:`build_page`.
        host: address to listen at; only 127.0.0.1 keeps it to this machine.
        port: None for the first free one from 7860 on.

    Raises:
        InputError: if Gradio is missing or the port is taken.
    """
    page = build_page(studio, template, training, series)
    try:
        page.launch(**launch_options(), server_name=host, server_port=port)
    except OSError as error:
        raise InputError(f"port: {error}") from error


def check_address(host: str, port: int | None) -> None:
    """Refuse, before anything is loaded, an address that cannot be listened at.

    Raises:
        InputError: if it is none of this machine's, or the port is taken.
    """
    number = 0 if port is None else whole_number("port", port, most=65535)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), number), family=family).close()
    except OSError as error:
        raise InputError(f"host and port: {error}; choose another --host or --port") from error


def launch_options() -> dict[str, Any]:
    """What ``launch`` needs beside an address: the viewer, and nothing from or to other servers."""
    return {
        "head": f"<script>{web_file('viewer.js')}</script>",
        "css": web_file("page.css"),
        "theme": gr.themes.Default(primary_hue="blue").set(**_READABLE),
        "share": False,
        "ssr_mode": False,
        "max_file_size": _LARGEST_UPLOAD,
        "footer_links": [],
    }


def build_page(
    studio: Studio,
    template: str = "reference",
    training: TrainingImages | None = None,
    series: HostSeries | None = None,
) -> Any:
    """The page.

    Args:
        studio: that draws.
        template: that words the findings.
        training: to warn of copies; None warns of none.
        series: to put nodules into; None has no tab for that.

    Returns:
        Gradio's Blocks, to be launched with :func:`launch_options`.

    Raises:
        InputError: if Gradio is missing, or there is no such template.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{NOTICE}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="images"), gr.Tabs() if series else nullcontext():
                with gr.Tab("Nodules") if series else nullcontext():
                    buttons = _add_buttons(template)
                    viewer, drawn = add_viewer(), gr.State(time_to_live=3600)
                    _add_download(studio, drawn)
                tab = gr.Tab("Into a CT series") if series else None
            with gr.Column(scale=1, min_width=320):
                controls = _add_controls(studio, template)
        if series and tab:
            from nodule_plugin.playground.series_tab import add_series_tab  # which needs highdicom

            with tab:
                add_series_tab(page, series, controls, template)
        gr.Markdown(f"Learnt from {ATTRIBUTION}")
        _connect(page, controls, buttons, [viewer, drawn], answers(studio, template, training))
    return page.queue(default_concurrency_limit=1, max_size=64)


def _add_controls(studio: Studio, template: str) -> dict[str, Any]:
    """Controls by the name of what they say of an :class:`Order`; and ``by``, which says whether the prompt is free."""
    start, side = START.to_dict(), studio.model.image_size
    controls = {"by": gr.Radio([FINDINGS, FREE_PROMPT], value=FINDINGS, label="Describe the nodule by")}
    with gr.Group() as ratings:
        controls |= {name: _rating_control(name, start[name]) for name in worded(template)}
    controls["prompt"] = gr.Textbox(
        get_template(template).render(START), label="Prompt", lines=3, interactive=False, max_length=2000
    )
    quick = studio.quick.distilled if studio.quick else None
    controls["quick"] = gr.Checkbox(bool(quick), label=quick_label(quick), visible=bool(quick))
    slow = {"interactive": not quick}  # what quick drawing does not heed
    controls["guidance"] = gr.Slider(0, 60, studio.model.guidance_scale, step=0.5, label="Guidance scale", **slow)
    controls["seed"] = gr.Number(START_SEED, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    controls["count"] = gr.Slider(1, MOST_IMAGES, 8, step=1, label="Images in a grid", info="seeds counted up")
    with gr.Accordion("Steps and size", open=False):
        controls["steps"] = gr.Slider(5, MOST_STEPS, USUAL_STEPS, step=1, label="Steps", **slow)
        controls["size"] = gr.Dropdown(sizes(side), value=side, label="Pixels a side", info=f"{side} were learnt")
        controls["roi_mm"] = gr.Slider(5, 100, 20, step=1, label="Millimetres a side", info="pixel spacing in files")

    def choose(by: str) -> tuple[Any, Any]:
        return gr.update(visible=by == FINDINGS), gr.update(interactive=by == FREE_PROMPT)

    def hasten(quick: bool) -> list[Any]:
        return [gr.update(interactive=not quick)] * 2

    controls["by"].input(choose, controls["by"], [ratings, controls["prompt"]], queue=False, **HIDDEN)
    heeded = [controls["guidance"], controls["steps"]]
    controls["quick"].input(hasten, controls["quick"], heeded, queue=False, **HIDDEN)
    return controls


def title(rating: str) -> str:
    """A rating's name for readers."""
    return rating.replace("_", " ").capitalize()


def _rating_control(name: str, value: int) -> Any:
    scale = SCALES[name]
    if not scale.ordinal:
        return gr.Dropdown([(label, code) for code, label in scale.labels.items()], value=value, label=title(name))
    words = " · ".join(f"{code} {label}" for code, label in scale.labels.items())
    return gr.Slider(scale.codes[0], scale.codes[-1], value, step=1, label=title(name), info=words)


def _add_buttons(template: str) -> dict[str, Any]:
    names = worded(template)
    with gr.Row():
        grid = gr.Button("Grid of seeds", variant="primary", size="md", min_width=90)
        guidance_row = gr.Button("All guidance scales", size="md", min_width=90)
        stop = gr.Button("Stop", size="md", min_width=60)
    with gr.Row(equal_height=True):
        rating = gr.Dropdown(
            [(title(name), name) for name in names], value=names[0], label="One finding", min_width=120
        )
        sweep = gr.Button("Move it over its scale", size="md", min_width=120)
    return {"grid": grid, "guidance_row": guidance_row, "stop": stop, "rating": rating, "sweep": sweep}


def _connect(
    page: Any, controls: dict[str, Any], buttons: dict[str, Any], outputs: list[Any], answer: dict[str, Any]
) -> None:
    """A button draws many images; any other change stops that, and draws the first."""
    given = controls | {"rating": buttons["rating"]}
    many = [
        buttons[name].click(answer[name], inputs_kwargs=given, outputs=outputs, trigger_mode="once", **MODEL)
        for name in ("grid", "guidance_row", "sweep")
    ]
    prompt = controls["prompt"]
    changes = [control.input for name, control in controls.items() if name not in ("prompt", "count", "roi_mm")]
    gr.on(
        [page.load, prompt.submit, prompt.blur, *changes],
        answer["one"],
        inputs_kwargs=given,
        outputs=[*outputs, prompt],
        trigger_mode="always_last",
        cancels=many,
        **MODEL,
    )
    buttons["stop"].click(None, cancels=many)


def answers(studio: Studio, template: str, training: TrainingImages | None = None) -> dict[str, Callable[..., Any]]:
    """What the page does, by name: each takes what the controls say, by name, and yields the page's outputs."""

    def many(asked_for: Callable[[Order, str], list[dict[str, Any]]], **changed: Any) -> Callable[..., Any]:
        def drawn(rating: str, **given: Any) -> Iterator[tuple[Any, Any]]:
            with shown_errors():
                made = read_order(template, **{**given, **changed})
                for viewer, drawings in draw(studio, made, lambda order: asked_for(order, rating), training):
                    yield viewer, (made, drawings)

        return drawn

    one = many(lambda order, _: order.one())

    def first(**given: Any) -> Iterator[tuple[Any, Any, str]]:
        for viewer, (made, drawings) in one(**given):
            yield viewer, (made, drawings), made.one()[0]["prompt"]

    return {
        "one": first,
        "grid": many(lambda order, _: order.grid()),
        "guidance_row": many(lambda order, _: order.guidance_row(), quick=False),
        "sweep": many(Order.sweep),
    }


def _add_download(studio: Studio, drawn: Any) -> None:
    downloads = Downloads(_KEPT_DOWNLOADS)
    with gr.Accordion("Download", open=False):
        formats = gr.CheckboxGroup(
            [("NIfTI", "nifti"), ("DICOM", "dicom")], value=["nifti"], label="Beside PNG and manifest.json"
        )
        button = gr.Button("Pack the images shown")
        file = gr.File(label="Images with their manifest", interactive=False)

    def pack(given: tuple[Order, list[Drawing]] | None, formats: list[str]) -> str:
        with shown_errors():
            if not given or not given[1]:
                raise InputError("download: there is no image yet; draw one first")
            order, drawings = given
            return downloads.pack("synthetic-nodules-", lambda made: studio.write(drawings, order, formats, made))

    button.click(pack, [drawn, formats], file, api_visibility="private")
