"""Image-prompt pairs as others' training reads them: a folder of images for Hugging Face, or webdataset's shards.

Images leave through the one chain (:mod:`nodule_plugin.data.transforms`), and only with the note of their licence: as a
file beside them, and in every image and shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nodule_plugin.data.datalist import datalist_kernel, load_datalist, read_datalist
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.split import SPLITS
from nodule_plugin.data.transforms import NoduleROId, nodule_transform
from nodule_plugin.data.window import DEFAULT_WINDOW_HU
from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder
from nodule_plugin.settings import whole_number

LICENCE_FILE = "LICENSE"
SPLIT_NAMES = dict(zip(SPLITS, ("train", "validation", "test")))
"""The data list's splits as Hugging Face and webdataset call them."""
SYNTHETIC = "SYNTHETIC CT (phantom), no patient's. For research only, not for diagnosis."
_FIELDS = ("id", "patient_id", "series_instance_uid", "diameter_mm", "roi_mm", "synthetic")
_HUB_LICENCES = {"CC BY 3.0": "cc-by-3.0"}


@dataclass(frozen=True)
class Pair:
    """One image with its words.

    Attributes:
        name: unique in its split, without a dot.
        png: 8-bit grey.
        record: "text" and what else is known of it, of JSON's types.
    """

    name: str
    png: bytes
    record: dict[str, Any]


def export_pairs(
    form: str,
    datalist: str | Path,
    output_dir: str | Path,
    image_size: int = 512,
    window_hu: Sequence[float] = DEFAULT_WINDOW_HU,
    splits: Sequence[str] = SPLITS,
    dataset_dir: str | Path | None = None,
    shard_size: int = 1000,
) -> dict[str, int]:
    """Write the pairs of a data list; as in training, those whose region reaches beyond the image are left out.

    Args:
        form: "imagefolder" or "webdataset".
        datalist: that prepare wrote; it names the licence.
        output_dir: made; it must not hold anything.
        image_size: side of the images, pixels.
        window_hu: Hounsfield units of black and white.
        splits: of the data list.
        dataset_dir: folder of the CT images, where the data list's is not it.
        shard_size: pairs in a shard of webdataset.

    Returns:
        Split -> number of pairs.

    Raises:
        InputError: if a setting makes no sense, the data list names no licence, an image cannot be read, or
            ``output_dir`` holds something or cannot be written.
    """
    if form not in ("imagefolder", "webdataset"):
        raise InputError(f"format: there is no {form!r}; choose imagefolder or webdataset")
    whole_number("shard_size", shard_size)
    content = read_datalist(Path(datalist))
    licence = licence_note(Path(datalist), content)
    transform = nodule_transform(image_size, window_hu, datalist_kernel(datalist))
    counts = {}
    with new_folder(Path(output_dir)) as folder:
        (folder / LICENCE_FILE).write_text(licence, encoding="utf-8")
        for split in dict.fromkeys(splits):
            items = load_datalist(datalist, split, dataset_dir, drop_padded=True)
            pairs = (_pair(number, item, transform, licence) for number, item in enumerate(items))
            if form == "imagefolder":
                _write_images(pairs, folder / SPLIT_NAMES[split])
            else:
                _write_shards(pairs, folder, SPLIT_NAMES[split], shard_size, licence)
            counts[split] = len(items)
        _card(form, content, transform, counts).save(folder / "README.md")
    return counts


def licence_note(file: Path, content: Mapping[str, Any]) -> str:
    """What must go with the images of a data list: its licence and whom to cite.

    Raises:
        InputError: if it names none.
    """
    licence, citation = content.get("licence"), content.get("citation")
    if not isinstance(licence, str) or not licence.strip() or not isinstance(citation, list) or not citation:
        raise InputError(
            f"{file}: it names no licence and citation, and images leave only with them; run prepare again, or add both"
        )
    made = f"{SYNTHETIC}\nTheir outlines and ratings: " if content.get("synthetic") else "Images and findings: "
    return f"{made}{content.get('description', '')} Licence: {licence}. Cite:\n" + "".join(
        f"- {work}\n" for work in citation
    )


def _pair(number: int, item: Mapping[str, Any], transform: NoduleROId, licence: str) -> Pair:
    pixels = to_uint8(transform(item)["image"][None])[0, 0].numpy()
    record = {"text": item["prompt"], **{name: item[name] for name in _FIELDS if name in item}}
    record |= {"findings": item.get("findings", {}), "chain": transform.chain, "window_hu": list(transform.window_hu)}
    notes = PngInfo()
    notes.add_itxt("Copyright", licence)
    if item.get("synthetic"):
        notes.add_text("notice", SYNTHETIC)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notes)
    return Pair(f"{number:06d}", buffer.getvalue(), record)


def _write_images(pairs: Iterator[Pair], folder: Path) -> None:
    """Images beside ``metadata.jsonl``: the layout "imagefolder" of the package datasets."""
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for pair in pairs:
            file = f"{pair.name}.png"
            (folder / file).write_bytes(pair.png)
            lines.write(json.dumps({"file_name": file, **pair.record}) + "\n")


def _write_shards(pairs: Iterator[Pair], folder: Path, split: str, size: int, licence: str) -> None:
    """``SPLIT-000000.tar`` and so on, each with NAME.png, NAME.txt and NAME.json of every pair, and the licence first.

    Equal pairs give equal files. A name without an ending, such as the licence's, is no sample to readers.
    """
    number = 0
    while shard := list(islice(pairs, size)):
        with tarfile.open(folder / f"{split}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            _add(archive, LICENCE_FILE, licence.encode())
            for pair in shard:
                _add(archive, f"{pair.name}.json", json.dumps(pair.record).encode())
                _add(archive, f"{pair.name}.png", pair.png)
                _add(archive, f"{pair.name}.txt", pair.record["text"].encode())
        number += 1


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # time 0, owner 0, rights 0644
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _card(form: str, content: Mapping[str, Any], transform: NoduleROId, counts: Mapping[str, int]) -> DatasetCard:
    licence = content["licence"]
    data = DatasetCardData(
        language="en",
        license=_HUB_LICENCES.get(licence, "other"),
        license_name=None if licence in _HUB_LICENCES else licence.lower().replace(" ", "-"),
        task_categories=["text-to-image"],
        pretty_name="Lung nodules on chest CT with sentences worded from radiologists' ratings",
        tags=["medical", "chest-ct", "lung-nodule", form, *(["synthetic"] if content.get("synthetic") else [])],
    )
    black, white = transform.window_hu
    rows, columns = transform.image_size
    lines = [
        "# Lung nodules on chest CT with sentences worded from radiologists' ratings",
        *([f"**{SYNTHETIC}**"] if content.get("synthetic") else []),
        content.get("description", ""),
        f"{columns} x {rows} pixels, 8-bit grey; black is {black:g} HU and white is {white:g} HU; cut by the chain "
        f"{transform.chain}. Split by patient: {', '.join(f'{SPLIT_NAMES[name]} {counts[name]}' for name in counts)}. "
        f"Wording: {content.get('template', {}).get('name', 'unknown')}.",
        f"Licence: {licence}, see `{LICENCE_FILE}`, which must go wherever these images go. For research only; not for "
        "diagnosis.",
    ]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(line for line in lines if line) + "\n")
