"""A generated set without the images that are copies of training images, ready to be handed on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nodule_plugin.data.evaluation_images import Load
from nodule_plugin.data.generated import FILE_FIELDS, MANIFEST, load_generated
from nodule_plugin.data.image_set import LoadedImages
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing, write_json
from nodule_plugin.metrics.copies import embedder
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.memorization import FALSE_ALARMS, PLANTED, CopyDetector, Inspection
from nodule_plugin.metrics.privacy import release_clearance


def write_release(
    generated_dir: str | Path,
    output_dir: str | Path,
    training_items: Sequence[Mapping[str, Any]],
    held_out_items: Sequence[Mapping[str, Any]],
    load: Load,
    embedding: FeatureExtractor | None = None,
    false_alarms: float = FALSE_ALARMS,
    planted: int = PLANTED,
    seed: int = 0,
    privacy: str | Path | None = None,
    privacy_override: str | None = None,
) -> Path:
    """Copy the images that are no copies, with a manifest that lists them and says what was kept back and why.

    Args:
        generated_dir: a set that inference wrote.
        output_dir: a new or empty folder.
        training_items: what the model was trained on, see
            :func:`nodule_plugin.data.evaluation_images.training_items`.
        held_out_items: real images of other patients, see :func:`nodule_plugin.data.evaluation_images.real_items`.
        load: loads an item, see :class:`nodule_plugin.data.evaluation_images.LoadSetImaged`.
        embedding: see :meth:`CopyDetector.calibrate`; None, or unavailable: grey values only.
        false_alarms, planted, seed: see :meth:`CopyDetector.calibrate`.
        privacy, privacy_override: an audit of the model and a reason to release in spite of it, see
            :func:`nodule_plugin.metrics.privacy.release_clearance`.

    Returns:
        The new manifest. Its "release" holds "kept", "removed" (image, the training image it copies, likeness),
        "detector" (thresholds, false alarms, misses) and "privacy" (the audit's verdict, None without one).

    Raises:
        InputError: if the set has no manifest, there are no training images, the audit forbids it, or the folder holds
            something or cannot be written. No manifest is left behind then.
    """
    generated = load_generated(generated_dir)
    if generated.manifest is None:
        raise InputError(f"generated_dir: {generated_dir} holds no {MANIFEST}; give a set that inference wrote")
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output_dir: {folder} holds other files; give a new folder")
    if not training_items:
        raise InputError("release: no training images; give the data list that the model was trained on")
    cleared = release_clearance(privacy, generated.manifest, privacy_override)

    def picture(item: Mapping[str, Any]) -> Tensor:
        return to_uint8(load(item)["image"][None])[0]

    detector = CopyDetector.calibrate(
        LoadedImages(training_items, picture),
        LoadedImages(held_out_items, picture),
        embedder(embedding, None),
        float(false_alarms),
        int(planted),
        seed,
    )
    items = [{"set": None, "record": None, **item} for item in generated.items]
    inspection = detector.inspect(LoadedImages(items, picture))
    kept = [item for item, copy in zip(generated.manifest["images"], inspection.copies) if not copy]
    release = {
        "kept": len(kept),
        "removed": _removed(generated.items, training_items, detector, inspection),
        "training_images": len(training_items),
        "held_out_images": len(held_out_items),
        "detector": detector.describe(),
        "privacy": cleared,
    }
    _copy(kept, generated.folder, folder, generated.manifest | {"release": release, "images": kept})
    return folder / MANIFEST


def _removed(
    items: Sequence[Mapping[str, Any]],
    training_items: Sequence[Mapping[str, Any]],
    detector: CopyDetector,
    inspection: Inspection,
) -> list[dict[str, Any]]:
    """Each copy and the training image it copies, by each likeness that says so."""
    return [
        {
            "id": item["id"],
            "training": training_items[int(near.index[index])]["record"].id,
            "likeness": float(near.likeness[index]),
            "by": name,
        }
        for index, item in enumerate(items)
        for name, near in inspection.nearest.items()
        if name in detector.thresholds and near.likeness[index] > detector.thresholds[name]
    ]


def _copy(kept: Sequence[Mapping[str, Any]], source: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """The files of the images that are kept, then the manifest."""
    try:
        for item in kept:
            for name in map(item.get, FILE_FIELDS):
                if name is not None:
                    with replacing(folder / name) as temporary:
                        shutil.copyfile(source / name, temporary)
        write_json(folder / MANIFEST, manifest)
    except OSError as error:
        raise InputError(f"output_dir: {folder} cannot be written ({error}); give another folder") from error
