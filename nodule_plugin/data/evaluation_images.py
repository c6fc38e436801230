"""The images of an evaluation: real ones from a data list or a folder, generated sets, and images of mere noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.generated import MANIFEST, GeneratedSet, load_generated
from nodule_plugin.data.image_set import (
    ATTACK,
    CONTROL,
    DOSE,
    GENERATED,
    OTHER_KERNEL,
    REAL,
    TRAINING,
    ImageRecord,
    SetKey,
)
from nodule_plugin.data.nifti import NIFTI, open_nifti, read_voxels
from nodule_plugin.data.picture import PICTURES, picture_kind, read_picture
from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.transforms import DEFAULT_KERNEL, KERNELS, chain_kernel, nodule_transform, resized
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window, hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.files import visible_files
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import TEMPLATES, prompt_to_ratings

Load = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Loads an item: :class:`LoadSetImaged`, or what takes its place."""


def real_items(
    real_dir: str | Path | None = None,
    datalist: str | Path | None = None,
    split: str | Sequence[str] = "test",
    dataset_dir: str | Path | None = None,
    drop_padded: bool | str = True,
    window_hu: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The real images, as items for :class:`LoadSetImaged`.

    Args:
        real_dir: a folder of pictures or NIfTI slices, or one with ``manifest.json`` (which then gives their prompts).
        datalist: a data list instead.
        split: of the data list; several are joined.
        dataset_dir: see :func:`load_datalist`.
        drop_padded: of a data list, leave out nodules whose ROI reaches beyond the image: what fills it is no tissue.
        window_hu: that the images are to be shown in, which a folder's manifest must agree with; None: any.

    Returns:
        Items with ``image``, ``set`` and ``record``.

    Raises:
        InputError: unless exactly one source is given and holds an image.
    """
    if (real_dir is None) == (datalist is None):
        raise InputError("real images: give either real_dir or datalist, and not both")
    key = SetKey(REAL, "real images")
    if real_dir is not None:
        return _folder_items(real_dir, key, window_hu)
    items = _listed_items(str(datalist), split, dataset_dir, drop_padded, key)
    if not items:
        splits = [split] if isinstance(split, str) else list(split)
        raise InputError(f"{datalist}: there is no image in split {' + '.join(splits)}; choose another split")
    return items


def training_items(
    datalist: str | Path | None, dataset_dir: str | Path | None = None, drop_padded: bool | str = True
) -> list[dict[str, Any]]:
    """The training split of a data list, which the model has seen; none where there is no data list.

    Args:
        datalist, dataset_dir, drop_padded: see :func:`real_items`.

    Raises:
        InputError: see :func:`load_datalist`.
    """
    if datalist is None:
        return []
    return _listed_items(str(datalist), "training", dataset_dir, drop_padded, SetKey(TRAINING, "training images"))


def _listed_items(
    datalist: str, split: str | Sequence[str], dataset_dir: str | Path | None, drop_padded: bool | str, key: SetKey
) -> list[dict[str, Any]]:
    splits = [split] if isinstance(split, str) else dict.fromkeys(split)  # named twice, it still counts once
    listed = [item for name in splits for item in load_datalist(datalist, name, dataset_dir, drop_padded)]
    return [item | {"set": key, "record": _listed_record(item)} for item in listed]


def _listed_record(item: Mapping[str, Any]) -> ImageRecord:
    region = roi_bounds(tuple(item["centre"]), tuple(item["spacing"]), item["roi_mm"])
    pixels = math.sqrt((region[1] - region[0]) * (region[3] - region[2]))  # of a scan, all but always square
    return ImageRecord(
        item["id"],
        item["prompt"],
        patient_id=item["patient_id"],
        ratings=item["findings"],
        phantom=item["synthetic"],
        roi_mm=pixels * math.sqrt(math.prod(item["spacing"])),
        native_pixels=pixels,
    )


def generated_items(
    generated_dir: str | Path | Sequence[str | Path],
    chain: str | None = None,
    window_hu: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The images of one generated set or several, as items for :class:`LoadSetImaged`.

    A row of the table is a model (its base model's name, or the folder's where that is not one's alone) and a guidance
    scale.

    Args:
        generated_dir: folder of the set, or several.
        chain: that cuts the real images; None where that is not known.
        window_hu: that the real images are shown in; None where that is not known.

    Raises:
        InputError: if there is no set, one is damaged or shown in another window, or a model learnt from images of
            another chain than the real ones or another model's.
    """
    folders = [generated_dir] if isinstance(generated_dir, (str, Path)) else list(generated_dir)
    if not folders:
        raise InputError("generated_dir: give a folder that inference wrote, or several")
    sets = _load_comparable(folders, chain, window_hu)
    names = [_model_name(generated) for generated in sets]
    items = []
    for generated, name in zip(sets, names):
        model = name if names.count(name) == 1 else f"{name} ({generated.folder.name})"
        for item in generated.items:
            key = SetKey(GENERATED, model, item["guidance_scale"])
            items.append({"image": item["image"], "set": key, "record": _generated_record(item)})
    return items


def _load_comparable(
    folders: Sequence[str | Path], chain: str | None, window_hu: Sequence[float] | None
) -> list[GeneratedSet]:
    """Generated sets, if they have the window, and all whose chain is known have one: the real images', if known."""
    sets = [load_generated(folder) for folder in folders]
    what = "the real ones are"
    for generated in sets:
        window = generated.window_hu
        if generated.manifest is not None and window_hu is not None and window != checked_window(window_hu):
            raise InputError(
                f"{generated.folder}: its black and white are {window} HU, not {checked_window(window_hu)}: grey "
                "values that must not be compared; give the sets' window_hu, and sets of one window"
            )
        if generated.chain is None:
            continue
        if chain is not None and generated.chain != chain:
            raise InputError(
                f"generated_dir: the model of {generated.folder} learnt from images cut by {generated.chain}, {what} "
                f"cut by {chain}: they must not be compared; give resample_kernel, or prepare and train again"
            )
        if chain is None:
            chain, what = generated.chain, f"that of {generated.folder} from images"
    return sets


def study_items(
    kind: str, folder: str | Path | None, chain: str | None = None, window_hu: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """The images of a generated set that answers a question of its own and is no row of the table.

    Args:
        kind: "dose response" or "attack", see :class:`SetKey`.
        folder: of the set; None: there is none.
        chain, window_hu: see :func:`generated_items`.

    Raises:
        InputError: if the set is damaged, of another chain or window, or its manifest does not say what the question
            needs.
    """
    if folder is None:
        return []
    (generated,) = _load_comparable([folder], chain, window_hu)
    needed = {DOSE: ("findings", "seed"), ATTACK: ("source_id",)}[kind]
    for item in generated.items:
        if absent := [name for name in needed if item[name] is None]:
            raise InputError(f"{kind} set {folder}: image {item['id']} has no {absent[0]}; generate it with its config")
    model = _model_name(generated)
    return [
        {
            "image": item["image"],
            "set": SetKey(kind, model, item["guidance_scale"]),
            "record": _generated_record(item),
        }
        for item in generated.items
    ]


def _generated_record(item: Mapping[str, Any]) -> ImageRecord:
    asked = _asked_ratings(item["findings"], item["prompt"])
    return ImageRecord(
        item["id"], item["prompt"], item["source_id"], ratings=asked, seed=item["seed"], roi_mm=item["roi_mm"]
    )


def joined_items(*groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All items of an evaluation in one list, each with its ``index``."""
    return [{**item, "index": index} for index, item in enumerate(item for group in groups for item in group)]


def describe_generated(generated_dir: str | Path | Sequence[str | Path]) -> list[dict[str, Any]]:
    """What the manifests say of the sets as a whole: model, scheduler, steps, software; for the record."""
    folders = [generated_dir] if isinstance(generated_dir, (str, Path)) else list(generated_dir)
    sets = [load_generated(folder) for folder in folders]
    return [
        {"folder": generated.folder.name, "count": len(generated.items)}
        | {name: value for name, value in (generated.manifest or {}).items() if name != "images"}
        for generated in sets
    ]


def other_kernel_items(real: Sequence[Mapping[str, Any]], kernel: str = DEFAULT_KERNEL) -> list[dict[str, Any]]:
    """The real images once more, resampled by another kernel: a row that shows what convention alone would move.

    Args:
        real: see :func:`real_items`. Only regions of a data list can be cut anew.
        kernel: that the real images are resampled by.
    """
    other = next(name for name in KERNELS if name != kernel)
    return [{**item, "set": OTHER_KERNEL, "kernel": other} for item in real if "centre" in item]


def image_convention(
    chain: str | None, window_hu: Sequence[float] = DEFAULT_WINDOW_HU, size: Sequence[int] = (64, 64)
) -> dict[str, str | int]:
    """How all images of an evaluation were made, by name: only numbers of equal conventions may be compared.

    Args:
        chain: that cuts the real images; None where that is not known.
        window_hu: (lower, upper) end of black and white.
        size: (rows, columns) in pixels.
    """
    low, high = checked_window(window_hu)
    return {
        "chain": chain or "not known",
        "kernel": chain_kernel(chain) if chain else "not known",
        "window_hu": f"{low:g} to {high:g}",
        "bits": 8,
        "image_size": _by(size),
    }


def conversions(items: Sequence[Mapping[str, Any]], size: Sequence[int], kernel: str = DEFAULT_KERNEL) -> list[str]:
    """What :class:`LoadSetImaged` with ``one_size`` changes about real and generated pictures, a sentence each.

    Args:
        items: of the evaluation.
        size: (rows, columns) that all images are brought to.
        kernel: that does it.
    """
    files: dict[SetKey, list[str]] = {}
    for item in items:
        if item["set"].kind in (REAL, GENERATED) and str(item["image"]).lower().endswith(PICTURES):
            files.setdefault(item["set"], []).append(item["image"])
    sentences = []
    for key, own in files.items():
        shapes, bits = zip(*map(picture_kind, own))
        which = f"of {len(own)} {key.model if key.kind == REAL else f'images of {key.model}'}"
        if others := [shape for shape in shapes if shape != tuple(size)]:
            sentences.append(
                f"{len(others)} {which} were of another size ({_by(others[0])} pixels) and "
                f"are brought to {_by(size)} by the {kernel} kernel: part of a distance may come from that."
            )
        if deep := sum(number > 8 for number in bits):
            sentences.append(f"{deep} {which} had 16 bits a pixel and are rounded to 8.")
    return sentences


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def noise_items(count: int, size: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """``count`` images of uniform noise: what the distances say of images without any anatomy."""
    key = SetKey(CONTROL, "uniform noise")
    return [
        {
            "image": "",
            "noise_seed": seed + index,
            "size": tuple(size),
            "set": key,
            "record": ImageRecord(f"noise-{index}"),
        }
        for index in range(count)
    ]


def image_size(items: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(rows, columns) of the first picture among ``items``: the size that real regions of interest are brought to."""
    if not items:
        raise InputError("generated images: there is none; generate images first")
    rows, columns = read_picture(items[0]["image"]).shape
    return rows, columns


class LoadSetImaged(Transform):
    """Load an item's image, of whichever kind, as (3, rows, columns) float32 in [-1, 1].

    - of a data list: as :func:`nodule_plugin.data.transforms.nodule_transform` cuts it, by the item's own ``kernel``
      where it has one;
    - a picture: its grey values;
    - a NIfTI file with one slice: Hounsfield units through the window;
    - noise: uniform in [-1, 1].

    Args:
        size: (rows, columns) of regions of interest from a data list.
        window_hu: (lower, upper) end of the window for Hounsfield units.
        kernel: of the resampling.
        one_size: bring pictures and slices to ``size`` too, and refuse those of another shape; else they keep theirs.
    """

    def __init__(
        self,
        size: Sequence[int] = (64, 64),
        window_hu: Sequence[float] = DEFAULT_WINDOW_HU,
        kernel: str = DEFAULT_KERNEL,
        one_size: bool = False,
    ) -> None:
        rows, columns = size
        self.one_size = one_size
        self.size, self.window_hu, self.kernel = (rows, columns), window_hu, kernel
        nodule_transform(self.size, window_hu, kernel)  # refuses senseless settings before the first image

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        image = self._image(data)
        if not torch.isfinite(image).all():
            raise InputError(f"image: {data['image']} has values that are not finite; correct it, or leave it out")
        kept = {name: data[name] for name in ("set", "record", "index") if name in data}
        return {"image": image.expand(3, -1, -1).contiguous(), **kept}

    def _image(self, item: Mapping[Any, Any]) -> Tensor:
        if "noise_seed" in item:
            generator = torch.Generator().manual_seed(item["noise_seed"])
            return torch.rand(1, *item["size"], generator=generator) * 2 - 1
        if "centre" in item:
            return nodule_transform(self.size, self.window_hu, item.get("kernel", self.kernel))(item)["image"]
        if str(item["image"]).lower().endswith(NIFTI):
            unit = hu_to_unit(_read_slice(Path(item["image"])), self.window_hu)
        else:
            unit = read_picture(item["image"])
        if not self.one_size:
            return torch.from_numpy(unit)[None]
        if unit.shape[0] * self.size[1] != unit.shape[1] * self.size[0]:
            raise InputError(
                f"image: {item['image']} has {_by(unit.shape)} pixels, another shape than {_by(self.size)}; cut it so"
            )
        return torch.from_numpy(resized(unit, self.size, self.kernel))[None]


def _folder_items(folder: str | Path, key: SetKey, window_hu: Sequence[float] | None) -> list[dict[str, Any]]:
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InputError(f"real images: there is no folder {folder}; correct real_dir")
    if (root / MANIFEST).is_file():
        return [
            {"image": item["image"], "set": key, "record": ImageRecord(item["id"], item["prompt"])}
            for item in _load_comparable([root], None, window_hu)[0].items
        ]
    files = [path for path in visible_files(root) if path.name.lower().endswith((*PICTURES, *NIFTI))]
    if not files:
        raise InputError(f"real images: {root} holds no image ({', '.join((*PICTURES, *NIFTI))}); correct real_dir")
    return [{"image": str(file), "set": key, "record": _file_record(file)} for file in files]


def _file_record(file: Path) -> ImageRecord:
    """Of an image of which only the file is known. A slice in HU says how large it is."""
    name = file.name.split(".")[0]
    if file.name.lower().endswith(NIFTI):
        image = open_nifti(file)
        pixels = image.shape[0]
        return ImageRecord(name, roi_mm=pixels * float(image.header.get_zooms()[0]), native_pixels=pixels)
    return ImageRecord(name, native_pixels=picture_kind(file)[0][1])


def _asked_ratings(findings: Mapping[str, int] | None, prompt: str | None) -> dict[str, int]:
    """The ratings that a generated image's prompt asks for.

    Findings come with lobulation and malignancy, but not every template words these: what is not in the prompt cannot
    be followed. Of a prompt in words of its own, all findings given with it count.
    """
    if findings is None:
        return _stated_ratings(prompt)
    given = Findings.from_dict(findings)
    for template in TEMPLATES.values():
        if template.render(given) == prompt:
            worded = {"sphericity", "texture", "margin", *template.remarks}
            return {name: code for name, code in given.to_dict().items() if name in worded}
    return given.to_dict()


def _stated_ratings(prompt: str | None) -> dict[str, int]:
    """What a prompt in one of the templates' wordings says; nothing of a prompt in words of its own."""
    for template in TEMPLATES:
        try:
            return prompt_to_ratings(prompt or "", template)
        except InputError:
            continue
    return {}


def _model_name(generated: GeneratedSet) -> str:
    if generated.manifest is None:
        return generated.folder.name
    return Path(str(generated.manifest["model"].get("base_model") or generated.folder.name)).name


def _read_slice(path: Path) -> np.ndarray:
    slices = read_voxels(path)
    if slices.ndim not in (2, 3) or (slices.ndim == 3 and slices.shape[2] != 1):
        raise InputError(
            f"image: {path} has shape {slices.shape}; one slice is needed, (columns, rows) or with a third 1"
        )
    return slices.reshape(slices.shape[:2]).T
