"""Peak memory of a training step of Stable Diffusion by preset, computed without a GPU.

    python scripts/benchmarks/training_memory.py

The U-Net of Stable Diffusion's size takes two optimizer steps on fake tensors (torch's FakeTensorMode: shapes, no
numbers), while every storage is followed from its making to its end. Not counted: the CUDA context (about 0.5 GiB),
fragmentation and cuDNN's workspaces. What was computed so is labelled so wherever it is quoted.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nodule_plugin.diffusion.network import DiffusionUNet, add_lora

GIB = 2**30
UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.0": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
}
FROZEN_GIB = {"SD 1.5": (83_653_863 + 123_060_480) * 4 / GIB, "SD 2.0": (83_653_863 + 340_387_840) * 4 / GIB}
"""Autoencoder and text encoder in float32; their parameters as published."""
PRESETS: dict[str, dict[str, Any]] = {
    "sd15.json, sd2.json (batch 4)": {"batch": 4},
    "the same with gradient_checkpointing": {"batch": 4, "checkpointing": True},
    "low_memory.json without 8-bit Adam": {"batch": 1, "checkpointing": True},
    "low_memory.json": {"batch": 1, "checkpointing": True, "eight_bit": True},
    "lora.json": {"batch": 1, "checkpointing": True, "lora_rank": 16},
}


class StorageTracker(TorchDispatchMode):
    """Bytes of all storages that operations make within the mode, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def peak_gib(model: str, batch: int, checkpointing: bool = False, lora_rank: int = 0, eight_bit: bool = False) -> float:
    """Peak of parameters, gradients, optimizer states and activations of the U-Net's step at 512 x 512, in GiB."""
    tracker = StorageTracker()
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[model])
        if lora_rank:
            add_lora(unet, lora_rank)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with FakeTensorMode(), tracker:
        for module in unet.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(value.shape), requires_grad=value.requires_grad))
        network = DiffusionUNet(unet).train()
        trained = network.trainable_parameters()
        optimizer = torch.optim.AdamW(trained, lr=1e-6, foreach=False)
        for _ in range(2):  # the optimizer's states come with the first step
            inputs = torch.randn(batch, 4, 64, 64)
            context = torch.randn(batch, 77, UNETS[model]["cross_attention_dim"])
            with torch.autocast("cpu", torch.bfloat16):
                prediction = network(inputs, torch.zeros(batch, dtype=torch.long), context)
            prediction.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    peak = tracker.peak / GIB
    if eight_bit:  # two states of one byte in place of four, and a scale for every 256
        peak -= sum(parameter.numel() for parameter in trained) * (8 - 2 * (1 + 4 / 256)) / GIB
    return peak + FROZEN_GIB[model]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    print("| preset, 512 x 512, bfloat16 | " + " | ".join(UNETS) + " |")
    print("| --- |" + " --- |" * len(UNETS))
    for name, settings in PRESETS.items():
        peaks = [f"{peak_gib(model, **settings):.1f} GiB" for model in UNETS]
        print(f"| {name} | {' | '.join(peaks)} |", flush=True)


if __name__ == "__main__":
    main()
