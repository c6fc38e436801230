"""What decides a training run's result: two parts of one run must agree on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler

from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.weights import weights_sha256

_ITEM_FIELDS = ("prompt", "slice_index", "centre", "spacing", "roi_mm")
_NETWORK_FIELDS = ("attention_head_dim", "scaling_factor", "shift_factor", "hidden_act")
_BETA_FIELDS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")
_DIGITS = 12
"""Of a hash: enough to tell runs apart, few enough for a message."""


def base_model_hash(network: DiffusionUNet, vae: Any, text_encoder: Any, noise_scheduler: DDPMScheduler) -> str:
    """Of a base model's weights, and of what decides beside them how it works, wherever its files lie.

    Low-rank updates, and what the training's settings change of the noise schedule, do not count.

    Args:
        network: as it was loaded, before any training.
        vae, text_encoder, noise_scheduler: of the same base model.
    """
    unet = {name.replace(".base_layer", ""): w for name, w in network.unet.state_dict().items() if ".lora_" not in name}
    weights = [weights_sha256(module) for module in (unet, vae, text_encoder)]
    modules = network.unet, vae, text_encoder
    configs = [getattr(module.config, name, None) for module in modules for name in _NETWORK_FIELDS]
    schedule = [noise_scheduler.config.get(name) for name in ("prediction_type", *_BETA_FIELDS)]
    return _hash([weights, configs, schedule])


def training_items_hash(items: Sequence[Mapping[str, Any]]) -> str:
    """Of what training sees of the items of a data list, in their order, wherever their images lie.

    Args:
        items: ``image`` absolute; of the files themselves the sizes count.
    """
    return _hash([[*(item[name] for name in _ITEM_FIELDS), Path(item["image"]).stat().st_size] for item in items])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What ``old`` says and ``new`` does not, each as "learning_rate 0.001, not 0.0002"."""
    return [f"{name} {value}, not {new.get(name)}" for name, value in old.items() if new.get(name) != value]


def _hash(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]
