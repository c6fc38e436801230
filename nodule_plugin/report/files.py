"""The files of an evaluation, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.files import write_files
from nodule_plugin.report.figures import guidance_figure
from nodule_plugin.report.page import render_page
from nodule_plugin.report.tables import csv_text, markdown


def write_report(
    results: Mapping[str, Any], sets: Sequence[ImageSet], folder: Path, show_real: bool = False
) -> list[Path]:
    """Write ``metrics.json``, ``.csv``, ``.md``, ``.png`` (where there is a figure) and ``report.html``.

    Args:
        results: as :func:`nodule_plugin.report.results.build_results` makes them.
        sets: the images, for the page's samples.
        folder: made if absent; older files of these names are replaced.
        show_real: show real images on the page.

    Returns:
        The files, ``metrics.json`` last.

    Raises:
        InputError: if the folder cannot be written.
    """
    figure = guidance_figure(results)
    contents = {
        "metrics.csv": csv_text(results).encode(),
        "metrics.md": markdown(results).encode(),
        "report.html": render_page(results, sets, show_real).encode(),
    }
    if figure is not None:
        contents["metrics.png"] = figure
    contents["metrics.json"] = (json.dumps(results, indent=4, ensure_ascii=False, default=str) + "\n").encode()
    written = write_files(contents, folder)
    if figure is None:
        (folder / "metrics.png").unlink(missing_ok=True)
    return written
