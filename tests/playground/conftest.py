from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.model import Source
from nodule_plugin.playground.drawing import Studio


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A base model with latents of three channels, so that no shape can be taken for granted."""
    base = make_tiny_sd(tmp_path_factory.mktemp("base"), "v_prediction", latent_channels=3, levels=2, all_tokens=True)
    return Source(str(base), image_size=16)


@pytest.fixture(scope="session")
def studio(source: Source) -> Studio:
    """That model, ready to draw."""
    return Studio(source)


@pytest.fixture(scope="session")
def web(repository: Path) -> Path:
    """The pages' own files."""
    return repository / "nodule_plugin" / "playground" / "web"
