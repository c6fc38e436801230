from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.diffusion.model import Source
from nodule_plugin.errors import InputError
from nodule_plugin.playground.components import web_file
from nodule_plugin.playground.drawing import START, Order, Studio
from nodule_plugin.playground.page import answers, build_page, check_address, draw, launch_options
from nodule_plugin.playground.static import OWN_FILES

ORDER = Order(START.to_dict(), steps=2, size=16, count=3)
CONTROLS = {
    **{name: START.to_dict()[name] for name in ("sphericity", "margin", "texture", "spiculation", "calcification")},
    **{"by": "findings", "prompt": "", "guidance": 2.0, "seed": 4, "count": 2, "steps": 2, "size": 16, "roi_mm": 20},
    "rating": "margin",
}


def pixels(image: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(image["hu"]), "<i2").reshape(image["rows"], image["columns"])


def test_images_come_one_by_one_in_hounsfield_units(studio: Studio) -> None:
    states = list(draw(studio, ORDER, Order.grid))
    assert [len(viewer["images"]) for viewer, _ in states] == [0, 1, 2, 3]
    assert {viewer["total"] for viewer, _ in states} == {3}
    assert len({viewer["job"] for viewer, _ in states}) == 1
    viewer, drawings = states[-1]
    assert viewer["note"].startswith("3 of 3, ")
    assert [image["caption"] for image in viewer["images"]] == [f"guidance 3, seed {seed}" for seed in range(3)]
    for image, drawing in zip(viewer["images"], drawings):
        np.testing.assert_array_equal(pixels(image), np.rint(unit_to_hu(drawing.unit, studio.window_hu)))


def test_the_findings_that_move_are_said_in_words(studio: Studio) -> None:
    *_, (viewer, drawn) = answers(studio, "reference")["sweep"](**CONTROLS)
    captions = [image["caption"] for image in viewer["images"]]
    assert captions[0] == "margin 1 (poorly defined), guidance 2, seed 4"
    assert captions[4] == "margin 5 (sharp), guidance 2, seed 4"
    assert len(drawn[1]) == 5


def test_all_guidance_scales_are_never_drawn_quickly(quick_source: Source) -> None:
    answer = answers(Studio(quick_source), "reference")
    *_, (viewer, _) = answer["grid"](**CONTROLS, quick=True)
    assert [image["caption"] for image in viewer["images"]] == ["quick, seed 4", "quick, seed 5"]
    *_, (viewer, (order, _)) = answer["guidance_row"](**CONTROLS, quick=True)
    assert [image["caption"] for image in viewer["images"]][:2] == ["guidance 1, seed 4", "guidance 1.5, seed 4"]
    assert not order.quick


def test_a_change_draws_one_image_and_says_its_prompt(studio: Studio) -> None:
    *_, (viewer, _, prompt) = answers(studio, "reference")["one"](**CONTROLS)
    assert len(viewer["images"]) == 1
    assert prompt == "The nodule is nearly round in shape, solid internally, with mostly well-defined margins."
    free = CONTROLS | {"by": "a free prompt", "prompt": " A round nodule.\n"}
    *_, (_, _, prompt) = answers(studio, "reference")["one"](**free)
    assert prompt == "A round nodule."


@pytest.mark.parametrize("name", [*OWN_FILES, "page.css"])
def test_the_pages_name_no_other_server(name: str) -> None:
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"^\s*//.*$|\s// .*$", "", web_file(name), flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "port: a whole number from 1 to 65535 is needed, not 70000"),
        ("127.0.0.1", 0, "port: a whole number from 1 to 65535 is needed, not 0"),
        ("203.0.113.1", None, "host and port: .*; choose another --host or --port"),  # of no machine (RFC 5737)
    ],
)
def test_an_address_that_cannot_be_is_refused(host: str, port: int | None, message: str) -> None:
    check_address("127.0.0.1", None)
    with pytest.raises(InputError, match=message):
        check_address(host, port)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match=r"in use.*another --host or"):
        check_address("127.0.0.1", taken.getsockname()[1])


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    """Of the served page."""
    pytest.importorskip("gradio", reason="gradio (extra playground) is not installed: it needs an older pillow")
    page = build_page(studio)
    _, address, _ = page.launch(**launch_options(), server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield address.rstrip("/")
    page.close()


def test_gradio_serves_the_page(address: str) -> None:
    import httpx

    text = httpx.get(address).text
    assert "createNoduleViewer" in text
    assert "Synthetic images. For research use only" in text
    assert '"analytics_enabled":false' in text
    assert "fonts.googleapis" not in text
    assert httpx.get(f"{address}/gradio_api/info").json()["named_endpoints"] == {}


def test_gradio_takes_no_large_file(address: str) -> None:
    import httpx

    refused = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.bin", bytes(2**21))})
    assert refused.status_code == 413


def test_what_the_visitor_can_mend_is_shown(studio: Studio) -> None:
    gradio = pytest.importorskip(
        "gradio", reason="gradio (extra playground) is not installed: it needs an older pillow"
    )
    with pytest.raises(gradio.Error, match="prompt: a text that is not empty is needed"):
        next(answers(studio, "reference")["grid"](**CONTROLS | {"by": "a free prompt", "prompt": " "}))
