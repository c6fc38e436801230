from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.diffusion.provenance import Distilled
from nodule_plugin.playground.drawing import Studio
from nodule_plugin.weights import file_sha256, save_tensors


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
def quick_source(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """That model with weights of its own, beside which lie others that say they need few steps."""
    folder = tmp_path_factory.mktemp("weights")
    network = load_model(source).network
    save_tensors(network.state_dict(), folder / "model.pt")
    (folder / "few_steps").mkdir()
    changed = {name: 1.1 * value for name, value in network.state_dict().items()}
    save_tensors(changed, folder / "few_steps" / "model.pt")
    taught = Distilled(file_sha256(folder / "model.pt"), 2.0, "DDIMScheduler", 4)
    record = {"chain": "any", "guidance": {"scale": 1.0, "split": "validation"}, "distilled": asdict(taught)}
    (folder / "few_steps" / "model.json").write_text(json.dumps(record))
    return replace(source, weights=str(folder / "model.pt"))


@pytest.fixture(scope="session")
def web(repository: Path) -> Path:
    """The pages' own files."""
    return repository / "nodule_plugin" / "playground" / "web"
