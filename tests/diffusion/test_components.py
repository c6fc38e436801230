from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
)
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def base_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("sd"), request.param))


def test_parts_are_those_of_the_diffusers_pipeline(base_model: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base_model)
    for part, loaded in (("unet", load_unet(base_model)), ("vae", load_vae(base_model))):
        theirs, ours = getattr(pipeline, part).state_dict(), loaded.state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert load_noise_scheduler(base_model).config.prediction_type == pipeline.scheduler.config.prediction_type


def test_text_embeddings_are_those_of_the_diffusers_pipeline(base_model: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base_model)
    prompt = "The nodule is round in shape, solid internally, with well-defined margins."
    theirs, empty = pipeline.encode_prompt(prompt, "cpu", 1, True)
    conditioner = TextConditioner(load_tokenizer(base_model), load_text_encoder(base_model))
    assert torch.allclose(conditioner([prompt]), theirs, atol=1e-6)
    assert torch.allclose(conditioner([""]), empty, atol=1e-6)
    both = conditioner(["", prompt, ""])
    assert torch.allclose(both, torch.cat([empty, theirs, empty]), atol=1e-6)


def test_frozen_parts_have_no_gradients(base_model: str) -> None:
    for part in (load_vae(base_model), load_text_encoder(base_model)):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert all(parameter.requires_grad for parameter in load_unet(base_model).parameters())


def test_a_prompt_that_is_too_long_is_refused_not_cut(base_model: str) -> None:
    conditioner = TextConditioner(load_tokenizer(base_model), load_text_encoder(base_model))
    with pytest.raises(InputError, match=r"tokens.*takes 77"):
        conditioner(["nodule " * 80])


def test_a_tokenizer_folder_of_the_old_layout_is_refused(base_model: str, tmp_path: Path) -> None:
    shutil.copytree(base_model, tmp_path / "model")
    for file in (tmp_path / "model" / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(str(tmp_path / "model"))


@pytest.mark.parametrize("missing", ["/nowhere/model", "../nowhere", "nowhere"])
def test_a_folder_that_does_not_exist_is_named(missing: str) -> None:
    with pytest.raises(InputError, match=missing):
        load_unet(missing)


def test_a_hub_id_needs_a_revision() -> None:
    with pytest.raises(InputError, match="no folder 'owner/model', and as a hub id it needs a revision"):
        load_unet("owner/model")


def test_a_hub_id_with_a_revision_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the unet of 'owner/model' cannot be loaded"):
        load_unet("owner/model", revision="0" * 40)


def test_a_folder_without_the_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'unet'"):
        load_unet(str(tmp_path))


def test_a_damaged_part_is_named(base_model: str, tmp_path: Path) -> None:
    shutil.copytree(base_model, tmp_path / "model")
    (tmp_path / "model" / "vae" / "config.json").write_text("{")
    with pytest.raises(InputError, match="the vae of"):
        load_vae(str(tmp_path / "model"))


def test_the_network_calls_as_monai_calls(base_model: str) -> None:
    network = DiffusionUNet.from_base(base_model).eval()
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 16)
    timesteps = torch.tensor([3, 700])
    with torch.no_grad():
        ours = network(latents, timesteps=timesteps, context=context)
        theirs = network.unet(latents, timesteps, encoder_hidden_states=context).sample
        assert network(latents).shape == latents.shape
    assert torch.equal(ours, theirs)
    names = [name.removeprefix("unet.") for name, _ in network.named_parameters()]
    assert names == [name for name, _ in network.unet.named_parameters()]


def test_gradient_checkpointing_changes_no_gradient(base_model: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = DiffusionUNet.from_base(base_model, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        network(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 16)).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert torch.allclose(*gradients, atol=1e-6)
