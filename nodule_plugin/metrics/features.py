"""Networks that turn images into the features which the distances between sets are measured on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.openclip import OpenCLIPModel


class FeatureExtractor(Protocol):
    """(B, 3, H, W) images in [-1, 1] -> (B, ``dim``) features on the CPU.

    Attributes:
        id: equal for extractors that give equal features, which are then computed once.
        name: as tables name it.
        unavailable: why it cannot be used (no weights were given), or None.
        dim: features of an image; may load the weights.
    """

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def unavailable(self) -> str | None: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, images: Tensor) -> Tensor: ...


class InceptionFeatures:
    """The 2,048 pooled features of the Inception network on which FID and KID are defined.

    The network is torch-fidelity's port of the TensorFlow graph of 2015-12-05. Images pass through 8 bits, are resized
    to 299 x 299 bilinearly in TensorFlow 1's way, and scaled by (x - 128) / 128, all as there.

    Args:
        weights: ``pt_inception-2015-12-05-6726825d.pth`` (torch-fidelity and pytorch-fid publish the same file); None:
            no weights, see :attr:`unavailable`.
        device: where the network runs.

    Raises:
        InputError: if there is no such file, or (at first use) it holds something else.
    """

    name = "Inception v3 (2015-12-05)"
    dim = 2048

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        if weights is not None and not Path(weights).is_file():
            raise InputError(f"Inception weights {weights}: no such file; give pt_inception-2015-12-05-6726825d.pth")
        self.weights = weights
        self.device = torch.device(device)

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be computed, or None."""
        return "no weights given" if self.weights is None else None

    @property
    def id(self) -> str:
        """Equal for extractors that give equal features."""
        return f"inception:{self.weights}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, 2048) features."""
        return self._network(to_uint8(images).to(self.device))[0].cpu()

    @cached_property
    def _network(self) -> FeatureExtractorInceptionV3:
        if self.weights is None:
            raise InputError("Inception weights: none were given; name pt_inception-2015-12-05-6726825d.pth")
        try:
            # torch-fidelity unpickles whatever the file holds; this reading refuses all but tensors first.
            torch.load(self.weights, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(self.weights))
        except (RuntimeError, UnpicklingError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"Inception weights {self.weights}: not torch-fidelity's state dict: {reason}") from error
        return network.to(self.device)


class OpenCLIPImageFeatures:
    """The image tower of a CLIP model as feature extractor (for CLIP-FID and the like).

    Args:
        model: see :class:`nodule_plugin.metrics.openclip.OpenCLIPModel`; its config states the preprocessing.
        name: as tables name it; never a name that belongs to another network.
        device: where the tower runs.
    """

    def __init__(
        self, model: str | Path | None = None, name: str = "CLIP image tower", device: str | torch.device = "cpu"
    ) -> None:
        self.clip = OpenCLIPModel(model, device=device)
        self.name = name

    @property
    def id(self) -> str:
        """Equal for extractors that give equal features."""
        return self.clip.id

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be computed, or None."""
        return self.clip.unavailable

    @property
    def dim(self) -> int:
        """Size of the embedding."""
        return self.clip.embedding_size

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, D) embeddings, not normalised."""
        return self.clip.encode_images(images)
