"""Networks that turn images into the features which the distances between sets are measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torchvision
from torch import Tensor, nn

from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.extras import Extra
from nodule_plugin.metrics.feature_cache import Encoder
from nodule_plugin.metrics.openclip import OpenCLIPModel
from nodule_plugin.weights import UNREADABLE, load_strictly, one_line, read_weights, weights_sha256

timm = Extra("timm", "evaluate")
inception = Extra("torch_fidelity.feature_extractor_inceptionv3", "evaluate")


class FeatureExtractor(Encoder, Protocol):
    """(B, 3, H, W) images in [-1, 1] -> (B, D) features on the CPU.

    Attributes:
        name: as tables name it.
        unavailable: why it cannot be used (no weights were given), or None.

    It may have a ``convention``: input size, resampling and layer by name, which travel with every number.
    """

    @property
    def name(self) -> str: ...

    @property
    def unavailable(self) -> str | None: ...


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
    convention: Mapping[str, Any] = MappingProxyType(
        {"input_size": 299, "resampling": "bilinear, as TensorFlow 1", "layer": "pooled, 2048"}
    )

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

    @property
    def fingerprint(self) -> str:
        """See :class:`FeatureExtractor`."""
        return weights_sha256(self._network, "inception-v3-compat", "2048")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, 2048) features."""
        return self._network(to_uint8(images).to(self.device))[0].cpu()

    @cached_property
    def _network(self) -> nn.Module:
        if self.weights is None:
            raise InputError("Inception weights: none were given; name pt_inception-2015-12-05-6726825d.pth")
        # torch-fidelity unpickles whatever the file holds; this reading refuses all but tensors first.
        read_weights(self.weights, "Inception weights")
        try:
            network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(self.weights))
        except UNREADABLE as error:
            raise InputError(
                f"Inception weights {self.weights}: not torch-fidelity's state dict: {one_line(error)}"
            ) from error
        return network.to(self.device)


class OpenCLIPImageFeatures(OpenCLIPModel):
    """The image tower of a CLIP model as feature extractor (for CLIP-FID and the like).

    Args:
        model: see :class:`nodule_plugin.metrics.openclip.OpenCLIPModel`; its config states the preprocessing.
        name: as tables name it, never a name that belongs to another network; None for the model's own.
        device: where the tower runs.
    """

    def __init__(
        self, model: str | Path | None = None, name: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(model, device=device, name=name)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BackboneFeatures:
    """The pooled features of a torchvision or timm network, its weights from a local state dict.

    Images pass through 8 bits, are resized bilinearly with antialiasing to a square, and normalised.

    Args:
        architecture: ``torchvision/<name>`` (a ResNet, DenseNet or the like that ends in ``fc`` or ``classifier``) or
            ``timm/<name>``.
        weights: file with the state dict, as torchvision or timm publish it, with or without the classifier; or as
            RadImageNet does, whose names count the network's children (``backbone.0.weight``).
        name: as tables name it; None for architecture and file.
        image_size: side of the square.
        mean, std: of the normalisation of values from 0 to 1; those of ImageNet by default, 0.5 and 0.5 bring values
            to [-1, 1].
        device: where the network runs.

    Raises:
        InputError: if there is no such architecture or file, or (at first use) the file holds something else.
    """

    unavailable: str | None = None

    def __init__(
        self,
        architecture: str,
        weights: str | Path,
        name: str | None = None,
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        device: str | torch.device = "cpu",
    ) -> None:
        self.architecture, self.weights = architecture, Path(weights)
        if not self.weights.is_file():
            raise InputError(f"backbone weights {weights}: no such file; give {architecture}'s state dict")
        self._build = _builder(architecture)
        self.name = name or f"{architecture.partition('/')[2]} ({self.weights.name})"
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self.device = torch.device(device)

    @property
    def convention(self) -> Mapping[str, Any]:
        """Of the preprocessing, and the layer."""
        return {"input_size": self.image_size, "resampling": "bilinear, antialiased", "layer": "pooled"}

    @property
    def id(self) -> str:
        """Equal for extractors that give equal features."""
        return f"{self.architecture}:{self.weights}:{self.image_size}:{self.mean}:{self.std}"

    @property
    def fingerprint(self) -> str:
        """See :class:`FeatureExtractor`."""
        return weights_sha256(self._network, self.architecture, self.image_size, self.mean, self.std)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, D) features."""
        unit = to_uint8(images).to(self.device).float() / 255
        side = (self.image_size, self.image_size)
        resized = torch.nn.functional.interpolate(unit, side, mode="bilinear", antialias=True)
        shape = (1, 3, 1, 1)
        mean, std = (torch.tensor(values, device=self.device).reshape(shape) for values in (self.mean, self.std))
        return self._network((resized - mean) / std).flatten(1).float().cpu()

    @cached_property
    def _network(self) -> torch.nn.Module:
        network, classifier = self._build()
        weights = _known_names(network, read_weights(self.weights, "backbone weights"))
        where, of = f"backbone weights {self.weights}", f"a state dict of {self.architecture}"
        load_strictly(network, weights, where, of, spare=classifier)
        return network.eval().requires_grad_(False).to(self.device)


def _builder(architecture: str) -> Callable[[], tuple[torch.nn.Module, set[str]]]:
    """What makes the network without its classifier, and names the classifier's weights."""
    library, _, name = architecture.partition("/")
    if library == "timm" and timm.is_model(name):
        return lambda: _without_classifier(timm.create_model(name, pretrained=False))
    if library == "torchvision" and name in torchvision.models.list_models(torchvision.models):
        return lambda: _without_classifier(torchvision.models.get_model(name, weights=None))
    raise InputError(
        f"backbone {architecture!r}: no such network; give torchvision/<name> or timm/<name>, such as "
        "torchvision/resnet50"
    )


