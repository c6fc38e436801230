"""Generated sets: a folder of images and ``manifest.json``, which says what made each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodule_plugin.data.entries import check_numbers, file_below, file_safe_id
from nodule_plugin.data.picture import PICTURES
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json, visible_files

FORMAT = "nodule-plugin generated set"
VERSION = 1
MANIFEST = "manifest.json"
NOTICE = "Synthetic images. For research use only; not for diagnosis."
FILE_FIELDS = ("image", "nifti", "dicom", "dicom_report")
"""The fields of an item that name files, relative to the set's folder; all but the first may be missing or None."""
_IMAGE_FIELDS = ("id", "image", "prompt", "findings", "guidance_scale", "seed", "roi_mm", "source_id")
_UNKNOWN: dict[str, Any] = dict.fromkeys((*_IMAGE_FIELDS, *FILE_FIELDS, "size", "spacing_mm"))
_FIELDS = ("synthetic", "window_hu", "model", "scheduler", "num_inference_steps", "images")


@dataclass(frozen=True)
class GeneratedSet:
    """A folder of images.

    Attributes:
        folder: where they lie.
        manifest: the content of ``manifest.json``; None for a plain folder of pictures, or one whose ``manifest.json``
            has no "format" and merely lists its images.
        items: one dictionary per image, as the manifest lists them, the files as absolute paths (str);
            of a plain folder's items only ``id`` and ``image`` are known, the rest is None.
    """

    folder: Path
    manifest: dict[str, Any] | None
    items: list[dict[str, Any]]

    @property
    def window_hu(self) -> tuple[float, float]:
        """Hounsfield units of black and white; the default window for a plain folder."""
        lower, upper = self.manifest["window_hu"] if self.manifest else DEFAULT_WINDOW_HU
        return float(lower), float(upper)

    @property
    def chain(self) -> str | None:
        """How the images were cut that the model learnt from; None where the manifest does not say."""
        return self.manifest["model"].get("chain") if self.manifest else None

    @property
    def guidance_scales(self) -> list[float]:
        """The different guidance scales, ascending; empty for a plain folder."""
        return sorted({item["guidance_scale"] for item in self.items if item["guidance_scale"] is not None})

    def at_scale(self, guidance_scale: float) -> list[dict[str, Any]]:
        """The items generated at that guidance scale."""
        return [item for item in self.items if item["guidance_scale"] == guidance_scale]


def load_generated(folder: str | Path) -> GeneratedSet:
    """A generated set, or a plain folder of pictures.

    Args:
        folder: with ``manifest.json``, or with pictures and without it. Somebody else's set needs no more than
            ``{"images": [{"image": "a.png", "prompt": "..."}, ...]}``, with ``guidance_scale`` where there is one.

    Raises:
        InputError: if the folder or a file that the manifest lists is missing, or the manifest is damaged.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InputError(f"generated set: there is no folder {folder}; generate images first, or correct the path")
    if (root / MANIFEST).is_file():
        return _load_manifest(root)
    pictures = [path for path in visible_files(root) if path.suffix.lower() in PICTURES]
    if not pictures:
        raise InputError(f"generated set: {root} holds neither {MANIFEST} nor a picture ({', '.join(PICTURES)})")
    return GeneratedSet(root, None, [{**_UNKNOWN, "id": path.stem, "image": str(path)} for path in pictures])


def _load_manifest(root: Path) -> GeneratedSet:
    path = root / MANIFEST
    manifest = read_json(path, "generate the set again")
    if isinstance(manifest, dict) and "format" not in manifest and "images" in manifest:
        return GeneratedSet(root, None, _listed_items(root, manifest["images"]))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: field 'format' must be {FORMAT!r}; this is another kind of file")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path}: version {manifest.get('version')!r} is not {VERSION}, the one this release reads")
    _require(path, manifest, _FIELDS)
    checked_window(manifest["window_hu"], f"{path}: window_hu")
    if not isinstance(manifest["model"], dict):
        raise InputError(f"{path}: field 'model': an object is needed, not {manifest['model']!r}")
    if not isinstance(manifest["images"], list) or not manifest["images"]:
        raise InputError(f"{path}: field 'images' lists no image")
    items = [_checked_item(root, f"{path}: images[{index}]", item) for index, item in enumerate(manifest["images"])]
    return GeneratedSet(root, manifest, items)


def _listed_items(root: Path, images: Any) -> list[dict[str, Any]]:
    """Of a manifest in no format of ours: picture and, where they are given, prompt and guidance scale."""
    path = root / MANIFEST
    if not isinstance(images, list) or not images:
        raise InputError(f"{path}: field 'images' lists no image")
    items = []
    for index, item in enumerate(images):
        where = f"{path}: images[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("image"), str):
            raise InputError(f"{where}: an object with the field 'image', a file's name, is needed, not {item!r}")
        known = {"prompt": item.get("prompt"), "guidance_scale": item.get("guidance_scale")}
        for name, kind in (("prompt", str), ("guidance_scale", (int, float))):
            if known[name] is not None and not isinstance(known[name], kind):
                raise InputError(f"{where}: field {name!r}: {known[name]!r} is of another kind")
        check_numbers(where, known)
        file = file_below(where, "image", root, item["image"])
        items.append({**_UNKNOWN, **known, "id": str(Path(item["image"]).with_suffix("")), "image": str(file)})
    return items


def _require(where: object, content: dict[str, Any], fields: Sequence[str]) -> None:
    if missing := [name for name in fields if name not in content]:
        raise InputError(f"{where}: field {missing[0]!r} is missing; generate the set again")


def _checked_item(root: Path, where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InputError(f"{where}: an object is needed, not {item!r}")
    _require(where, item, _IMAGE_FIELDS)
    file_safe_id(where, item["id"])
    check_numbers(where, item)
    named = [name for name in FILE_FIELDS if item.get(name) is not None]
    return {**item, **{name: str(file_below(where, name, root, item[name])) for name in named}}
