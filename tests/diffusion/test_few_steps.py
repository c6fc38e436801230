"""Weights of few steps: how they are found and what they may be sampled with. How they are made: tests/small_models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodule_plugin.diffusion.provenance import check_few_steps, distilled, read_record
from nodule_plugin.errors import InputError

TAUGHT = {"teacher_sha256": "5f", "guidance_scale": 1.5, "scheduler_class": "DDIMScheduler", "steps": 4}
SETTINGS = {"scheduler": "DDIMScheduler", "num_inference_steps": 4, "precision": "float32"}


def write_weights(folder: Path, **record: Any) -> Path:
    """Weights that hold nothing, and what stands beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pt").touch()
    (folder / "model.json").write_text(json.dumps({"chain": "any", **record}))
    return folder / "model.pt"


def test_the_record_of_a_folder_is_that_of_the_weights_in_it(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "run" / "models")
    assert read_record(tmp_path / "run") == read_record(weights) == {"chain": "any"}
    assert read_record("base") == {}


def test_weights_of_few_steps_are_sampled_with_as_they_were_taught(tmp_path: Path) -> None:
    weights = write_weights(tmp_path, distilled=TAUGHT)
    taught = distilled(tmp_path)
    assert taught is not None
    assert (taught.steps, taught.guidance_scale) == (4, 1.5)
    check_few_steps(weights, SETTINGS, [{"guidance_scale": 1.0}, {"guidance_scale": 1}])


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"scheduler": "DPMSolverMultistepScheduler"}, [1.0]),
        ({"num_inference_steps": 5}, [1.0]),
        ({}, [1.0, 3.0]),
        ({}, [4.0]),
        ({"num_inference_steps": 1}, [4.0]),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], scales: list[float], tmp_path: Path) -> None:
    weights = write_weights(tmp_path, distilled=TAUGHT)
    requests = [{"guidance_scale": scale} for scale in scales]
    message = r"4 steps of DDIMScheduler with guidance 1\.5 built in; give steps=4, .* guidance_scales=1 \(the overlay"
    with pytest.raises(InputError, match=message):
        check_few_steps(weights, SETTINGS | settings, requests)


def test_weights_of_a_training_take_any_settings(tmp_path: Path) -> None:
    weights = write_weights(tmp_path)
    assert distilled(weights) is None
    check_few_steps(weights, SETTINGS | {"num_inference_steps": 50}, [{"guidance_scale": 7.5}])


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    weights = write_weights(tmp_path, distilled={"steps": 4})
    with pytest.raises(InputError, match=r"model\.json is no record of a training .*; restore it or remove it"):
        distilled(weights)
