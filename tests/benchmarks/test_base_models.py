from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from types import ModuleType

import pytest

from nodule_plugin.diffusion.components import load_noise_scheduler, load_text_encoder, load_unet, load_vae


@pytest.mark.parametrize(
    ("name", "expected"), [("sd15", (0.803, 2.407, 1.117, 0.013)), ("sd2", (0.804, 2.409, 1.117, 0.045))]
)
def test_operations_of_the_full_size_models(script: Callable[[str], ModuleType], name: str, expected: tuple) -> None:
    counted = script("base_models").count_operations(name, 512)
    assert astuple(counted) == pytest.approx(expected, abs=6e-4)


def test_the_small_model_divides_its_work_as_sd15_does(script: Callable[[str], ModuleType]) -> None:
    models = script("base_models")
    small, full = (models.count_operations(name, 512) for name in ("small", "sd15"))
    assert small.encoding / small.training == pytest.approx(full.encoding / full.training, rel=0.1)


def test_a_random_model_loads_as_a_base_model(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    folder = str(script("base_models").build_base_model("tiny", tmp_path / "tiny"))
    width = load_text_encoder(folder).config.hidden_size
    assert load_unet(folder).config.cross_attention_dim == width
    assert load_vae(folder).config.scaling_factor == 0.18215
    assert load_noise_scheduler(folder).config.prediction_type == "epsilon"
