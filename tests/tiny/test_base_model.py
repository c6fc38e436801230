from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from nodule_plugin.diffusion.components import TextConditioner, load_text_encoder, load_tokenizer, load_vae
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.findings import Findings
from nodule_plugin.tiny.autoencoder import build_autoencoder, latent_std, train_autoencoder
from nodule_plugin.tiny.base_model import JointTrainer, LatentPool, encode_pool, save_base_model, snr_weight
from nodule_plugin.tiny.pool import load_pool, phantom_pool, save_pool

FINDINGS = [Findings(5, 5, 5, 1), Findings(1, 1, 1, 5)]


@pytest.fixture
def pool() -> LatentPool:
    torch.manual_seed(0)
    return LatentPool(torch.randn(8, 2, 4, 8, 8), torch.full((8, 2, 4, 8, 8), 0.01), FINDINGS)


def train(trainer: JointTrainer, pool: LatentPool, checkpoint: Path, minutes: float = 1e-5) -> None:
    trainer.train([pool], [1.0], minutes, checkpoint, batch_size=2)


def test_training_takes_a_step_and_goes_on_from_its_checkpoint(pool: LatentPool, tmp_path: Path) -> None:
    first = JointTrainer(4, 8)
    before = first.networks["unet"].conv_in.weight.clone()
    train(first, pool, tmp_path / "state.pt")
    assert first.step == 1
    assert not torch.equal(first.networks["unet"].conv_in.weight, before)
    second = JointTrainer(4, 8, seed=1)
    second.load(tmp_path / "state.pt")
    train(second, pool, tmp_path / "b.pt")
    torch.set_rng_state(torch.load(tmp_path / "state.pt")["random"])  # the first goes on from where it stopped, too
    train(first, pool, tmp_path / "a.pt")
    assert second.step == 2
    for mine, theirs in zip(first.average.parameters(), second.average.parameters()):
        assert torch.equal(mine, theirs)


def test_the_saved_folder_is_a_stable_diffusion_model(tmp_path: Path) -> None:
    trainer, vae = JointTrainer(4, 16), build_autoencoder()
    vae.register_to_config(scaling_factor=1.25)
    folder = tmp_path / "model"
    save_base_model(folder, trainer, vae, "card")
    save_base_model(folder, trainer, vae, "card")  # replaces
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert load_vae(str(folder)).config.scaling_factor == 1.25
    context = TextConditioner(load_tokenizer(str(folder)), load_text_encoder(str(folder)))(["a"])
    network = DiffusionUNet.from_base(str(folder))
    assert next(network.parameters()).dtype == torch.float32
    with torch.no_grad():
        assert network(torch.zeros(1, 4, 16, 16), torch.tensor([1]), context).shape == (1, 4, 16, 16)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 40 * 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_augmentation_acts_on_pixels() -> None:
    torch.manual_seed(0)
    vae, images = build_autoencoder().eval(), torch.rand(2, 1, 64, 64) * 2 - 1
    pool = encode_pool(vae, images, FINDINGS)
    flipped = images.rot90(1, (-2, -1)).flip(-1).repeat(1, 3, 1, 1)
    expected = vae.encode(flipped).latent_dist.mean * vae.config.scaling_factor
    assert pool.mean.shape == (8, 2, 4, 16, 16)
    assert torch.allclose(pool.mean[5], expected, atol=1e-5)
    assert not torch.allclose(pool.mean[5], pool.mean[1].flip(-1), atol=1e-3)


def test_min_snr_weights_are_those_of_the_paper() -> None:
    scheduler = JointTrainer(4, 8).scheduler
    timesteps = torch.tensor([0, 400, 999])
    alpha = scheduler.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    assert torch.allclose(snr_weight(scheduler, timesteps), expected)
    assert snr[0] > 5
    assert snr[2] < 1e-6  # zero terminal SNR


def test_the_autoencoders_scaling_gives_unit_variance() -> None:
    patches = torch.rand(32, 1, 64, 64) * 2 - 1
    vae = train_autoencoder(patches, minutes=0.02, batch_size=2)
    assert latent_std(vae, patches) * vae.config.scaling_factor == pytest.approx(1, rel=1e-3)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_phantom_pools_are_kept(tmp_path: Path) -> None:
    pool = phantom_pool(3, 32, seed=4)
    assert pool.images.shape == (3, 1, 32, 32)
    assert -1 <= pool.images.min() < pool.images.max() <= 1
    save_pool(pool, tmp_path / "pool.pt")
    kept = load_pool(tmp_path / "pool.pt")
    assert torch.equal(kept.images, pool.images)
    assert kept.findings == pool.findings
