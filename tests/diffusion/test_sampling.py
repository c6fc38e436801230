from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.latent_space import scaled
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import (
    SMALL_NETWORK,
    GenerationPrepareBatch,
    GuidedSampler,
    calls_at_once,
    decode_latents,
    derive_scheduler,
    seeded_noise,
)
from nodule_plugin.errors import InputError

PROMPTS = ("The nodule is round in shape, solid internally, with well-defined margins.", "a", "b", "c", "d")


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def any_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("base"))


class Model:
    """The parts of one base model, and requests in and images out."""

    def __init__(self, folder: Path) -> None:
        self.scheduler = load_noise_scheduler(str(folder))
        self.vae = load_vae(str(folder))
        self.network = DiffusionUNet.from_base(str(folder)).eval()
        self.conditioner = TextConditioner(load_tokenizer(str(folder)), load_text_encoder(str(folder)))

    def sample(self, scales: list[float], seeds: list[int], batch: int = 99, **settings: Any) -> torch.Tensor:
        sampler = GuidedSampler(self.scheduler, self.vae, **{"num_inference_steps": 4, **settings})
        prepare = GenerationPrepareBatch(self.conditioner, self.vae, 32)
        requests = [
            {"prompt": PROMPTS[index % len(PROMPTS)], "guidance_scale": scale, "seed": seed}
            for index, (scale, seed) in enumerate(zip(scales, seeds))
        ]
        images = []
        for start in range(0, len(requests), batch):
            noise, _, args, kwargs = prepare(requests[start : start + batch], "cpu")
            images.append(sampler(noise, self.network, *args, **kwargs))
        return torch.cat(images)


@pytest.fixture(scope="module")
def model(base: Path) -> Model:
    return Model(base)


@pytest.fixture(scope="module")
def pair(any_base: Path) -> tuple[StableDiffusionPipeline, Model]:
    pipeline = StableDiffusionPipeline.from_pretrained(any_base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, Model(any_base)


@pytest.mark.parametrize(
    ("scheduler", "steps", "scale", "rescale"),
    [
        ("DPMSolverMultistepScheduler", 5, 7.5, 0.0),
        ("DPMSolverMultistepScheduler", 5, 1.0, 0.0),
        ("PNDMScheduler", 6, 7.5, 0.0),
        ("DDIMScheduler", 4, 30.0, 0.7),
        ("EulerDiscreteScheduler", 4, 3.0, 0.0),
        ("EulerAncestralDiscreteScheduler", 4, 3.0, 0.0),
        ("UniPCMultistepScheduler", 4, 3.0, 0.0),
    ],
)
def test_equals_diffusers_pipeline(
    pair: tuple[StableDiffusionPipeline, Model], scheduler: str, steps: int, scale: float, rescale: float
) -> None:
    pipeline, model = pair
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(model.scheduler.config)
    expected = pipeline(
        PROMPTS[0],
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_rescale=rescale,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    settings = {"scheduler_class": scheduler, "num_inference_steps": steps, "guidance_rescale": rescale}
    actual = model.sample([scale], [3], **settings)
    assert actual.shape == (1, 3, 32, 32)
    assert actual.std() > 0.01
    torch.testing.assert_close((actual / 2 + 0.5), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"scheduler_class": "EulerAncestralDiscreteScheduler"}, {"precision": "bfloat16"}, {"calls_at_once": 3}],
)
def test_images_do_not_depend_on_batch_size(model: Model, settings: dict[str, Any]) -> None:
    scales, seeds = [5.0, 1.0, 5.0, 2.5, 0.0], [0, 1, 2, 2, 3]
    images = [model.sample(scales, seeds, batch, num_inference_steps=2, **settings) for batch in (1, 2, 5)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0][2], images[0][3])


