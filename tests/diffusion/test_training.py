from __future__ import annotations

import pytest
import torch
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.training import (
    DenoisingPrepareBatch,
    ValidationPrepareBatch,
    denoising_target,
    encode_images,
)
from nodule_plugin.errors import InputError


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    base = str(make_tiny_sd(tmp_path_factory.mktemp("sd"), request.param))
    return {
        "vae": load_vae(base),
        "conditioner": TextConditioner(load_tokenizer(base), load_text_encoder(base)),
        "noise_scheduler": load_noise_scheduler(base),
    }


@pytest.fixture
def batch() -> dict:
    torch.manual_seed(1)
    return {"image": torch.rand(3, 3, 64, 64) * 2 - 1, "prompt": ["a", "b", "c"], "id": ["n1", "n2", "n3"]}


def test_latents_are_scaled_as_the_autoencoder_says(parts: dict, batch: dict) -> None:
    latents = torch.stack([encode_images(parts["vae"], batch["image"]) for _ in range(20)]).mean(0)
    expected = parts["vae"].encode(batch["image"]).latent_dist.mean * 0.18215
    assert latents.shape == (3, 4, 8, 8)
    assert (latents - expected).abs().mean() < 0.1


def test_the_target_recovers_the_latents(parts: dict) -> None:
    """Noise and velocity both determine the clean latents, by formulas other than those under test."""
    scheduler = parts["noise_scheduler"]
    torch.manual_seed(0)
    latents, noise, timesteps = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([1, 250, 600, 990])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = denoising_target(scheduler, latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "epsilon":
        recovered = (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt()
    else:
        recovered = alpha.sqrt() * noisy - (1 - alpha).sqrt() * target
    assert torch.allclose(recovered, latents, atol=1e-3)


def test_sample_prediction_and_unknown_types(parts: dict) -> None:
    latents = torch.randn(1, 4, 8, 8)
    kind = parts["noise_scheduler"].__class__
    assert denoising_target(kind(prediction_type="sample"), latents, latents + 1, torch.tensor([3])) is latents
    scheduler = kind()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(InputError, match="'score'"):
        denoising_target(scheduler, latents, latents, torch.tensor([3]))


@pytest.mark.parametrize(("dropout", "dropped"), [(0.0, 0), (1.0, 3)])
def test_dropped_captions_are_the_empty_prompt(parts: dict, batch: dict, dropout: float, dropped: int) -> None:
    _, _, _, conditions = DenoisingPrepareBatch(**parts, caption_dropout=dropout)(batch)
    empty = parts["conditioner"]([""])[0]
    assert sum(torch.equal(row, empty) for row in conditions["context"]) == dropped


def test_caption_dropout_drops_its_share(parts: dict, batch: dict) -> None:
    torch.manual_seed(0)
    large = {"image": batch["image"][:1, :, :8, :8].repeat(400, 1, 1, 1), "prompt": ["a"] * 400}
    _, _, _, conditions = DenoisingPrepareBatch(**parts, caption_dropout=0.1)(large)
    empty = parts["conditioner"]([""])[0]
    assert 20 < sum(torch.equal(row, empty) for row in conditions["context"]) < 60


def test_a_dropout_that_is_no_share_is_refused(parts: dict) -> None:
    with pytest.raises(InputError, match=r"caption_dropout.*1\.5"):
        DenoisingPrepareBatch(**parts, caption_dropout=1.5)


def test_a_batch_is_what_the_network_takes(parts: dict, batch: dict) -> None:
    noisy, target, args, conditions = DenoisingPrepareBatch(**parts)(batch, device="cpu")
    assert noisy.shape == target.shape == (3, 4, 8, 8)
    assert args == ()
    assert conditions["timesteps"].shape == (3,)
    assert conditions["context"].shape == (3, 77, 16)


def test_validation_noise_belongs_to_the_item(parts: dict, batch: dict) -> None:
    prepare = ValidationPrepareBatch(parts["conditioner"], parts["vae"], image_size=64, guidance_scale=2.0)
    noise, images, _, conditions = prepare(batch, device="cpu")
    reversed_batch = {"image": batch["image"].flip(0), "prompt": ["c", "b", "a"], "id": ["n3", "n2", "n1"]}
    assert torch.equal(prepare(reversed_batch)[0].flip(0), noise)
    assert torch.equal(images, batch["image"])
    assert conditions["guidance_scale"] == [2.0] * 3
    assert not torch.equal(noise[0], noise[1])
