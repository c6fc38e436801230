"""Perceptual distance between two images: LPIPS, and the same formula on other networks' feature maps.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Protocol

import lpips
import torch
import torch.nn.functional as F
from torch import Tensor

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.openclip import OpenCLIPModel
from nodule_plugin.weights import load_strictly, read_weights

DOWNLOAD = "download"
"""As ``weights`` of :class:`LPIPSDistance`: let torchvision fetch the ImageNet weights."""


class PerceptualDistance(Protocol):
    """Two batches of (B, 3, H, W) images in [-1, 1], of the same size -> (B,) distances on the CPU, 0 for equal images.

    Attributes:
        name: as tables name it.
        unavailable: why it cannot be used, or None.
    """

    @property
    def name(self) -> str: ...

    @property
    def unavailable(self) -> str | None: ...

    def __call__(self, first: Tensor, second: Tensor) -> Tensor: ...


class LPIPSDistance:
    """LPIPS version 0.1, loaded at first use. Its linear weights come with the lpips package.

    Args:
        weights: torchvision's ImageNet state dict of the backbone (``alexnet-owt-7be5be79.pth``,
            ``vgg16-397923af.pth``, ``squeezenet1_1-b8a52dc0.pth``), or ``"download"``; None: none given, see
            :attr:`unavailable`.
        net: ``alex``, ``vgg`` or ``squeeze``.
        device: where the network runs.

    Raises:
        InputError: for an unknown net, a missing file, or (at first use) a file with something else.
    """

    def __init__(
        self, weights: str | Path | None = None, net: str = "alex", device: str | torch.device = "cpu"
    ) -> None:
        if net not in ("alex", "vgg", "squeeze"):
            raise InputError(f"LPIPS net: choose alex, vgg or squeeze, not {net!r}")
        if weights not in (None, DOWNLOAD) and not Path(str(weights)).is_file():
            raise InputError(f"LPIPS weights {weights}: no such file; give torchvision's state dict, or {DOWNLOAD!r}")
        self.weights, self.net, self.device = weights, net, torch.device(device)

    @property
    def name(self) -> str:
        """With the backbone, on which the number depends."""
        return f"LPIPS v0.1 ({self.net})"

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be computed, or None."""
        return "no weights given" if self.weights is None else None

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair; see :class:`PerceptualDistance`."""
        return self._network(first.to(self.device), second.to(self.device)).flatten().cpu()

    @cached_property
    def _network(self) -> lpips.LPIPS:
        if self.weights is None:
            raise InputError("LPIPS weights: none were given; name torchvision's state dict of the backbone")
        network = lpips.LPIPS(net=self.net, pretrained=False, pnet_rand=self.weights != DOWNLOAD, verbose=False)
        linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{self.net}.pth"
        layers = torch.nn.ModuleDict({f"lin{number}": layer for number, layer in enumerate(network.lins)})
        where = f"LPIPS linear weights {linear}"
        load_strictly(layers, read_weights(linear, "LPIPS linear weights"), where, "those of the lpips package")
        if self.weights != DOWNLOAD:
            _load_backbone(network.net, Path(self.weights))
        return network.eval().requires_grad_(False).to(self.device)


def _load_backbone(backbone: torch.nn.Module, file: Path) -> None:
    """Put torchvision's ``features.<i>.<kind>`` into the slices of lpips, which keep those numbers."""
    weights = read_weights(file, "LPIPS weights")
    slices = {"features." + re.sub(r"^slice\d+\.", "", name): name for name in backbone.state_dict()}
    renamed = {slices.get(name, name): value for name, value in weights.items()}
    classifier = [name for name in weights if name.startswith("classifier.")]
    load_strictly(backbone, renamed, f"LPIPS weights {file}", "torchvision's state dict of this backbone", classifier)


class FeatureMapDistance:
    """LPIPS's formula, every channel weighing the same, on the feature maps of a CLIP model's image tower.

    At each stage both maps are scaled to unit length along the channels; the squared difference is summed over
    channels, averaged over positions, and summed over stages. It is not LPIPS: nothing in it was fitted to human eyes.

    Args:
        model: see :class:`nodule_plugin.metrics.openclip.OpenCLIPModel`.
        name: as tables name it; never LPIPS alone.
        device: where the tower runs.
    """

    def __init__(
        self, model: str | Path | None = None, name: str = "feature-map distance", device: str | torch.device = "cpu"
    ) -> None:
        self.clip = OpenCLIPModel(model, device=device)
        self.name = name

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be computed, or None."""
        return self.clip.unavailable

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair; see :class:`PerceptualDistance`."""
        maps = [self.clip.image_feature_maps(images) for images in (first, second)]
        stages = [
            (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean((1, 2))
            for one, other in zip(*maps)
        ]
        return torch.stack(stages).sum(0)
