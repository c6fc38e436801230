"""What weights learnt from and what chose them: a small file beside them says both, and travels with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nodule_plugin.data.window import checked_window
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS, weights_file
from nodule_plugin.errors import InputError
from nodule_plugin.files import write_json
from nodule_plugin.settings import whole_number

DISPLAYED_SCALES = "1.5, 3, 5"
"""The guidance scales of inference.json, for weights whose training chose none."""


@dataclass(frozen=True)
class Distilled:
    """How weights of few steps are sampled with, and whose images they were taught to make.

    Attributes:
        teacher_sha256: of the weights that taught, as manifests name them.
        guidance_scale: of the teacher's images; it is in the weights, which are sampled with at scale 1.
        scheduler_class: diffusers', whose timesteps were taught.
        steps: their number.
    """

    teacher_sha256: str
    guidance_scale: float
    scheduler_class: str
    steps: int


def distilled(weights: str | Path) -> Distilled | None:
    """What the record of weights says of their few steps; None for weights of a training.

    Raises:
        InputError: see :func:`read_record`.
    """
    record = read_record(weights).get("distilled")
    return None if record is None else Distilled(**record)


def check_few_steps(weights: str | Path, settings: Mapping[str, Any], requests: Iterable[Mapping[str, Any]]) -> None:
    """Refuse to sample with weights of few steps as they were not taught: nothing else would say that images are bad.

    Args:
        weights: see :func:`read_record`; those of a training take any settings.
        settings: of the sampler, see :attr:`nodule_plugin.diffusion.sampling.GuidedSampler.settings`.
        requests: each with its ``guidance_scale``.

    Raises:
        InputError: if scheduler, steps or a guidance scale are others.
    """
    taught = distilled(weights)
    if taught is None:
        return
    given = (settings["scheduler"], settings["num_inference_steps"])
    if given != (taught.scheduler_class, taught.steps) or any(each["guidance_scale"] != 1 for each in requests):
        raise InputError(
            f"weights: {weights} learnt to make images in {taught.steps} steps of {taught.scheduler_class} with "
            f"guidance {taught.guidance_scale:g} built in; give steps={taught.steps}, scheduler_class="
            f"{taught.scheduler_class} and guidance_scales=1 (the overlay few_steps does), or other weights"
        )


def write_record(weights: str | Path, preprocessing: Any, chosen: Mapping[str, Any] | None = None) -> Path:
    """Write ``model.json`` beside ``model.pt``: image size, window, kernel and chain of the training images.

    Args:
        weights: the file that it is of.
        preprocessing: of the training images, a :class:`~nodule_plugin.data.transforms.NoduleROId` or another dataclass
            with a ``chain``.
        chosen: what chose these weights, of JSON's types: the "split" of the data list, measures and the like; None
            where nothing did.

    Returns:
        The file.
    """
    return _write(weights, {**asdict(preprocessing), **({"chosen": dict(chosen)} if chosen else {})})


def add_guidance(weights: str | Path, guidance: Mapping[str, Any]) -> Path:
    """Add the guidance scale that suits the weights to their record.

    Args:
        weights: see :func:`write_record`.
        guidance: of JSON's types: "scale", and by what, on how many images of which "split" it was chosen.

    Returns:
        The file.
    """
    return _write(weights, {**read_record(weights), "guidance": dict(guidance)})


def _write(weights: str | Path, record: Mapping[str, Any]) -> Path:
    file = Path(weights).with_suffix(".json")
    write_json(file, record)
    return file


def read_record(weights: str | Path) -> dict[str, Any]:
    """What stands beside weights; empty where nothing does.

    Args:
        weights: file of a state dict, which need not be there, or its folder; "base" for the base model's, which have
            none. Only beside this package's own, which end in .pt, such a file is looked for: other programs keep other
            things beside theirs.

    Raises:
        InputError: if the file beside them is damaged, or the folder holds no weights.
    """
    if weights == BASE_WEIGHTS:
        return {}
    weights = weights_file(weights) if Path(weights).is_dir() else Path(weights)
    file = weights.with_suffix(".json")
    if weights.suffix != ".pt" or not file.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        record |= {"chain": str(record["chain"])}
        for side in record.get("image_size", ()):
            whole_number("image_size", side)
        if "window_hu" in record:
            checked_window(record["window_hu"])
        if "distilled" in record:
            Distilled(**record["distilled"])
    except InputError as error:
        raise InputError(f"weights: {file}: {error}; restore it or remove it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"weights: {file} is no record of a training ({error!r}); restore it or remove it") from error
    return record


def weights_chain(weights: str | Path) -> str | None:
    """The chain that cut the images which weights learnt from, see :func:`nodule_plugin.data.transforms.chain_id`.

    Returns:
        None where nothing beside the weights says so; so do the following. All raise what :func:`read_record` raises.
    """
    return read_record(weights).get("chain")


def chosen_on(weights: str | Path) -> str | None:
    """The split of the training's data list on which the weights, their guidance scale or both were chosen."""
    record = read_record(weights)
    return next((record[name]["split"] for name in ("chosen", "guidance") if name in record), None)


def guidance_scales(weights: str | Path, displayed: Any) -> Any:
    """The guidance scales to generate at where a user names none.

    Args:
        weights: see :func:`read_record`.
        displayed: the scales that the configuration displays; a client may have put others there.

    Returns:
        The scale that suits the weights, if their record names one and ``displayed`` is still the configuration's own
        (:data:`DISPLAYED_SCALES`); else ``displayed``.
    """
    chosen = read_record(weights).get("guidance", {}).get("scale")
    return displayed if chosen is None or displayed != DISPLAYED_SCALES else chosen
