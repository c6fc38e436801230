from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from full_disk import full_disk
from tiny_sd import make_tiny_sd
from training_run import Run

from nodule_plugin.data.latents import LatentCache
from nodule_plugin.data.order import sample_seed
from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.encoding import LatentEncoder, draw_latents, open_latent_cache, remember_prompts
from nodule_plugin.diffusion.training import (
    DenoisingLoss,
    DenoisingPrepareBatch,
    DenoisingTarget,
    ValidationPrepareBatch,
    denoising_target,
    min_snr_weights,
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


def make_batch(count: int = 3, size: int = 64) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": [torch.rand(3, size, size, generator=generator) * 2 - 1 for _ in range(count)],
        "moments": [None] * count,
        "prompt": [f"nodule {number % 3}" for number in range(count)],
        "id": [f"n{number}" for number in range(count)],
        "index": list(range(count)),
        "orientation": [0] * count,
        "seed": [sample_seed(number) for number in range(count)],
        "weight": [1 / count] * count,
    }


def test_latents_are_drawn_as_the_autoencoder_says(parts: dict) -> None:
    vae, batch = parts["vae"], make_batch()
    moments = LatentEncoder(parts["vae"])(batch)
    noise = torch.randn(3, 4, 8, 8)
    distribution = vae.encode(torch.stack(batch["image"])).latent_dist
    expected = (distribution.mean + distribution.std * noise) * 0.18215
    assert torch.allclose(draw_latents(vae, moments, noise), expected, atol=1e-6)


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


def test_a_batch_is_what_the_network_takes(parts: dict) -> None:
    noisy, target, args, conditions = DenoisingPrepareBatch(**parts)(make_batch(), device="cpu")
    assert noisy.shape == target.value.shape == (3, 4, 8, 8)
    assert args == ()
    assert conditions["timesteps"].shape == (3,)
    assert conditions["context"].shape == (3, 77, 16)
    assert target.weight.tolist() == pytest.approx([1 / 3] * 3)


def test_what_is_drawn_belongs_to_the_sample(parts: dict) -> None:
    prepare = DenoisingPrepareBatch(**parts, caption_dropout=0.5)
    whole = make_batch(6)
    noisy, target, _, conditions = prepare(whole)
    for row in (5, 0, 3):
        alone = {name: values[row : row + 1] for name, values in whole.items()}
        again, target_again, _, conditions_again = prepare(alone)
        assert torch.allclose(again[0], noisy[row], atol=1e-5)
        assert torch.allclose(target_again.value[0], target.value[row], atol=1e-5)
        assert torch.equal(conditions_again["timesteps"][0], conditions["timesteps"][row])
        assert torch.equal(conditions_again["context"][0], conditions["context"][row])


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.1, 20, 60), (1.0, 400, 400)])
def test_caption_dropout_drops_its_share(parts: dict, dropout: float, low: int, high: int) -> None:
    _, _, _, conditions = DenoisingPrepareBatch(**parts, caption_dropout=dropout)(make_batch(400, size=8))
    empty = parts["conditioner"]([""])[0]
    assert low <= sum(torch.equal(row, empty) for row in conditions["context"]) <= high


def test_timesteps_and_noise_are_those_of_the_diffusion(parts: dict) -> None:
    prepare = DenoisingPrepareBatch(**parts)
    draws = [prepare._draw(sample_seed(number), (4, 8, 8)) for number in range(2000)]
    timesteps = torch.stack([draw[2] for draw in draws]).float()
    assert timesteps.mean().item() == pytest.approx(499.5, abs=20)
    assert (timesteps.min().item(), timesteps.max().item()) == (pytest.approx(0, abs=5), pytest.approx(999, abs=5))
    for part in (0, 1):
        values = torch.stack([draw[part] for draw in draws])
        assert values.mean().item() == pytest.approx(0, abs=0.01)
        assert values.std().item() == pytest.approx(1, abs=0.01)
    both = torch.stack([torch.stack(draw[:2]).flatten(1) for draw in draws], 1).flatten(1)
    assert torch.corrcoef(both)[0, 1].abs() < 0.01, "the autoencoder's noise is not the diffusion's"


