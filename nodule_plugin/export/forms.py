"""The forms that a model can be exported in, each written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.errors import InputError
from nodule_plugin.export.card import write_card
from nodule_plugin.export.compvis import write_single_file
from nodule_plugin.export.low_rank import write_low_rank
from nodule_plugin.export.networks import write_onnx, write_programs
from nodule_plugin.export.pipeline import write_pipeline
from nodule_plugin.files import new_folder

FORMS: dict[str, Any] = {
    "diffusers": write_pipeline,
    "single-file": write_single_file,
    "lora": write_low_rank,
    "onnx": write_onnx,
    "pt2": write_programs,
}
"""Name -> what writes a model into a folder and says how far each file is from it."""
_WITH_FP16 = ("diffusers", "single-file")


def export_model(
    form: str,
    source: Source,
    output_dir: str | Path,
    metadata: Mapping[str, Any],
    fp16: bool = False,
    metrics: str | Path | None = None,
    licence: str | None = None,
) -> dict[str, float]:
    """Write a model in a form and its model card.

    Args:
        form: a name in :data:`FORMS`.
        source: of the model.
        output_dir: made; it must not hold anything.
        metadata, metrics, licence: see :func:`nodule_plugin.export.card.write_card`.
        fp16: also the weights with 16 bits, of the forms that have such a variant.

    Returns:
        File -> the largest difference between what it computes and what the model does, on random inputs.

    Raises:
        InputError: if there is no such form, ``output_dir`` holds something, or the model cannot be read or written.
    """
    if form not in FORMS:
        raise InputError(f"format: there is no {form!r}; choose one of {', '.join(FORMS)}")
    if fp16 and form not in _WITH_FP16:
        raise InputError(f"fp16: {form} has no such variant; leave it out, or export {' or '.join(_WITH_FP16)}")
    options = {"fp16": True} if fp16 else {}
    with new_folder(Path(output_dir)) as folder:
        model = load_model(source)
        card = write_card(model, folder, form, metadata, metrics, licence)  # first: it is what most often is wrong
        differences: dict[str, float] = FORMS[form](model, folder, **options)
        for file in folder.rglob("*.safetensors"):
            shutil.copymode(card, file)  # safetensors lets only their owner read
    return differences
