"""What the small model's training on a bare GPU adds to the bundle's configuration: latents without their images, and
weights that fit through a narrow door."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from nodule_plugin.data.datalist import read_datalist
from nodule_plugin.data.latents import LatentCache, LatentDataset
from nodule_plugin.diffusion.iteration import StepEvents, count_steps
from nodule_plugin.diffusion.network import export_weights
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing, write_text_atomically

KEPT = 3


def cached_items(datalist: str) -> list[dict[str, Any]]:
    """The items that a training of this data list caches. Their images need not be here: the list stands for them."""
    return [item | {"image": datalist} for item in read_datalist(Path(datalist))["training"] if item["padding"] == 0]


def cached_dataset(data: Sequence[Mapping[str, Any]], folder: str, vae: Any) -> LatentDataset:
    """A training's data set that takes everything from a cache, see :func:`prepared_cache`."""
    return LatentDataset(data, transform=dict, cache=prepared_cache(folder, len(data), vae))


def prepared_cache(folder: str, count: int, vae: Any) -> LatentCache:
    """A latent cache that a training made before, with all entries.

    Args:
        folder: the training's ``latents``, or its part ``training``.
        count: items of the data list.
        vae: the autoencoder whose latents it holds.

    Raises:
        InputError: if there is none, or it is not whole, or of another data list or autoencoder.
    """
    root = Path(folder) / "training" if (Path(folder) / "training").is_dir() else Path(folder)
    try:
        label = json.loads((root / "cache.json").read_text(encoding="utf-8"))
        items, orientations, *shape = label["shape"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"latents: {root} holds no latent cache ({error}); give a training's folder latents"
        ) from error
    if items != count or shape[0] != 2 * vae.config.latent_channels:
        raise InputError(
            f"latents: {root} is of {items} images with {shape[0] // 2} channels, the data list has {count} and the"
            f" base model {vae.config.latent_channels}; give those that the cache was made with"
        )
    if (root / "moments.bin").stat().st_size != 4 * items * orientations * int(torch.tensor(shape).prod()):
        raise InputError(f"latents: {root / 'moments.bin'} is cut; copy it anew")
    cache = LatentCache(root, label["fingerprint"], items, shape, orientations)
    if cache.complete < 1:
        raise InputError(f"latents: {root} holds {cache.complete:.0%} of its entries; train longer before")
    return cache


class KeepWeights:
    """Write a network's weights in half precision again and again, and end the training when its time is over.

    Args:
        network: whose weights, as :func:`nodule_plugin.diffusion.network.export_weights` gives them.
        folder: gets ``small_weights_STEP.pt``, the last three.
        progress: JSON, what has been done when the last file was written.
        until: time (of :func:`time.time`) after which the training ends.
        every: seconds between two files.
        most_bytes: of a file.

    Raises:
        InputError: if the weights are larger.
    """

    def __init__(
        self, network: nn.Module, folder: str, progress: str, until: float, every: float, most_bytes: int
    ) -> None:
        needed = sum(2 * value.numel() for value in network.state_dict().values())
        if needed > 0.98 * most_bytes:  # names and headers are a hundredth
            raise InputError(f"small model: its weights take {needed} bytes in half precision, more than {most_bytes}")
        self.network = network
        self.folder = Path(folder)
        self.progress = Path(progress)
        self.until = until
        self.every = every
        self._images = 0
        self._losses: list[float] = []
        self._written = self._first = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow the trainer ``engine``; attach it after what averages the weights."""
        count_steps(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(StepEvents.STEP_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def _count(self, engine: Engine) -> None:
        if self._first:
            self._images += len(engine.state.batch["id"])

    def __call__(self, engine: Engine) -> None:
        now = time.time()
        self._losses.append(engine.state.step_loss)
        if not self._first:  # the first step loads and tunes kernels
            self._first = self._written = now
        if now >= self.until:
            engine.terminate()
        elif now >= self._written + self.every:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the weights, remove the oldest, note the progress."""
        seconds = time.time() - self._first
        path = self.folder / f"small_weights_{engine.state.step:07d}.pt"
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({name: value.half().cpu() for name, value in export_weights(self.network).items()}, file)
        kept = sorted(self.folder.glob("small_weights_*.pt"))
        for old in kept[:-KEPT]:
            old.unlink()
        done = {
            "step": engine.state.step,
            "seconds": seconds,
            "rate": self._images / seconds if seconds else None,
            "loss": sum(self._losses) / len(self._losses) if self._losses else None,
            "weights": ", ".join(file.name for file in kept[-KEPT:]),
        }
        write_text_atomically(self.progress, json.dumps(done))
        self._losses = []
        self._written = time.time()
