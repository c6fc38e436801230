from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from small_models.autoencoder import balance_channels, begin_as_resampling, build_autoencoder, train_autoencoder
from small_models.base_model import build_text_encoder, build_unet, save_base_model
from torch.nn.functional import avg_pool2d, interpolate

from nodule_plugin.diffusion.components import TextConditioner, load_text_encoder, load_tokenizer, load_vae
from nodule_plugin.diffusion.network import DiffusionUNet


def test_the_saved_folder_is_a_stable_diffusion_model(tmp_path: Path) -> None:
    vae = build_autoencoder()
    vae.register_to_config(scaling_factor=1.25)
    parts = {"vae": vae, "text_encoder": build_text_encoder(), "unet": build_unet(32, vae.config.latent_channels)}
    folder = tmp_path / "model"
    save_base_model(folder, parts, "card")
    save_base_model(folder, parts, "card")  # replaces
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert load_vae(str(folder)).config.scaling_factor == 1.25
    context = TextConditioner(load_tokenizer(str(folder)), load_text_encoder(str(folder)))(["a"])
    network = DiffusionUNet.from_base(str(folder))
    assert next(network.parameters()).dtype == torch.float32
    assert next(parts["unet"].parameters()).dtype == torch.float32, "what was saved is left as it was"
    with torch.no_grad():
        latents = torch.zeros(1, vae.config.latent_channels, 32, 32)
        assert network(latents, torch.tensor([1]), context).shape == latents.shape
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 40 * 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_each_channel_of_the_latents_has_unit_variance() -> None:
    patches = torch.rand(32, 1, 64, 64) * 2 - 1
    vae = train_autoencoder(patches, steps=4, batch_size=2)
    latents = vae.encode(patches.repeat(1, 3, 1, 1)).latent_dist.sample() * vae.config.scaling_factor
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(latents.shape[1]), rtol=0.02, atol=0)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(latents.shape[1]), rtol=0, atol=0.02)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_balanced_channels_change_no_image() -> None:
    patches = torch.rand(8, 1, 64, 64) * 2 - 1
    images = patches.repeat(1, 3, 1, 1)
    vae = build_autoencoder().requires_grad_(False)
    before = vae.encode(images).latent_dist
    output = vae.decode(before.mean).sample
    balance_channels(vae, patches)
    after = vae.encode(images).latent_dist
    torch.testing.assert_close(vae.decode(after.mean).sample, output, rtol=0, atol=1e-4)
    spread = [found.std / found.mean.std((0, 2, 3), keepdim=True) for found in (before, after)]
    torch.testing.assert_close(*spread, rtol=1e-3, atol=0)


def test_the_autoencoder_begins_as_resampling() -> None:
    vae = build_autoencoder()
    begin_as_resampling(vae)
    vae.requires_grad_(False)
    images = (torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5).repeat(1, 3, 1, 1)
    distribution = vae.encode(images).latent_dist
    means = avg_pool2d(images[:, :1], 2)
    torch.testing.assert_close(distribution.mean[:, :1], means, rtol=0.01, atol=0.01)
    assert distribution.std.max() < 0.05
    expected = interpolate(means, scale_factor=2, mode="bilinear")[..., 1:-1, 1:-1]
    output = vae.decode(distribution.mean).sample[..., 1:-1, 1:-1]
    torch.testing.assert_close(output, expected.expand_as(output), rtol=0.02, atol=0.02)


def test_the_autoencoder_learns_what_resampling_loses() -> None:
    grain = 0.3 * torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    patches = interpolate(grain, size=32, mode="bicubic").clamp(-1, 1)
    short, longer = (train_autoencoder(patches, steps, batch_size=4) for steps in (1, 60))
    errors = [(vae(patches.repeat(1, 3, 1, 1)).sample - patches).abs().mean() for vae in (short, longer)]
    assert errors[1] < errors[0] / 2
