"""CLIP models through open_clip: one way of loading for CLIP, BiomedCLIP and this project's own small one."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import BertConfig

from nodule_plugin.data.pixels import Images, to_pictures
from nodule_plugin.errors import InputError
from nodule_plugin.extras import Extra
from nodule_plugin.weights import UNREADABLE, check_no_pointer, one_line, weights_sha256

open_clip = Extra("open_clip", "evaluate")

CONFIG_NAME = "open_clip_config.json"
BERT_BASE_TEXT_TOWERS = (
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract",
)
"""Text towers of BiomedCLIP whose architecture is BERT base: its folder names them but does not hold their config."""


@dataclass(frozen=True)
class LoadedModel:
    """What open_clip makes of a model's name."""

    network: Any
    preprocess: Any
    tokenizer: Any


class OpenCLIPModel:
    """The two towers of a CLIP model, loaded at first use.

    Args:
        model: ``hf-hub:<owner>/<name>`` (downloaded by open_clip, or taken from its cache), a local folder in
            open_clip's layout (open_clip_config.json, the weights, tokenizer files where the config names one), or
            open_clip's own ``<architecture>/<weights>`` such as ``ViT-B-32-quickgelu/openai``. Where these weights
            were trained with QuickGELU and the architecture's name does not say so (``ViT-B-32/openai``), QuickGELU is
            used, and :attr:`name` says so. None: no model, see :attr:`unavailable`.
        context_length: tokens of a prompt; None for what the model's config says.
        device: where the towers run.
        name: as tables name it; None for the model's own.
    """

    convention: Mapping[str, Any] = MappingProxyType(
        {"resampling": "as the model's own config states", "layer": "image embedding"}
    )

    def __init__(
        self,
        model: str | Path | None,
        context_length: int | None = None,
        device: str | torch.device = "cpu",
        name: str | None = None,
    ) -> None:
        self._name = name
        self.model = None if model is None else str(model)
        self.context_length = context_length
        self.device = torch.device(device)

    @property
    def name(self) -> str:
        """As tables name it: the hub id, or the folder's own name; with the activation where that is no part of it."""
        if self._name is not None or self.model is None:
            return self._name or "no model given"
        if Path(self.model).is_dir():
            return Path(self.model).name
        return f"{self.model} (QuickGELU)" if _needs_quick_gelu(self.model) else self.model

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be computed, or None."""
        return "no weights given" if self.model is None else None

    @property
    def id(self) -> str:
        """Equal for encoders that give equal image embeddings."""
        return f"open_clip:{self.model}"

    @property
    def fingerprint(self) -> str:
        """Names the image tower's weights and preprocessing. Loads the model."""
        loaded = self._loaded()
        steps = re.sub(r" at 0x[0-9a-f]+", "", repr(loaded.preprocess))  # a function's address is no setting
        # The same weights between other activations are another network.
        return weights_sha256(loaded.network.visual, steps, str(loaded.network.visual))

    def __call__(self, images: Images) -> Tensor:
        """As :meth:`encode_images`."""
        return self.encode_images(images)

    @torch.no_grad()
    def encode_images(self, images: Images) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W) in [-1, 1], or pictures; they pass through 8 bits and the preprocessing that the
                model's own config states (for OpenAI's CLIP: bicubic to 224, centre crop, OpenAI's mean and deviation).

        Returns:
            (B, D) embeddings, not normalised, on the CPU.
        """
        loaded = self._loaded()
        return loaded.network.encode_image(self._preprocessed(images)).float().cpu()

    @torch.no_grad()
    def image_feature_maps(self, images: Images) -> list[Tensor]:
        """The image tower's feature maps, (B, C, h, w) on the CPU, one a stage from the finest to the coarsest.

        Raises:
            InputError: if the model's image tower gives no such maps.
        """
        tower = self._loaded().network.visual
        if not hasattr(tower, "forward_intermediates"):
            raise InputError(f"CLIP model {self.model}: its image tower gives no feature maps; choose another model")
        maps = tower.forward_intermediates(self._preprocessed(images), intermediates_only=True)
        return [stage.float().cpu() for stage in maps["image_intermediates"]]

    def _preprocessed(self, images: Images) -> Tensor:
        preprocess = self._loaded().preprocess
        return torch.stack([preprocess(picture) for picture in to_pictures(images)]).to(self.device)

    @torch.no_grad()
    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts: (B, D), not normalised, on the CPU. Prompts beyond the context length are cut."""
        loaded = self._loaded()
        tokens = loaded.tokenizer(list(prompts), context_length=self.context_length).to(self.device)
        return loaded.network.encode_text(tokens).float().cpu()

    def _loaded(self) -> LoadedModel:
        if self.model is None:
            raise InputError("CLIP model: none was given; name a hub id (hf-hub:...) or a local folder")
        return _load(self.model, str(self.device))


