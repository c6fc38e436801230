from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from types import ModuleType

import pytest

from nodule_plugin.diffusion.components import load_noise_scheduler, load_text_encoder, load_unet, load_vae


def test_operations_of_the_full_size_models(script: Callable[[str], ModuleType]) -> None:
    """And the small model of the benchmarks divides its work as Stable Diffusion does."""
    sd15, sd2, small = (script("base_models").count_operations(name, 512) for name in ("sd15", "sd2", "small"))
    assert astuple(sd15) == pytest.approx((0.803, 2.407, 1.117, 0.013), abs=6e-4)
    assert astuple(sd2) == pytest.approx((0.804, 2.409, 1.117, 0.045), abs=6e-4)
    assert small.encoding / small.training == pytest.approx(sd15.encoding / sd15.training, rel=0.1)


def test_a_random_model_loads_as_a_base_model(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    folder = str(script("base_models").build_base_model("tiny", tmp_path / "tiny"))
    width = load_text_encoder(folder).config.hidden_size
    assert load_unet(folder).config.cross_attention_dim == width
    assert load_vae(folder).config.scaling_factor == 0.18215
    assert load_noise_scheduler(folder).config.prediction_type == "epsilon"
