"""The page without Python samples as Python does; its networks, which are ONNX, are tested in tests/export."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.diffusion.sampling import GuidedSampler, derive_scheduler, seeded_noise
from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES, Findings
from nodule_plugin.playground.drawing import START, Studio
from nodule_plugin.playground.static import describe_mark, describe_model, mark_signs, weighted_sums
from nodule_plugin.prompts import findings_to_prompt
from nodule_plugin.provenance.codebook import PUBLIC, WORDS
from nodule_plugin.provenance.marking import ImageMark

NOISE = [(0, 512), (7, 1024), (123456789, 100), (2**32 - 1, 256)]
REQUESTS = [
    {"prompt": "Round.", "guidance": 3.5, "seed": 11, "steps": 20},
    {"prompt": "Round.", "guidance": 1, "seed": 11, "steps": 20},
    {"prompt": "Oval.", "guidance": 0, "seed": 4, "steps": 10},
]
TEMPLATE = "detailed"
MARK, MARKED_SHAPE, MARKED_SEEDS = ImageMark(PUBLIC, "5f"), (2, 24, 30), (0, 8, 2**32 - 1)


class Decoder(nn.Module):
    """As that of run_sampling.mjs."""

    config = SimpleNamespace(scaling_factor=1.0)

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([0.9, 1.0, 1.1]))

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (torch.tanh(self.scales[:, None, None] * latents[:, :1]),)


def network(image: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """As that of run_sampling.mjs."""
    return 0.3 * image + context.reshape(-1, 1, 1, 1) - timesteps.reshape(-1, 1, 1, 1) / 2000


def embedding(prompt: str, settings: dict[str, Any]) -> Tensor:
    letters = [ord(letter) for letter in prompt] + [settings["tokens"]["pad"]] * 5
    return torch.tensor(letters[:5]).double().mean().float().reshape(1, 1, 1) / 1e5


@pytest.fixture(scope="module")
def settings(studio: Studio) -> dict[str, Any]:
    return json.loads(json.dumps(describe_model(studio.model, TEMPLATE)))


@pytest.fixture(scope="module")
def all_findings() -> list[dict[str, int]]:
    names = ("spiculation", "calcification")
    codes = itertools.product(*(SCALES[name].codes for name in names))
    return [{**START.to_dict(), **dict(zip(names, chosen))} for chosen in codes]


@pytest.fixture(scope="module")
def made(settings: dict[str, Any], all_findings: list[dict[str, int]], web: Path) -> dict[str, Any]:
    """What sampling.js gives."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js, which runs the page's JavaScript, is not installed")
    program = Path(__file__).with_name("run_sampling.mjs")
    given = {"settings": settings, "requests": REQUESTS, "noise": NOISE, "findings": all_findings}
    signs = base64.b64encode(mark_signs(MARK, MARKED_SHAPE[0])).decode()
    given["marked"] = {"mark": describe_mark(MARK), "signs": signs, "shape": MARKED_SHAPE, "seeds": MARKED_SEEDS}
    # As data, so that Node takes them for the modules that they are: their folder has no package.json to say so.
    texts = [base64.b64encode((web / name).read_bytes()).decode() for name in ("sampling.js", "mark.js")]
    command = [node, str(program), *(f"data:text/javascript;base64,{text}" for text in texts)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_noise_is_that_of_torch(made: dict[str, Any]) -> None:
    for (seed, count), noise in zip(NOISE, made["noise"]):
        expected = seeded_noise([seed], (count,))[0]
        np.testing.assert_allclose(noise, expected, rtol=0, atol=4e-6)  # torch's logarithm is a vectorised one


def test_marked_noise_is_that_of_python(made: dict[str, Any]) -> None:
    noise = seeded_noise(MARKED_SEEDS, MARKED_SHAPE)
    np.testing.assert_allclose(np.reshape(made["marked"], noise.shape), MARK(noise, MARKED_SEEDS), rtol=0, atol=1e-5)
    told = describe_mark(MARK)
    assert told is not None
    assert len(mark_signs(MARK, 1)) * 8 == WORDS * sum(len(band) for band in told["bands"])
    assert float((MARK(noise, MARKED_SEEDS) - noise).abs().mean()) > 0.1


def test_prompts_are_those_of_the_template(made: dict[str, Any], all_findings: list[dict[str, int]]) -> None:
    expected = [findings_to_prompt(Findings.from_dict(findings), TEMPLATE) for findings in all_findings]
    assert made["prompts"] == expected


def test_images_are_those_of_the_sampler(made: dict[str, Any], settings: dict[str, Any], studio: Studio) -> None:
    for request, image in zip(REQUESTS, made["images"]):
        sampler = GuidedSampler(studio.model.scheduler, Decoder(), request["steps"], scheduler_class=None)
        expected = sampler(
            seeded_noise([request["seed"]], studio.model.latent_shape),
            network,
            context=embedding(request["prompt"], settings),
            unconditional=embedding("", settings),
            guidance_scale=request["guidance"],
        )
        hu = np.rint(unit_to_hu(expected[0].mean(0).numpy(), studio.window_hu))
        assert hu.std() > 20
        assert np.abs(np.array(image) - hu.flatten()).max() <= 1


def test_a_prompt_that_is_too_long_is_refused(made: dict[str, Any]) -> None:
    assert made["refused"] == "the prompt has 200 tokens, and the model takes 77"


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_samplers_without_noise_are_weighted_sums(studio: Studio, name: str) -> None:
    scheduler = derive_scheduler(studio.model.scheduler, name)
    sums = weighted_sums(scheduler, 12)
    scheduler.set_timesteps(12)
    assert sums["timesteps"] == scheduler.timesteps.tolist()
    assert [len(weights) for weights in sums["inputs"]] == list(range(1, len(sums["timesteps"]) + 1))


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "DDPMScheduler"])
def test_samplers_that_draw_noise_are_refused(studio: Studio, name: str) -> None:
    with pytest.raises(InputError, match=rf"scheduler: {name} needs Python"):
        weighted_sums(derive_scheduler(studio.model.scheduler, name), 12)