def test_images_per_call_changes_images_by_rounding_only(model: Model) -> None:
    scales, seeds = [5.0, 1.0, 5.0, 2.5, 0.0], [0, 1, 2, 2, 3]
    expected = model.sample(scales, seeds, guidance_rescale=0.7)
    for images_per_call in (3, 4):
        actual = model.sample(scales, seeds, images_per_call=images_per_call, guidance_rescale=0.7)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_groups_sampled_at_once_are_as_one_by_one(model: Model) -> None:
    scales, seeds = [5.0, 1.0, 0.0, 2.5, 4.0], [0, 1, 2, 2, 3]
    threads = torch.get_num_threads()
    assert calls_at_once(model.network) == threads
    torch.set_num_threads(1)  # a share of one thread either way
    try:
        assert torch.equal(model.sample(scales, seeds, calls_at_once=2), model.sample(scales, seeds))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_large_network_has_all_threads() -> None:
    assert calls_at_once(torch.nn.Linear(SMALL_NETWORK, 1, device="meta")) == 1


def test_calls_do_not_influence_each_other(model: Model) -> None:
    sampler = GuidedSampler(model.scheduler, model.vae, 5, "PNDMScheduler")
    prepare = GenerationPrepareBatch(model.conditioner, model.vae, 32)
    noise, _, _, kwargs = prepare([{"prompt": "a", "guidance_scale": 3, "seed": 0}], "cpu")
    assert torch.equal(sampler(noise, model.network, **kwargs), sampler(noise, model.network, **kwargs))


def test_scales_may_differ_within_a_batch(model: Model) -> None:
    together = model.sample([0.0, 1.0, 4.0], [7, 7, 7], images_per_call=1)
    for index, scale in enumerate([0.0, 1.0, 4.0]):
        alone = model.sample([9.0] * index + [scale], [7] * (index + 1))
        assert torch.equal(together[index], alone[index])


