from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from single_files import make_pair
from tiny_sd import make_tiny_sd, make_tuned_weights

from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.model import FineTunedModel, Source, load_model
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch, GuidedSampler

PROMPT = "The nodule is round in shape, solid internally, with well-defined margins."
PREDICTION = {1: "epsilon", 2: "v_prediction"}


@dataclass(frozen=True)
class Sampled:
    """A fine-tuned model and an image that this package makes with it.

    Attributes:
        source: of the model.
        model: loaded.
        noise: (1, C, h, w), that the image was made from, in three steps at guidance scale 3.
        image: (1, 3, H, W) in [-1, 1].
    """

    source: Source
    model: FineTunedModel
    noise: torch.Tensor
    image: torch.Tensor


def sampled(source: Source) -> Sampled:
    model = load_model(source)
    conditioner = TextConditioner(model.tokenizer, model.text_encoder)
    request = {"prompt": PROMPT, "guidance_scale": 3, "seed": 0}
    noise, _, _, conditions = GenerationPrepareBatch(conditioner, model.vae, model.image_size)([request], "cpu")
    image = GuidedSampler(model.scheduler, model.vae, 3, scheduler_class=None)(noise, model.network, **conditions)
    assert image.std() > 0.05
    return Sampled(source, model, noise, image)


@pytest.fixture(scope="session")
def metadata(repository: Path) -> dict[str, Any]:
    """Of the bundle."""
    return json.loads((repository / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session", params=[1, 2])
def stable_diffusion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """A small Stable Diffusion 1, and one of version 2 with v-prediction, with other weights than its base model's."""
    version = request.param
    base, _ = make_pair(tmp_path_factory.mktemp("sd"), version, PREDICTION[version])
    weights = make_tuned_weights(base, base / "model.pt", scale=0.01)
    training = {"chain": "roi-cubic-2", "image_size": [32, 32], "window_hu": [-1000, 400], "kernel": "cubic"}
    weights.with_suffix(".json").write_text(json.dumps(training))
    return sampled(Source(str(base), str(weights)))


@pytest.fixture(scope="session")
def small(repository: Path) -> Sampled:
    """The small model of the bundle."""
    models = repository / "bundle" / "models"
    return sampled(Source(str(models / "tiny"), str(models / "model.pt")))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model smaller than Stable Diffusion's constants allow."""
    return make_tiny_sd(tmp_path_factory.mktemp("base"), "v_prediction", levels=2, all_tokens=True)
