from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from small_models.scorer import save_scorer
from tiny_inception import make_inception

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
    """An Inception with random weights in torch-fidelity's file format."""
    return make_inception(tmp_path_factory.mktemp("inception") / "weights.pth")