class Recorder:
    """A network that predicts the mean of its context, and remembers how it was called."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.contexts: set[float] = set()

    def __call__(self, image: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        assert timesteps.shape == (len(image),)
        self.batches.append(len(image))
        self.contexts |= set(context.mean((1, 2)).tolist())
        return torch.ones_like(image) * context.mean((1, 2)).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("scale", "interval", "batches"),
    [
        (1.0, None, [1] * 4),
        (0.0, None, [1] * 4),
        (5.0, None, [2] * 4),
        (5.0, (0.25, 0.75), [1, 2, 2, 1]),
        (0.0, (0.25, 0.75), [1] * 4),
    ],
)
def test_network_runs_only_as_often_as_guidance_needs(
    model: Model, scale: float, interval: tuple[float, float] | None, batches: list[int]
) -> None:
    network = Recorder()
    sampler = GuidedSampler(model.scheduler, model.vae, 4, "DDIMScheduler", guidance_interval=interval)
    sampler(seeded_noise([0], (4, 4, 4)), network, context=torch.ones(1, 3, 2), unconditional=torch.zeros(1, 3, 2),
            guidance_scale=scale)  # fmt: skip
    assert network.batches == batches
    assert network.contexts == {0.0: {0}, 1.0: {1}, 5.0: {0, 1}}[scale]


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.5), (1.0, 1.0), (3.0, 2.0)])
def test_guided_prediction_is_u_plus_s_times_c_minus_u(model: Model, scale: float, expected: float) -> None:
    # One step of DDIM to alpha = 1 is (x - sqrt(1 - a) eps) / sqrt(a): the prediction can be read from the outcome.
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    sampler = GuidedSampler(scheduler, model.vae, 1, "DDIMScheduler")
    noise = seeded_noise([0], (4, 4, 4))
    context, empty = torch.ones(1, 3, 2), torch.full((1, 3, 2), 0.5)
    image = sampler(noise, Recorder(), context=context, unconditional=empty, guidance_scale=scale)
    torch.testing.assert_close(image, decode_latents(model.vae, torch.full_like(noise, expected)), atol=1e-5, rtol=0)


def test_shift_factor_of_the_base_model_is_used(model: Model) -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.config = type("Config", (), {"scaling_factor": 2.0, "shift_factor": 0.25})

        def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (latents,)

    assert decode_latents(Shifted(), torch.ones(1, 3, 2, 2)).unique().tolist() == [0.75]
    assert scaled(Shifted(), torch.full((1,), 0.75)).item() == 1


def test_noise_of_a_seed_is_its_own() -> None:
    noise = seeded_noise([5, 6], (4, 8, 8))
    assert noise.shape == (2, 4, 8, 8)
    assert torch.equal(noise[1:], seeded_noise([6], (4, 8, 8)))
    assert torch.equal(noise[0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5)))


def test_noise_of_the_steps_differs_from_the_first(model: Model) -> None:
    first, second = model.sample([1.0, 1.0], [0, 1], scheduler_class="DDPMScheduler", images_per_call=2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_guidance_scale_is_named(model: Model, scale: float) -> None:
    with pytest.raises(InputError, match="guidance_scale: a number of 0 or above is needed"):
        model.sample([5.0, scale], [0, 0])


def test_guidance_needs_the_empty_prompt(model: Model) -> None:
    sampler = GuidedSampler(model.scheduler, model.vae)
    with pytest.raises(InputError, match="empty prompt"):
        sampler(torch.zeros(1, 4, 4, 4), model.network, context=torch.zeros(1, 77, 16), guidance_scale=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps: a whole number"),
        ({"images_per_call": 0}, "images_per_call: a whole number"),
        ({"guidance_interval": [0.5, 0.2]}, "guidance_interval: two rising numbers"),
        ({"guidance_interval": 0.5}, "guidance_interval: two rising numbers from 0 to 1 are needed, not 0.5"),
        ({"guidance_rescale": 2.0}, "guidance_rescale: a number from 0 to 1"),
        ({"precision": "int8"}, "precision: choose one of float32, bfloat16, float16"),
        ({"scheduler_class": "NoScheduler"}, "scheduler_class: 'NoScheduler' does not fit .* DPMSolverMultistep"),
    ],
)
def test_bad_settings_are_named(model: Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GuidedSampler(model.scheduler, model.vae, **settings)


@pytest.mark.parametrize("steps", [1000, 1001])
@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"],
)
def test_steps_beyond_the_training_are_refused(model: Model, name: str, steps: int) -> None:
    with pytest.raises(InputError, match=f"steps: {steps} .*{name}"):
        GuidedSampler(model.scheduler, model.vae, steps, name)
    GuidedSampler(model.scheduler, model.vae, 998, name)


def test_a_scheduler_whose_package_is_missing_names_it(model: Model) -> None:
    if find_spec("torchsde") is not None:
        pytest.skip("torchsde is installed")
    with pytest.raises(InputError, match=r"scheduler_class: DPMSolverSDEScheduler needs .*pip install torchsde"):
        GuidedSampler(model.scheduler, model.vae, 2, "DPMSolverSDEScheduler")


def test_derived_scheduler_keeps_the_base_models_schedule(any_base: Path) -> None:
    scheduler = load_noise_scheduler(str(any_base))
    derived = derive_scheduler(scheduler, "DPMSolverMultistepScheduler")
    assert derived.config.prediction_type == scheduler.config.prediction_type
    assert derived.config.beta_end == 0.012


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_zero_terminal_snr_gives_finite_images(model: Model, name: str) -> None:
    # At the first step such a model sees noise alone (Lin et al. 2023): an alpha of 0, which schedulers divide by.
    scheduler = DDPMScheduler.from_config(
        model.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    sampler = GuidedSampler(scheduler, model.vae, 4, name)
    context = model.conditioner(["a"])
    image = sampler(seeded_noise([0], (4, 4, 4)), model.network, context=context, unconditional=context * 0,
                    guidance_scale=5)  # fmt: skip
    assert torch.isfinite(image).all()
    assert image.std() > 0.01


@pytest.mark.parametrize("size", [0, 30, "64"])
def test_image_size_that_the_vae_cannot_make(model: Model, size: Any) -> None:
    with pytest.raises(InputError, match="image_size: a multiple of 8"):
        GenerationPrepareBatch(model.conditioner, model.vae, size)


def test_too_long_prompt_is_found_before_sampling(model: Model) -> None:
    with pytest.raises(InputError, match="tokens, and the text encoder takes 77"):
        GenerationPrepareBatch(model.conditioner, model.vae, 32, prompts=["nodule " * 80])