def test_noise_offset_moves_whole_channels(parts: dict) -> None:
    plain, offset = (DenoisingPrepareBatch(**parts, noise_offset=value) for value in (0.0, 0.3))
    shifts = torch.stack([offset._draw(n, (4, 8, 8))[1] - plain._draw(n, (4, 8, 8))[1] for n in range(500)])
    assert shifts.std((2, 3)).max() < 1e-6, "one value for a channel"
    assert shifts[:, :, 0, 0].std().item() == pytest.approx(0.3, abs=0.02)
    assert torch.corrcoef(shifts[:, :, 0, 0].T)[0, 1].abs() < 0.15, "channels are independent"


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(parts: dict, gamma: float) -> None:
    """Weighted losses of noise and of velocity equal min(SNR, gamma) times the error of the predicted latents."""
    scheduler = parts["noise_scheduler"]
    torch.manual_seed(0)
    timesteps = torch.tensor([3, 100, 400, 700, 950])
    latents, noise, error = (torch.randn(5, 4, 8, 8) for _ in range(3))
    target = denoising_target(scheduler, latents, noise, timesteps)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "epsilon":
        predicted = (noisy - (1 - alpha).sqrt() * (target + error)) / alpha.sqrt()
    else:
        predicted = alpha.sqrt() * noisy - (1 - alpha).sqrt() * (target + error)
    weights = min_snr_weights(scheduler, timesteps, gamma)
    snr = compute_snr(scheduler, timesteps)
    expected = snr.clamp(max=gamma) * (predicted - latents).square().mean((1, 2, 3))
    assert torch.allclose(weights * error.square().mean((1, 2, 3)), expected, rtol=2e-3)
    assert (weights <= 1).all()


def test_min_snr_weights_without_any_signal() -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    last = torch.tensor([999])
    assert min_snr_weights(scheduler, last, 5.0).item() == 1
    scheduler.register_to_config(prediction_type="v_prediction")
    assert min_snr_weights(scheduler, last, 5.0).item() == 0


def test_the_loss_weighs_samples() -> None:
    prediction = torch.zeros(2, 1, 2, 2, dtype=torch.bfloat16)
    value = torch.stack([torch.full((1, 2, 2), 2.0), torch.full((1, 2, 2), 3.0)])
    assert DenoisingLoss()(prediction, DenoisingTarget(value, torch.tensor([0.5, 0.25]))).item() == 0.5 * 4 + 0.25 * 9


