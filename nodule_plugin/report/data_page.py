"""One self-contained HTML page that shows a data list: counts, ratings, prompts, sample images, what was left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nodule_plugin import __version__
from nodule_plugin.data.datalist import datalist_kernel, load_datalist, read_datalist
from nodule_plugin.data.dataset_warnings import dataset_warnings
from nodule_plugin.data.overview import FEW, TRAINING, count_datalist, roi_pixels
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.split import SPLITS
from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.data.window import DEFAULT_WINDOW_HU
from nodule_plugin.errors import InputError
from nodule_plugin.files import write_text_atomically
from nodule_plugin.findings import SCALES
from nodule_plugin.report.html import data_url, png, render
from nodule_plugin.settings import as_flag, whole_number

SAMPLE_PIXELS = 160
PROMPTS_SHOWN = 15
"""Rows of a table of prompts before the rest is folded away."""
_REAL = (
    "Made from real patients' CT: treat this page as you treat the dataset. Keep its licence and citation with it, and "
    "make no attempt to find out who the patients are."
)
_SYNTHETIC = "Synthetic CT (phantoms): no image is a patient's, and no count here is one of patients."


def page_file(page: bool | str | Path | None, datalist: str | Path, samples: int = 0) -> Path | None:
    """Where the page goes; also checks its settings, before minutes are spent on reading a dataset.

    Args:
        page: a path; True for the data list's own with the suffix ``.html``; False or None for no page.
        datalist: the data list.
        samples: images of each split.

    Raises:
        InputError: if the page would take the data list's place, or ``samples`` is not a number.
    """
    whole_number("page_samples", samples, least=0)
    if page is None:
        return None
    name = str(page)
    if name.lower() in ("true", "false"):
        if not as_flag("page", name):
            return None
        file = Path(datalist).with_suffix(".html")
    elif name.endswith(".html"):
        file = Path(name)
    else:
        raise InputError(f"page: true, false or a name that ends in .html is needed, not {name!r}")
    if file.resolve() == Path(datalist).resolve():
        raise InputError(f"page: {file} would take the data list's place; give another name to one of them")
    return file


def write_data_page(
    datalist: str | Path,
    page: bool | str | Path | None = True,
    samples: int = 6,
    seed: int = 0,
    dataset_dir: str | Path | None = None,
) -> Path | None:
    """Write the page of a data list, whole or not at all; an older one does not outlive a failure.

    Args:
        datalist: file that :func:`nodule_plugin.data.datalist.write_datalist` wrote.
        page: see :func:`page_file`.
        samples: images of each split.
        seed: of their choice; the same data list and seed give the same page.
        dataset_dir: folder of the images; by default the one that the data list was made from.

    Returns:
        The page, or None where none was wanted.

    Raises:
        InputError: if the data list or an image cannot be read, or the page cannot be written.
    """
    whole_number("page_seed", seed, least=0)
    file = page_file(page, datalist, samples)
    if file is None:
        return None
    try:
        file.unlink(missing_ok=True)
        write_text_atomically(file, render_data_page(Path(datalist), samples, seed, dataset_dir))
    except InputError as error:
        raise InputError(f"page {file}: not written; the data list {datalist} stands: {error}") from error
    except OSError as error:
        raise InputError(
            f"page {file}: cannot be written ({error.strerror}); the data list {datalist} stands; give another path as"
            " page, or false for none"
        ) from error
    return file


def render_data_page(datalist: Path, samples: int, seed: int, dataset_dir: str | Path | None = None) -> str:
    """The page as HTML text; see :func:`write_data_page`."""
    content = read_datalist(datalist)
    try:
        items = {split: load_datalist(datalist, split, dataset_dir) for split in SPLITS}
        overview = count_datalist(content)
        everything = [item for split in SPLITS for item in items[split]]
        return render(
            "data.html",
            content=content,
            splits=SPLITS,
            training=TRAINING,
            overview=overview,
            warnings=dataset_warnings(content, overview),
            notice=_SYNTHETIC if all(item["synthetic"] for item in everything) else _REAL,
            samples={split: _figures(items[split], samples, seed, datalist_kernel(datalist)) for split in SPLITS},
            settings=_settings(content),
            window_hu=DEFAULT_WINDOW_HU,
            few=FEW,
            shown=PROMPTS_SHOWN,
            file=datalist.name,
            sha256=hashlib.sha256(datalist.read_bytes()).hexdigest(),
            version=__version__,
        )
    except KeyError as error:
        raise InputError(f"{datalist}: the field {error} is missing; run prepare again") from error


def choose_samples(items: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """Draw items at random, those with a prompt of their own first, in the data list's order."""
    order = np.random.default_rng(seed).permutation(len(items))
    first_of_prompt: dict[str, int] = {}
    for index in order:
        first_of_prompt.setdefault(items[index]["prompt"], index)
    drawn = dict.fromkeys([*first_of_prompt.values(), *order])
    return [items[index] for index in sorted([*drawn][:count])]


def _figures(items: Sequence[Mapping[str, Any]], count: int, seed: int, kernel: str) -> list[dict[str, Any]]:
    return [
        {
            "picture": data_url(png(_picture(item, kernel))),
            "prompt": item["prompt"],
            "id": item["id"],
            "synthetic": item["synthetic"],
            "facts": _facts(item),
        }
        for item in choose_samples(items, count, seed)
    ]


def _picture(item: Mapping[str, Any], kernel: str) -> Image.Image:
    """An item's image as training and evaluation see it, at the size of the page."""
    image = nodule_transform(SAMPLE_PIXELS, kernel=kernel)(item)["image"]
    return Image.fromarray(to_uint8(image[None])[0, 0].numpy())


def _facts(item: Mapping[str, Any]) -> str:
    facts = [f"{item['diameter_mm']:.1f} mm", f"ROI {item['roi_mm']:.0f} mm, {roi_pixels(item)} pixels"]
    facts.append(f"{item['readers']} reader{'' if item['readers'] == 1 else 's'}")
    if malignancy := item["findings"].get("malignancy"):
        facts.append(f"malignancy {SCALES['malignancy'].labels[malignancy]}")
    if item["padding"]:
        facts.append(f"{item['padding']:.0%} beyond the image: not used in training")
    return ", ".join(facts)


def _settings(content: Mapping[str, Any]) -> dict[str, str]:
    limits = content["selection"]
    split = content["split"]
    return {
        "source": content["source"],
        "folder": content["dataset_dir"],
        "consensus of readers": content["consensus"],
        "selection": ", ".join(f"{name} {limit:g}" for name, limit in limits.items()) or "all",
        "template": f"{content['template']['name']}, version {content['template']['version']}",
        "split": f"{' : '.join(map(str, split['ratios']))} by patient, malignancy spread evenly, seed {split['seed']}",
        "pixels": content.get("chain") or "not recorded",
        "nodule-plugin": __version__,
    }
