"""A fine-tuned model as a whole, and what it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS, identify_weights, load_weights, weights_file
from nodule_plugin.diffusion.latent_space import latent_shape, pixels_per_latent
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.provenance import Distilled, distilled, read_record
from nodule_plugin.diffusion.sampling import derive_scheduler
from nodule_plugin.errors import InputError
from nodule_plugin.settings import LARGEST_SIDE, whole_number

USUAL_SCHEDULER = "DPMSolverMultistepScheduler"
"""Of inference.json."""
FEW_STEPS = "few_steps/model.pt"
"""Weights taught by others to need few steps lie here, from the folder of those that taught."""


@dataclass(frozen=True)
class Source:
    """Which model is loaded.

    Attributes:
        base_model, revision, variant: see :func:`nodule_plugin.diffusion.components.load_unet`.
        weights: fine-tuned, see :func:`nodule_plugin.diffusion.fine_tuned.load_weights`; "base" for the base model's.
        prediction_type, zero_terminal_snr: see :func:`nodule_plugin.diffusion.components.load_noise_scheduler`.
        scheduler_class: diffusers' scheduler that it samples with; None for the one that weights of few steps were
            taught with, else :data:`USUAL_SCHEDULER`.
        image_size: side of the images, pixels; None for that of the training images where ``model.json`` beside the
            weights says it, else the base model's own.

    Raises:
        InputError: if ``image_size`` is no side of an image.
    """

    base_model: str
    weights: str = BASE_WEIGHTS
    revision: str | None = None
    variant: str | None = None
    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    scheduler_class: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None:
            whole_number("image_size", self.image_size, most=LARGEST_SIDE)


@dataclass(frozen=True)
class FineTunedModel:
    """All parts of a Stable Diffusion, in float32 and in evaluation mode, the U-Net with its fine-tuned weights.

    Attributes:
        source: that it was loaded from.
        network: the U-Net.
        vae, text_encoder, tokenizer: the base model's, with the weights' low-rank updates of the text encoder, if any.
        scheduler: diffusers', as the sampler would use it.
        sha256: of the weights, as manifests name them.
        image_size: side of the images, pixels.
        preprocessing: of the training images, see :func:`nodule_plugin.diffusion.provenance.read_record`.
        distilled: how weights of few steps are sampled with; None for others, which take any steps.
    """

    source: Source
    network: DiffusionUNet
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    sha256: str
    image_size: int
    preprocessing: Mapping[str, Any]
    distilled: Distilled | None

    @property
    def guidance_scale(self) -> float:
        """That training chose; 3, the middle of what inference.json displays, where it chose none."""
        return float(self.preprocessing.get("guidance", {}).get("scale", 3.0))

    @property
    def steps(self) -> int:
        """Of the sampler: those that were taught; 25, as many pipelines take, where any will do."""
        return self.distilled.steps if self.distilled else 25

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image's latents."""
        return latent_shape(self.vae, self.image_size)


def load_model(source: Source) -> FineTunedModel:
    """Load every part of a model.

    Raises:
        InputError: if one cannot be read, the weights do not fit, or the model cannot make images of that size.
    """
    base = (source.base_model, source.revision, source.variant)
    network = DiffusionUNet.from_base(*base).eval()
    sha256 = identify_weights(source.weights, network)
    if source.weights != BASE_WEIGHTS:
        load_weights(source.weights, network)
    vae = load_vae(*base)
    text_encoder = load_text_encoder(*base, weights=source.weights)
    tokenizer = load_tokenizer(source.base_model, source.revision)
    tokenizer.model_max_length = TextConditioner(tokenizer, text_encoder).length
    noise = load_noise_scheduler(
        source.base_model, source.revision, source.zero_terminal_snr, prediction_type=source.prediction_type
    )
    preprocessing, taught = read_record(source.weights), distilled(source.weights)
    if taught and source.scheduler_class not in (None, taught.scheduler_class):
        raise InputError(
            f"scheduler_class: {source.weights} learnt to make images in {taught.steps} steps of "
            f"{taught.scheduler_class}, not of {source.scheduler_class}; leave it out"
        )
    image_size = checked_size(source, network.unet, vae, preprocessing)
    network.unet.register_to_config(sample_size=image_size // pixels_per_latent(vae))  # what a pipeline makes by itself
    return FineTunedModel(
        source,
        network,
        vae,
        text_encoder,
        tokenizer,
        derive_scheduler(noise, source.scheduler_class or (taught.scheduler_class if taught else USUAL_SCHEDULER)),
        sha256,
        image_size,
        preprocessing,
        taught,
    )


def load_few_steps(model: FineTunedModel) -> FineTunedModel | None:
    """The model that was taught to make the images of ``model`` in few steps, if one lies at :data:`FEW_STEPS`.

    Raises:
        InputError: see :func:`load_model`.
    """
    if model.source.weights == BASE_WEIGHTS:
        return None
    file = weights_file(model.source.weights).parent / FEW_STEPS
    taught = distilled(file)
    if taught is None or taught.teacher_sha256 != model.sha256:
        return None
    return load_model(replace(model.source, weights=str(file), scheduler_class=None))


def checked_size(source: Source, unet: Any, vae: Any, preprocessing: Mapping[str, Any]) -> int:
    """Side of the images in pixels, see :class:`Source`.

    Raises:
        InputError: if the model cannot make images of that size.
    """
    size = source.image_size
    if size is None:
        own = unet.config.sample_size * pixels_per_latent(vae)
        size = int(preprocessing.get("image_size", [own])[0])
    latent_shape(vae, size)
    return size