@pytest.mark.parametrize(
    ("setting", "value"), [("caption_dropout", 1.5), ("noise_offset", -0.1), ("snr_gamma", 0), ("snr_gamma", -5)]
)
def test_settings_out_of_range(parts: dict, setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{setting}.*{value}"):
        DenoisingPrepareBatch(**parts, **{setting: value})


def test_zero_terminal_snr(tmp_path: Path) -> None:
    v_base = str(make_tiny_sd(tmp_path / "v", "v_prediction"))
    plain, shifted = load_noise_scheduler(v_base), load_noise_scheduler(v_base, zero_terminal_snr="true")
    assert plain.alphas_cumprod[-1] > 1e-3
    assert shifted.alphas_cumprod[-1].sqrt() < 1e-3
    assert float(shifted.alphas_cumprod[0]) == pytest.approx(float(plain.alphas_cumprod[0]), rel=1e-5)
    with pytest.raises(InputError, match=r"zero_terminal_snr.*epsilon"):
        load_noise_scheduler(str(make_tiny_sd(tmp_path / "e", "epsilon")), zero_terminal_snr=True)


def test_training_from_the_cache_equals_training_without(parts: dict, tmp_path: Path) -> None:
    base = make_tiny_sd(tmp_path / "sd")
    plain = Run(base, epochs=3).train()
    cache = LatentCache(tmp_path / "cache", "a", 5, (8, 8, 8))
    filled = Run(base, epochs=3, latents=cache).train()
    assert 0 < cache.complete < 1, "encoded on first use"
    again = Run(base, epochs=3, latents=LatentCache(tmp_path / "cache", "a", 5, (8, 8, 8))).train()
    assert filled.losses == pytest.approx(plain.losses, abs=1e-5)
    assert again.losses == filled.losses
    assert (filled.weights() - plain.weights()).abs().max() < 1e-5


def test_what_the_cache_knows_is_not_encoded_again(parts: dict, tmp_path: Path) -> None:
    encoder = LatentEncoder(parts["vae"], LatentCache(tmp_path, "a", 5, (8, 8, 8)), batch_size=2)
    first = encoder(make_batch(5))
    calls: list[int] = []
    hook = encoder.vae.encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    assert torch.equal(encoder(make_batch(5)), first)
    assert calls == []
    encoder(make_batch(5) | {"orientation": [0, 1, 1, 1, 0]})
    hook.remove()
    assert calls == [2, 1]


def test_the_encoder_keeps_float32_under_autocast(parts: dict) -> None:
    expected = LatentEncoder(parts["vae"])(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LatentEncoder(parts["vae"])(make_batch()), expected)


def test_a_cache_follows_the_autoencoder(tmp_path: Path) -> None:
    image = tmp_path / "a.nii"
    image.write_bytes(b"1")
    items = [{"image": str(image), "slice_index": 0, "centre": [1, 1], "spacing": [1, 1], "roi_mm": 3.0}]
    vaes = [load_vae(str(make_tiny_sd(tmp_path / str(seed), seed=seed))) for seed in range(2)]
    cut = nodule_transform(64)
    cache = open_latent_cache(tmp_path / "cache", "training", vaes[0], items, cut)
    assert cache is not None
    assert cache.shape == (8, 8, 8)
    cache.put([(0, 0)], torch.ones(1, 8, 8, 8))
    assert open_latent_cache(tmp_path / "cache", "training", vaes[0], items, cut).complete == 1 / 8
    assert open_latent_cache(tmp_path / "cache", "training", vaes[1], items, cut).complete == 0
    assert open_latent_cache(None, "training", vaes[0], items, cut) is None


def test_prompts_are_remembered_between_runs(parts: dict, tmp_path: Path) -> None:
    def fresh(encoder: object = parts["conditioner"].text_encoder) -> TextConditioner:
        return TextConditioner(parts["conditioner"].tokenizer, encoder)

    items = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]
    known = remember_prompts(fresh(), items, tmp_path)
    calls: list[int] = []
    hook = parts["conditioner"].text_encoder.register_forward_hook(lambda *given: calls.append(1))
    again = remember_prompts(fresh(), items, tmp_path)
    assert torch.equal(again(["b", "", "a"]), known(["b", "", "a"]))
    assert calls == []
    remember_prompts(fresh(), [*items, {"prompt": "c"}], tmp_path)
    assert len(calls) == 1
    other = load_text_encoder(str(make_tiny_sd(tmp_path / "other", seed=5)))
    assert not torch.equal(remember_prompts(fresh(other), items, tmp_path)(["a"]), known(["a"]))
    (tmp_path / "prompts.safetensors").write_bytes(b"damaged")
    assert torch.equal(remember_prompts(fresh(), items, tmp_path)(["a"]), known(["a"]))
    hook.remove()


def test_embeddings_on_a_full_disk_are_one_line(parts: dict, tmp_path: Path) -> None:
    with full_disk(1000), pytest.raises(InputError, match=r"latent_cache: .*prompts\.safetensors cannot be written"):
        remember_prompts(parts["conditioner"], [{"prompt": "a"}], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_embeddings_of_another_tokenizer_are_not_taken(parts: dict, tmp_path: Path) -> None:
    tokenizer, encoder = parts["conditioner"].tokenizer, parts["conditioner"].text_encoder
    other = copy.deepcopy(tokenizer)
    other.pad_token = "!" if tokenizer.pad_token != "!" else other.eos_token
    known, expected = (TextConditioner(words, encoder)(["a"]) for words in (tokenizer, other))
    assert not torch.equal(expected, known)
    for words, embedding in ((tokenizer, known), (other, expected)):
        assert torch.equal(
            remember_prompts(TextConditioner(words, encoder), [{"prompt": "a"}], tmp_path)(["a"]), embedding
        )


def test_validation_noise_belongs_to_the_item(parts: dict) -> None:
    prepare = ValidationPrepareBatch(parts["conditioner"], parts["vae"], image_size=64, guidance_scale=2.0)
    batch = {"image": torch.rand(3, 3, 64, 64), "prompt": ["a", "b", "c"], "id": ["n1", "n2", "n3"]}
    noise, images, _, conditions = prepare(batch, device="cpu")
    reversed_batch = {"image": batch["image"].flip(0), "prompt": ["c", "b", "a"], "id": ["n3", "n2", "n1"]}
    assert torch.equal(prepare(reversed_batch)[0].flip(0), noise)
    assert torch.equal(images, batch["image"])
    assert conditions["guidance_scale"] == [2.0] * 3
    assert not torch.equal(noise[0], noise[1])
