"""A generated set without the images that are copies of training images, ready to be handed on."""

from __future__ import annotations

import json
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
from nodule_plugin.files import replacing, write_text_atomically
from nodule_plugin.metrics.feature_cache import embedder
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.memorization import FALSE_ALARMS, PLANTED, CopyDetector
from nodule_plugin.metrics.studies import rate


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

    Returns:
        The new manifest. Its "release" holds "kept", "removed" (image, the training image it copies, likeness) and
        "detector" (thresholds, false alarms, misses).

    Raises:
        InputError: if the set has no manifest, there are no training images, or the folder holds something or cannot be
            written. No manifest is left behind then.
    """
    generated = load_generated(generated_dir)
    if generated.manifest is None:
        raise InputError(f"generated_dir: {generated_dir} holds no {MANIFEST}; give a set that inference wrote")
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output_dir: {folder} holds other files; give a new folder")
    if not training_items:
        raise InputError("release: no training images; give the data list that the model was trained on")

    def picture(item: Mapping[str, Any]) -> Tensor:
        return to_uint8(load(item)["image"][None])[0]

    embed = None if embedding is None or embedding.unavailable else embedder(embedding, None)
    detector = CopyDetector.calibrate(
        LoadedImages(training_items, picture),
        LoadedImages(held_out_items, picture),
        embed,
        float(false_alarms),
        int(planted),
        seed,
    )
    found = detector.inspect(LoadedImages([{"set": None, "record": None, **item} for item in generated.items], picture))
    removed = [
        {
            "id": item["id"],
            "training": training_items[int(near.place[place])]["record"].id,
            "likeness": float(near.likeness[place]),
            "by": name,
        }
        for place, item in enumerate(generated.items)
        for name, near in found.nearest.items()
        if name in detector.thresholds and near.likeness[place] > detector.thresholds[name]
    ]
    kept = [item for item, copy in zip(generated.manifest["images"], found.copies) if not copy]
    release = {
        "kept": len(kept),
        "removed": removed,
        "training_images": len(training_items),
        "held_out_images": len(held_out_items),
        "detector": {
            "accepted_false_alarms": detector.accepted,
            "thresholds": detector.thresholds,
            "false_alarms": rate(detector.false_alarms),
            "misses": rate(detector.misses),
        },
    }
    try:
        for item in kept:
            for name in map(item.get, FILE_FIELDS):
                if name is not None:
                    with replacing(folder / name) as temporary:
                        shutil.copyfile(generated.folder / name, temporary)
        content = generated.manifest | {"release": release, "images": kept}
        write_text_atomically(folder / MANIFEST, json.dumps(content, indent=4) + "\n")
    except OSError as error:
        raise InputError(f"output_dir: {folder} cannot be written ({error}); give another folder") from error
    return folder / MANIFEST
