"""An Inception with random weights in the file format that torch-fidelity publishes its own in, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inception


def make_inception(file: Path) -> Path:
    """Write a state dict with the published one's names and shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    draw = torch.Generator().manual_seed(0)
    torch.save({name: _random(name, value.shape, draw) for name, value in network.state_dict().items()}, file)
    return file


def _random(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """As networks are initialised, so that features neither vanish nor overflow."""
    noise = torch.randn(shape, generator=draw)
    if len(shape) > 1:
        return noise * (2 / shape[1:].numel()) ** 0.5
    spread = name.endswith((".running_var", "bn.weight"))
    return 1 + 0.1 * noise.abs() if spread else 0.1 * noise
