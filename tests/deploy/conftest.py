from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.network import DiffusionUNet


@pytest.fixture(scope="session")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tiny base model and a U-Net that differs from the base model's."""
    root = tmp_path_factory.mktemp("models") / "bundle"
    base = make_tiny_sd(root / "models" / "tiny", "v_prediction")
    network = DiffusionUNet.from_base(str(base))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    torch.save(network.state_dict(), root / "models" / "model.pt")
    (root / "configs").mkdir()
    shutil.copy(repository / "bundle" / "configs" / "inference.json", root / "configs")
    return root
