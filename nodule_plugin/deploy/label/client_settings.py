"""What a client asks for, checked. Nothing that comes over the network reaches a configuration as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nodule_plugin.errors import InputError
from nodule_plugin.settings import as_number, as_whole_number, whole_number

MAX_STEPS = 1000
"""As many as the noise schedules have: more gain nothing and would occupy the server."""
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class ImageSettings:
    """What one image is made from: the bundle's ``displayable_configs``.

    Attributes:
        prompt: one line.
        guidance_scale: 0 or above.
        seed: 0 or above.
        steps: of denoising, 1 to :data:`MAX_STEPS`.
    """

    prompt: str
    guidance_scale: float
    seed: int
    steps: int


def default_image_settings(displayed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one image from ``displayable_configs``, which may list several prompts and scales: the first."""
    prompt = str(displayed["prompt"]).strip().splitlines()[0]
    scale = re.split(r"[,\s]+", str(displayed["guidance_scale"]).strip())[0]
    seed = re.split(r"[,\s]+", str(displayed["seed"]).strip())[0]
    return vars(image_settings({"prompt": prompt, "guidance_scale": scale, "seed": seed, "steps": displayed["steps"]}))


def image_settings(given: Mapping[str, Any]) -> ImageSettings:
    """Check the settings of one image; numbers may come as text, as some viewers send them.

    Raises:
        InputError: naming the setting, its value and what is allowed.
    """
    prompt = given["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"prompt: a text that is not empty is needed, not {prompt!r}")
    if len(prompt.strip().splitlines()) > 1:
        raise InputError(f"prompt: one line makes one image; send a request for each line, not {prompt!r}")
    scale = as_number("guidance_scale", given["guidance_scale"])
    if scale < 0:
        raise InputError(f"guidance_scale: a number of 0 or above is needed, not {given['guidance_scale']!r}")
    seed = whole_number("seed", as_whole_number("seed", given["seed"]), least=0)
    steps = whole_number("steps", as_whole_number("steps", given["steps"]), most=MAX_STEPS)
    return ImageSettings(prompt.strip(), float(scale), seed, steps)


def run_name(value: Any) -> str:
    """The name of a training run, which becomes a folder's.

    Raises:
        InputError: if it would not do as one.
    """
    if not isinstance(value, str) or not _RUN_NAME.fullmatch(value):
        raise InputError(f"run: a name of letters, digits, - and _ is needed, 64 at most, not {value!r}")
    return value


def torch_device(value: Any) -> torch.device:
    """A device that this machine has.

    Raises:
        InputError: if there is no such device.
    """
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise InputError(f"device: cpu, cuda or cuda:NUMBER is needed, not {value!r}") from None
    if device.type != "cpu" and not (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(f"device: this server has no {value!r}; use cpu or one of the devices that it lists")
    return device
