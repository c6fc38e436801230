"""Load the parts of a Stable Diffusion model from diffusers' folder layout, a local folder or a hub id alike.

A base model is a folder with ``unet/``, ``vae/``, ``text_encoder/``, ``tokenizer/`` and ``scheduler/``, each with its
own configuration. What differs between models (prediction type, latent scaling, widths) is read from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing
from nodule_plugin.settings import as_flag
from nodule_plugin.weights import weights_sha256

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _load(kind: Any, base_model: str, part: str, **options: Any) -> Any:
    folder = Path(base_model)
    if folder.is_dir():
        if not (folder / part).is_dir():
            raise InputError(f"base_model: {folder} has no folder {part!r}; give a model in diffusers' folder layout")
        options["local_files_only"] = True
    elif not _HUB_ID.fullmatch(str(base_model)):
        raise InputError(f"base_model: there is no folder {base_model!r}, and it is not a hub id (owner/name) either")
    elif options.get("revision") is None:
        raise InputError(
            f"base_model: there is no folder {base_model!r}, and as a hub id it needs a revision, since what an id "
            "holds can change; give the commit (on the model's page: Files and versions, History)"
        )
    try:
        return kind.from_pretrained(str(base_model), subfolder=part, **options)
    except (OSError, ValueError) as error:
        where = f"the {part} of {base_model!r}"
        raise InputError(f"base_model: {where} cannot be loaded as {kind.__name__}: {error}") from error


def load_unet(base_model: str, revision: str | None = None, variant: str | None = None) -> UNet2DConditionModel:
    """The denoising U-Net in float32.

    Args:
        base_model: a local folder in diffusers' layout, or a hub id, which is downloaded.
        revision: of the hub id, which needs one: a commit; a branch or tag can come to mean other weights.
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


def load_noise_scheduler(
    base_model: str, revision: str | None = None, zero_terminal_snr: bool | str = False
) -> DDPMScheduler:
    """The forward (noising) process with the base model's own betas and prediction type. See :func:`load_unet`.

    Args:
        base_model, revision: which model.
        zero_terminal_snr: shift the betas so that the last step holds no signal, without which images cannot become
            very dark or bright (Lin et al., WACV 2024, arXiv:2305.08891, section 3.1). Sampling must do the same.

    Raises:
        InputError: also if ``zero_terminal_snr`` is asked of a model that predicts noise, which says nothing about the
            image where there is no signal (section 3.2).
    """
    options = {}
    if as_flag("zero_terminal_snr", zero_terminal_snr):
        options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = _load(DDPMScheduler, base_model, "scheduler", revision=revision, **options)
    if options and scheduler.config.prediction_type == "epsilon":
        raise InputError(f"zero_terminal_snr: {base_model!r} predicts noise (epsilon); take a v-prediction base model")
    return scheduler


def freeze(module: Any) -> Any:
    """``module`` in evaluation mode and without gradients."""
    return module.requires_grad_(False).eval()


class TextConditioner:
    """Prompts to the text encoder's hidden states; each distinct prompt is encoded once.

    Prompts are encoded one at a time, so that an embedding does not depend on its neighbours.

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
        device = next(self.text_encoder.parameters()).device
        for prompt in prompts:
            if prompt not in self._known:
                with torch.autocast(device.type, enabled=False):
                    hidden = self.text_encoder(self.tokens([prompt]).to(device)).last_hidden_state
                self._known[prompt] = hidden[0].float()
        return torch.stack([self._known[prompt] for prompt in prompts]).to(device)

    def remember(self, prompts: Iterable[str], file: str | Path | None) -> TextConditioner:
        """Encode all prompts there will be, or take their embeddings from a file of an earlier run.

        Args:
            prompts: the empty prompt joins them.
            file: safetensors; written where it is missing, damaged, of another model or lacks a prompt. None
                keeps embeddings in memory only. Only one of several processes should be given it at a time.

        Returns:
            Itself.

        Raises:
            InputError: if the file cannot be written, or a prompt is too long.
        """
        wanted = sorted({"", *prompts})
        if file is None:
            self(wanted)
            return self
        path, fingerprint = Path(file), self._fingerprint()
        self._known |= _read_embeddings(path, fingerprint)
        if any(prompt not in self._known for prompt in wanted):
            self(wanted)
            embeddings = {f"{at:05d}": self._known[prompt].cpu().contiguous() for at, prompt in enumerate(wanted)}
            metadata = {"text_encoder": fingerprint, "prompts": json.dumps(wanted)}
            try:
                with replacing(path) as temporary:
                    save_file(embeddings, temporary, metadata)
            except (OSError, SafetensorError) as error:
                raise InputError(f"latent_cache: {path} cannot be written ({error})") from error
        return self

    def _fingerprint(self) -> str:
        """Of all that decides an embedding: the same words may be other tokens, padded with another one."""
        words = [self.tokenizer.get_vocab(), self.tokenizer.pad_token, self.length]
        return sha256((weights_fingerprint(self.text_encoder) + json.dumps(words, sort_keys=True)).encode()).hexdigest()


def _read_embeddings(path: Path, fingerprint: str) -> dict[str, torch.Tensor]:
    """Prompt -> embedding, none where the file is missing, damaged or of another model."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("text_encoder") != fingerprint:
                return {}
            return {prompt: file.get_tensor(f"{at:05d}") for at, prompt in enumerate(json.loads(metadata["prompts"]))}
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def weights_fingerprint(module: Any) -> str:
    """SHA-256 of the configuration and the weights of a diffusers or transformers model."""
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    public = {name: value for name, value in config.items() if name[0] != "_"}
    return weights_sha256(module, json.dumps(public, sort_keys=True, default=str))
