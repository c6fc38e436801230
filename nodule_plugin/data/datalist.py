"""The data list: one JSON file, in the Medical Segmentation Decathlon's form, that says what each image-prompt pair is.

No pixels are copied: an item names the file, where in it the nodule lies, and what its findings are.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodule_plugin.data.entries import check_numbers, file_below, readable_id
from nodule_plugin.data.nodule import Nodule, NoduleSet
from nodule_plugin.data.roi import padding_fraction, roi_bounds
from nodule_plugin.data.split import SPLITS, check_ratios, split_by_patient
from nodule_plugin.data.transforms import DEFAULT_KERNEL, chain_id, chain_kernel
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json, write_json
from nodule_plugin.findings import check_rating
from nodule_plugin.lidc.citation import CITATION, LICENCE
from nodule_plugin.lidc.selection import Selection
from nodule_plugin.prompts import PromptTemplate, get_template
from nodule_plugin.settings import as_flag

_logger = logging.getLogger(__name__)

ROI_DIAMETERS = 2.0
"""Side of the ROI in diameters of the nodule, as in the reference method."""
_DESCRIPTIONS = {
    "lidc-idri": "Image-prompt pairs of lung nodules from CT series of LIDC-IDRI.",
    "crops": "Image-prompt pairs of lung nodules from a folder of CT crops derived from LIDC-IDRI.",
    "phantom": "Image-prompt pairs of synthetic lung nodules drawn around annotations of LIDC-IDRI. No patient's CT.",
}
_HEAD: dict[str, type] = dict.fromkeys(("name", "description", "licence", "source", "chain"), str)
_HEAD |= {"citation": list, "template": dict, "selection": dict, "split": dict, "skipped": list, "doubts": list}
_HEAD |= {"synthetic": bool}
_KINDS = {str: "text", list: "list", dict: "object", bool: "true or false"}
_ITEM_FIELDS = ("id", "image", "slice_index", "centre", "spacing", "diameter_mm", "roi_mm", "padding", "prompt")


def build_datalist(
    nodules: NoduleSet,
    template: str = "reference",
    ratios: Sequence[int] = (7, 2, 1),
    seed: int = 0,
    selection: Selection | None = None,
    kernel: str = DEFAULT_KERNEL,
) -> dict[str, Any]:
    """The content of a data list.

    Args:
        nodules: at least one.
        template: wording of the prompts, a name in :data:`nodule_plugin.prompts.TEMPLATES`.
        ratios: of training, validation and test, see :func:`split_by_patient`.
        seed: of the split.
        selection: the limits that the nodules were chosen by, for the record.
        kernel: of the resampling, a name in :data:`nodule_plugin.data.transforms.KERNELS`; what reads the data list
            cuts its images so.

    Returns:
        A JSON-serialisable dictionary, the same for the same nodules and settings.

    Raises:
        InputError: if a setting makes no sense or there is no nodule.
    """
    wording = check_settings(template, ratios, kernel)
    if not nodules.nodules:
        raise InputError(f"{nodules.root}: there is no nodule to list; give another folder or loosen the selection")
    repeated = [key for key, count in Counter(nodule.id for nodule in nodules.nodules).items() if count > 1]
    if repeated:
        raise InputError(f"{nodules.root}: two nodules have the id {repeated[0]!r}; ids must be unique")
    splits = split_by_patient(nodules.nodules, ratios, seed)
    for split in SPLITS:
        if not splits[split]:
            _logger.warning("the %s split is empty: too few patients for the ratios %s", split, list(ratios))
    items = {split: [_item(nodule, nodules.root, wording) for nodule in splits[split]] for split in SPLITS}
    return {
        "name": f"nodule-plugin {nodules.source}",
        "description": _DESCRIPTIONS[nodules.source],
        "licence": LICENCE,
        "citation": list(CITATION),
        "source": nodules.source,
        "synthetic": any(nodule.synthetic for nodule in nodules.nodules),
        "dataset_dir": str(nodules.root),
        "template": {"name": wording.name, "version": wording.version},
        "chain": chain_id(kernel),
        "consensus": nodules.consensus,
        "selection": {name: limit for name, limit in vars(selection or Selection()).items() if limit is not None},
        "split": {"ratios": [int(ratio) for ratio in ratios], "seed": seed},
        "skipped": [vars(skipped) for skipped in nodules.skipped],
        "doubts": [vars(doubt) for doubt in nodules.doubts],
        "numTraining": len(items["training"]),
        "numValidation": len(items["validation"]),
        "numTest": len(items["test"]),
        **items,
    }


def check_settings(template: str, ratios: Sequence[int], kernel: str = DEFAULT_KERNEL) -> PromptTemplate:
    """Check what :func:`build_datalist` is to be given, before minutes are spent on reading a dataset.

    Returns:
        The template.

    Raises:
        InputError: if a setting makes no sense.
    """
    check_ratios(ratios)
    chain_id(kernel)
    return get_template(template)


def _item(nodule: Nodule, root: Path, template: PromptTemplate) -> dict[str, Any]:
    roi_mm = ROI_DIAMETERS * nodule.diameter_mm
    bounds = roi_bounds(nodule.centre, nodule.spacing, roi_mm)
    return {
        "id": nodule.id,
        "image": nodule.image.relative_to(root).as_posix(),
        "slice_index": nodule.slice_index,
        "axes": nodule.axes,
        "centre": list(nodule.centre),
        "spacing": list(nodule.spacing),
        "diameter_mm": nodule.diameter_mm,
        "roi_mm": roi_mm,
        "padding": padding_fraction(bounds, nodule.shape),
        "prompt": template.render(nodule.findings),
        "findings": nodule.findings.to_dict(),
        "readers": nodule.readers,
        "patient_id": nodule.patient_id,
        "series_instance_uid": nodule.series_instance_uid,
        "synthetic": nodule.synthetic,
    }


def write_datalist(content: Mapping[str, Any], path: str | Path) -> Path:
    """Write a data list, whole or not at all.

    Returns:
        The file.

    Raises:
        InputError: if the file cannot be written, or is there and no data list.
    """
    file = Path(path)
    check_replaceable(file)
    try:
        write_json(file, content)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written ({error.strerror}); give another path as datalist, or make room"
        ) from error
    return file


def check_replaceable(path: str | Path) -> None:
    """Refuse to write a data list over a file that is none: the user's own table, say.

    Raises:
        InputError: if there is such a file.
    """
    file = Path(path)
    if not file.is_file() or not file.stat().st_size:
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not set(SPLITS) <= set(content):
        raise InputError(f"datalist: {file} is there and no data list; give another path, or remove it")


def ensure_datalist(path: str | Path, dataset_dir: str | Path | None = None) -> Path:
    """Make a data list with the default settings, unless there is one.

    Args:
        path: the data list. The phantoms, where they are asked for, are written beside it.
        dataset_dir: see :func:`nodule_plugin.data.sources.load_nodules`. None: the folder that the data list names,
            or phantoms where there is no data list yet.

    Returns:
        The file.

    Raises:
        InputError: if there is a data list, but of another folder; or as ``load_nodules`` and the functions here do.
    """
    file = Path(path)
    if file.exists() and dataset_dir is None:
        read_datalist(file)
        return file
    # Only here: a training from a ready data list needs neither DICOM readers nor LIDC-IDRI's database.
    from nodule_plugin.data.sources import PHANTOM, load_nodules

    if not file.exists():
        nodules = load_nodules(
            dataset_dir or PHANTOM, index_file=f"{file}.headers.jsonl", phantom_dir=file.parent / PHANTOM
        )
        content = build_datalist(nodules)
        _logger.info("%s", summarise(content))
        return write_datalist(content, file)
    content = read_datalist(file)
    if str(dataset_dir) == PHANTOM:
        if content.get("source") == PHANTOM:
            return file
    elif Path(content.get("dataset_dir", "")).absolute() == Path(str(dataset_dir)).absolute():
        return file
    made_from = content.get("dataset_dir", "an unnamed folder")
    raise InputError(
        f"{file}: made from {made_from}, not from {dataset_dir}; give another path as datalist or run prepare"
    )


def load_datalist(
    path: str | Path, split: str, dataset_dir: str | Path | None = None, drop_padded: bool | str = False
) -> list[dict[str, Any]]:
    """One split of a data list, ready for MONAI's datasets.

    Args:
        path: file that :func:`write_datalist` wrote.
        split: "training", "validation" or "test".
        dataset_dir: folder of the images; by default the one that the data list was made from.
        drop_padded: leave out nodules whose ROI reaches beyond the image's edge (padding above 0).

    Returns:
        The items, ``image`` made absolute.

    Raises:
        InputError: if the file is not a data list, there is no such split, or an item lacks a field or its image.
    """
    file = Path(path)
    content = read_datalist(file)
    if split not in SPLITS:
        raise InputError(f"{file}: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    if not isinstance(content.get(split), list):
        raise InputError(f"{file}: it holds no list {split!r}; run prepare again")
    if dataset_dir is None and "dataset_dir" not in content:
        raise InputError(f"{file}: it does not say its dataset_dir; give dataset_dir")
    root = (file.parent / content["dataset_dir"]) if dataset_dir is None else Path(dataset_dir)
    items = [_checked(item, number, root.absolute(), file, split) for number, item in enumerate(content[split])]
    if not as_flag("drop_padded", drop_padded):
        return items
    kept = [item for item in items if item["padding"] == 0]
    if len(kept) < len(items):
        _logger.info(
            "%s: %d of %d left out: their ROI reaches beyond the image", split, len(items) - len(kept), len(items)
        )
    return kept


def datalist_kernel(path: str | Path | None) -> str:
    """The resampling kernel that a data list asks for; the default for None and for lists of before it was noted.

    Raises:
        InputError: see :func:`read_datalist`; or if this release has not the chain that the list names.
    """
    if path is None:
        return DEFAULT_KERNEL
    content = read_datalist(Path(path))
    try:
        return chain_kernel(content.get("chain"))
    except InputError as error:
        raise InputError(f"{path}: {error}; run prepare again") from error


def read_datalist(file: Path) -> dict[str, Any]:
    """The content of a data list; its items are not looked at.

    Raises:
        InputError: if there is no such file, it holds no JSON object, or a field of its head is not of its kind.
    """
    content = read_json(file, "run prepare to make the data list")
    if not isinstance(content, dict) or not isinstance(content.get("dataset_dir", ""), str):
        raise InputError(f"{file}: not a data list; run prepare again")
    for name, kind in _HEAD.items():
        value = content.get(name)
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{file}: field {name!r}: {value!r} is no {_KINDS[kind]}; correct it or run prepare again")
    if not all(isinstance(work, str) for work in content.get("citation") or []):
        raise InputError(f"{file}: field 'citation': a list of texts is needed; correct it or run prepare again")
    return content


def _checked(item: Any, number: int, root: Path, file: Path, split: str) -> dict[str, Any]:
    where = f"{file}: {split}[{number}]"
    if not isinstance(item, dict):
        raise InputError(f"{where}: an object is needed, not {item!r}; run prepare again")
    missing = [name for name in _ITEM_FIELDS if name not in item]
    if missing:
        raise InputError(f"{where}: the field {missing[0]!r} is missing; run prepare again")
    readable_id(where, item["id"])
    check_numbers(where, item)
    if not isinstance(item["prompt"], str) or not item["prompt"].strip():
        raise InputError(f"{where}: field 'prompt': {item['prompt']!r} is no text that says something; correct it")
    findings = item.get("findings") or {}
    if not isinstance(findings, dict):
        raise InputError(f"{where}: field 'findings': {findings!r} is no object; correct it")
    for name, value in findings.items():
        try:
            if value is not None:  # not rated
                check_rating(name, value)
        except InputError as error:
            raise InputError(f"{where}: field 'findings': {error}; correct it") from error
    return {**item, "image": str(file_below(where, "image", root, item["image"]))}


def summarise(content: Mapping[str, Any]) -> str:
    """A data list in a few lines: pairs in each split, different prompts, what was skipped and why."""
    lines = [f"{content['name']}: {sum(len(content[split]) for split in SPLITS)} image-prompt pairs"]
    for split in SPLITS:
        patients = {item["patient_id"] for item in content[split]}
        malignancy = Counter(item["findings"].get("malignancy", "not rated") for item in content[split])
        spread = ", ".join(f"{code}: {malignancy[code]}" for code in sorted(malignancy, key=str))
        lines.append(f"  {split}: {len(content[split])} of {len(patients)} patients (malignancy {spread or '-'})")
    prompts = Counter(item["prompt"] for split in SPLITS for item in content[split])
    once = sum(count == 1 for count in prompts.values())
    padded = sum(item["padding"] > 0 for split in SPLITS for item in content[split])
    lines.append(f"  prompts: {len(prompts)} different, {once} of them once only")
    lines.append(f"  ROI beyond the image's edge: {padded}")
    doubts = Counter(doubt["reason"] for doubt in content.get("doubts", ()))
    lines += [f"  in doubt: {count} x {reason}" for reason, count in doubts.most_common()]
    reasons = Counter(skipped["reason"] for skipped in content["skipped"])
    lines.append(f"  skipped: {len(content['skipped'])}")
    lines += [f"    {count} x {reason}" for reason, count in reasons.most_common(5)]
    return "\n".join(lines)
