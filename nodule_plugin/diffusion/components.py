"""Load the parts of a Stable Diffusion model from diffusers' folder layout, a local folder or a hub id alike.

A base model is a folder with ``unet/``, ``vae/``, ``text_encoder/``, ``tokenizer/`` and ``scheduler/``, each with its
own configuration. What differs between models (prediction type, latent scaling, widths) is read from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from nodule_plugin.errors import InputError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _load(kind: Any, base_model: str, part: str, **options: Any) -> Any:
    folder = Path(base_model)
    if folder.is_dir():
        if not (folder / part).is_dir():
            raise InputError(f"base_model: {folder} has no folder {part!r}; give a model in diffusers' folder layout")
        options["local_files_only"] = True
    elif not _HUB_ID.fullmatch(str(base_model)):
        raise InputError(f"base_model: there is no folder {base_model!r}, and it is not a hub id (owner/name) either")
    try:
        return kind.from_pretrained(str(base_model), subfolder=part, **options)
    except (OSError, ValueError) as error:
        where = f"the {part} of {base_model!r}"
        raise InputError(f"base_model: {where} cannot be loaded as {kind.__name__}: {error}") from error


def load_unet(base_model: str, revision: str | None = None, variant: str | None = None) -> UNet2DConditionModel:
    """The denoising U-Net in float32.

    Args:
        base_model: a local folder in diffusers' layout, or a hub id, which is downloaded.
        revision: of the hub id: a branch, tag or commit.
        variant: of the weights files, such as "fp16".

    Raises:
        InputError: if there is no such model or its U-Net cannot be read. The other loaders raise the same.
    """
    return _load(UNet2DConditionModel, base_model, "unet", revision=revision, variant=variant, dtype=torch.float32)


def load_vae(base_model: str, revision: str | None = None, variant: str | None = None) -> AutoencoderKL:
    """The autoencoder between pixels and latents, in float32, frozen and in evaluation mode. See :func:`load_unet`."""
    vae = _load(AutoencoderKL, base_model, "vae", revision=revision, variant=variant, dtype=torch.float32)
    return freeze(vae)


def load_text_encoder(base_model: str, revision: str | None = None, variant: str | None = None) -> CLIPTextModel:
    """The text encoder, in float32, frozen and in evaluation mode. See :func:`load_unet`."""
    encoder = _load(CLIPTextModel, base_model, "text_encoder", revision=revision, variant=variant, dtype=torch.float32)
    return freeze(encoder)


def load_tokenizer(base_model: str, revision: str | None = None) -> CLIPTokenizer:
    """The tokenizer of the text encoder. See :func:`load_unet`.

    Raises:
        InputError: also if the vocabulary read is not that of CLIP, which transformers 5 does not notice by itself.
    """
    tokenizer = _load(CLIPTokenizer, base_model, "tokenizer", revision=revision)
    if len(tokenizer) < 1000:
        raise InputError(f"base_model: the tokenizer of {base_model!r} was read with only {len(tokenizer)} tokens")
    return tokenizer


def load_noise_scheduler(base_model: str, revision: str | None = None, **overrides: Any) -> DDPMScheduler:
    """The forward (noising) process with the base model's own betas and prediction type. See :func:`load_unet`.

    Args:
        overrides: scheduler settings that replace the base model's, such as ``rescale_betas_zero_snr=True``.
    """
    return _load(DDPMScheduler, base_model, "scheduler", revision=revision, **overrides)


def freeze(module: Any) -> Any:
    """``module`` in evaluation mode and without gradients."""
    return module.requires_grad_(False).eval()


class TextConditioner:
    """Prompts to the text encoder's hidden states; each distinct prompt is encoded once.

    Args:
        tokenizer: pads to its ``model_max_length``; a longer prompt is an error, not cut silently.
        text_encoder: frozen.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        # A folder without tokenizer_config.json loads with a length of 1e30; the encoder knows its own.
        self.length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self._known: dict[str, torch.Tensor] = {}

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids, (B, length) int64.

        Raises:
            InputError: if a prompt has more tokens than the encoder takes.
        """
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=self.length, truncation=False).input_ids
        for prompt, row in zip(prompts, ids):
            if len(row) > self.length:
                raise InputError(
                    f"prompt: {len(row)} tokens, and the text encoder takes {self.length}; shorten it: {prompt!r}"
                )
        return torch.tensor(ids)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Hidden states of the last layer, (B, length, width) float32, on the text encoder's device."""
        new = sorted({prompt for prompt in prompts if prompt not in self._known})
        if new:
            device = next(self.text_encoder.parameters()).device
            hidden = self.text_encoder(self.tokens(new).to(device)).last_hidden_state.float()
            self._known.update(zip(new, hidden))
        return torch.stack([self._known[prompt] for prompt in prompts])


def count_parameters(module: nn.Module) -> int:
    """How many parameters ``module`` has."""
    return sum(parameter.numel() for parameter in module.parameters())