@lru_cache(maxsize=8)
def _load(model: str, device: str) -> LoadedModel:
    name, options = _open_clip_name(model)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            network, _, preprocess = open_clip.create_model_and_transforms(
                name, device=device, require_pretrained=True, **options, **_text_tower_options(name, Path(scratch))
            )
        tokenizer = open_clip.get_tokenizer(name)
    except UNREADABLE as error:
        lacking = _lacking_in_cache(model)
        reason = f"the cache lacks {lacking}, and the hub does not give it" if lacking else one_line(error)
        raise InputError(f"CLIP model {model}: open_clip cannot load it: {reason}") from error
    # A tokenizer whose vocabulary did not load turns every word into "unknown", without an error.
    if bool((tokenizer(["round"]) == tokenizer(["oval"])).all()):
        raise InputError(f"CLIP model {model}: its tokenizer does not tell words apart; check its vocabulary files")
    return LoadedModel(network.eval().requires_grad_(False), preprocess, tokenizer)


def _needs_quick_gelu(model: str) -> bool:
    """Whether open_clip would put these weights between plain GELUs although they were trained with QuickGELU.

    OpenAI's CLIP was, for one; open_clip only warns.
    """
    architecture, _, weights = model.partition("/")
    if (architecture, weights) not in open_clip.list_pretrained():
        return False
    trained = open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu", False)
    built = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
    return bool(trained) and not built


def _open_clip_name(model: str) -> tuple[str, dict[str, Any]]:
    if model.startswith(open_clip.factory.HF_HUB_PREFIX) and not _lacking_in_cache(model):
        # As a folder it needs no hub: by its id, the text tower and tokenizer are asked for under ids of their own.
        return f"{open_clip.factory.LOCAL_DIR_PREFIX}{_cached(model, CONFIG_NAME).parent}", {}
    if model.startswith((open_clip.factory.HF_HUB_PREFIX, open_clip.factory.LOCAL_DIR_PREFIX)):
        return model, {}
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_NAME).is_file():
            raise InputError(f"CLIP model {model}: the folder holds no {CONFIG_NAME}; give one in open_clip's layout")
        for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt*")):
            check_no_pointer(file, "CLIP weights")
        return f"{open_clip.factory.LOCAL_DIR_PREFIX}{folder}", {}
    architecture, _, weights = model.partition("/")
    if (architecture, weights) in open_clip.list_pretrained():
        return architecture, {"pretrained": weights, "force_quick_gelu": _needs_quick_gelu(model)}
    raise InputError(
        f"CLIP model {model}: no such folder; give a local folder, a hub id such as hf-hub:owner/name, or "
        "open_clip's architecture/weights such as ViT-B-32-quickgelu/openai"
    )


def _cached(model: str, file: str) -> Path:
    """A file of a hub id in this machine's cache; one that does not exist where it is not there."""
    path = try_to_load_from_cache(model.removeprefix(open_clip.factory.HF_HUB_PREFIX), file)
    return Path(path) if isinstance(path, str) else Path(file, "not", "cached")


def _lacking_in_cache(model: str) -> str | None:
    """What keeps a hub id from being loaded out of the cache alone; None where nothing does, or it is no hub id."""
    if not model.startswith(open_clip.factory.HF_HUB_PREFIX):
        return None
    wanted = [(CONFIG_NAME,), (open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME)]
    try:
        text_cfg = json.loads(_cached(model, CONFIG_NAME).read_text())["model_cfg"]["text_cfg"]
    except (OSError, ValueError, LookupError, TypeError):
        return CONFIG_NAME
    if text_cfg.get("hf_tokenizer_name"):
        wanted.append(("tokenizer.json", "vocab.txt", "vocab.json"))
    lacking = [files for files in wanted if not any(_cached(model, file).is_file() for file in files)]
    return " or ".join(lacking[0]) if lacking else None


def _text_tower_options(name: str, scratch: Path) -> dict[str, Any]:
    """Let a local folder's Hugging Face text tower find its architecture without the hub.

    open_clip asks the hub for it by the name in the config. The folder's own config.json comes first; BiomedCLIP's
    published folder has none, and its text tower is BERT base (weights are loaded strictly: a wrong guess fails).
    """
    if not name.startswith(open_clip.factory.LOCAL_DIR_PREFIX):
        return {}
    folder = Path(name.removeprefix(open_clip.factory.LOCAL_DIR_PREFIX))
    text_cfg = json.loads((folder / CONFIG_NAME).read_text())["model_cfg"]["text_cfg"]
    tower = text_cfg.get("hf_model_name")
    if not tower or Path(tower).is_dir():
        return {}
    if (folder / "config.json").is_file():
        home = folder
    elif tower in BERT_BASE_TEXT_TOWERS:
        BertConfig().save_pretrained(scratch)
        home = scratch
    else:
        return {}
    return {"text_cfg": {**text_cfg, "hf_model_name": str(home), "hf_model_pretrained": False}}