def _without_classifier(network: torch.nn.Module) -> tuple[torch.nn.Module, set[str]]:
    whole = set(network.state_dict())
    reset = getattr(network, "reset_classifier", None)  # timm's
    if reset is not None:
        reset(0)
    else:
        name = next((name for name in ("fc", "classifier", "head", "heads") if hasattr(network, name)), None)
        if name is None:
            raise InputError(f"backbone {type(network).__name__}: its classifier is not known; choose another network")
        setattr(network, name, torch.nn.Identity())
    return network, whole - set(network.state_dict())


def _known_names(network: torch.nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the network's own names, which RadImageNet's files and wrappers of several GPUs alter."""
    children = [name for name, _ in network.named_children()]
    renamed = {}
    for key, value in state.items():
        parts = key.removeprefix("module.").removeprefix("backbone.").split(".")
        if parts[0].isdigit() and int(parts[0]) < len(children):
            parts[0] = children[int(parts[0])]
        renamed[".".join(parts)] = value
    return renamed


def backbone_extractors(
    backbones: Sequence[str | Mapping[str, Any]] | None, device: str | torch.device = "cpu"
) -> list[FeatureExtractor]:
    """Further networks on which the distances are measured, from the ``fid_backbones`` setting.

    Args:
        backbones: each a dictionary of the arguments of :class:`BackboneFeatures`, a text
            ``<architecture>:<weights file>`` such as ``torchvision/resnet50:ResNet50.pt``, or ``open_clip:<model>``
            for the image tower of a CLIP model (see :class:`nodule_plugin.metrics.openclip.OpenCLIPModel`).
        device: where the networks run.

    Raises:
        InputError: if one cannot be understood, or two bear the same name.
    """
    extractors: list[FeatureExtractor] = []
    for backbone in backbones or ():
        if isinstance(backbone, Mapping):
            try:
                extractors.append(BackboneFeatures(**{"device": device, **backbone}))
            except TypeError as error:
                raise InputError(f"fid_backbones: {dict(backbone)}: {error}; see BackboneFeatures") from error
            continue
        kind, _, source = str(backbone).partition(":")
        if not source:
            raise InputError(
                f"fid_backbones: {backbone!r}; give such as torchvision/resnet50:weights.pt, timm/resnet18:weights.pt "
                "or open_clip:folder"
            )
        if kind == "open_clip":
            extractors.append(OpenCLIPImageFeatures(source, f"image tower of {OpenCLIPModel(source).name}", device))
        else:
            extractors.append(BackboneFeatures(kind, source, device=device))
    names = [extractor.name for extractor in extractors]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"fid_backbones: two are called {repeated[0]!r}; give one of them another name")
    return extractors
