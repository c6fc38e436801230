from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inception

from nodule_plugin.tiny.scorer import save_scorer

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small CLIP with random weights in open_clip's folder layout."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_scorer(open_clip.CLIP(**SMALL), folder, card="random weights", config=SMALL)
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    """Six grey images in [-1, 1]."""
    return (torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1).expand(-1, 3, -1, -1)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict with the published one's names and shapes, and random values."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
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
