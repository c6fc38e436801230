"""Gradio, and what all parts of the page have in common."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.extras import Extra

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
gr: Any = Extra("gradio", "playground")

MODEL: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal", "api_visibility": "private"}
"""Of events that draw: one at a time, whoever asks."""
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events that only look."""


def web_file(name: str) -> str:
    """The text of a file that both pages use."""
    return files(__package__).joinpath("web", name).read_text(encoding="utf-8")


def add_viewer(*windows: str, kind: str = "") -> Any:
    """The viewer of ``web/viewer.js``; its event ``click`` has the row and column of a place.

    Args:
        windows: that it offers; none for all.
        kind: a class of the element, for the style sheet.
    """
    return gr.HTML(
        html_template=f'<div class="viewer {kind}"></div>',
        css_template=web_file("viewer.css"),
        js_on_load=f"""
const root = element.querySelector(".viewer");
const viewer = createNoduleViewer(root, {list(windows) or "undefined"});
const show = () => props.value && viewer.show(props.value);
root.addEventListener("place", ({{ detail }}) => trigger("click", detail));
watch("value", show);
show();
""",
    )


@contextmanager
def shown_errors() -> Iterator[None]:
    """What the visitor can mend, as the page shows it."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error


class Downloads:
    """Zips for visitors, in a folder of their own, which goes when the program ends.

    Args:
        most: that are kept; older ones are deleted.
    """

    def __init__(self, most: int) -> None:
        self._kept, self._most = tempfile.TemporaryDirectory(prefix="nodule-playground-"), most
        self._folder = Path(self._kept.name)

    def pack(self, prefix: str, write: Callable[[Path], Path]) -> str:
        """The path of what ``write`` makes of an empty folder, which is deleted then."""
        for old in sorted(self._folder.glob("*.zip"), key=lambda path: path.stat().st_mtime)[: 1 - self._most or None]:
            old.unlink(missing_ok=True)
        made = Path(tempfile.mkdtemp(dir=self._folder, prefix=prefix))
        try:
            return str(write(made))
        finally:
            shutil.rmtree(made)
