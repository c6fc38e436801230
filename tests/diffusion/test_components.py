from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
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
from nodule_plugin.diffusion.sampling import derive_scheduler
from nodule_plugin.diffusion.tokenizer import clip_tokenizer
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
    with pytest.raises(InputError, match=r"no folder 'models/tiny' in .* give the bundle's folder as bundle_root"):
        load_unet("models/tiny")
    with pytest.raises(InputError, match="no folder 'owner/model', and as a hub id it needs a revision"):
        load_unet("owner/model")


def test_a_hub_id_with_a_revision_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"the unet of 'owner/model' cannot be loaded"):
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


PARTS = [
    (load_unet, "unet", "diffusion_pytorch_model.safetensors"),
    (load_vae, "vae", "diffusion_pytorch_model.safetensors"),
    (load_text_encoder, "text_encoder", "model.safetensors"),
]


@pytest.fixture(scope="module")
def epsilon_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def copied(epsilon_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(epsilon_model, tmp_path / "model")


@pytest.mark.parametrize(("load", "part", "file"), PARTS)
def test_weights_of_other_names_are_refused(load: Callable, part: str, file: str, copied: Path) -> None:
    path = copied / part / file
    save_file({f"_orig_mod.{name}": value for name, value in load_file(path).items()}, path, {"format": "pt"})
    message = rf"base_model: the {part} of .*: \d+ weights missing \(\w.*\); \d+ weights unexpected \(_orig_mod\."
    with pytest.raises(InputError, match=message):
        load(str(copied))


@pytest.mark.parametrize(("load", "part", "file"), PARTS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut, damaged or no weights"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a git-lfs pointer"),
        (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "a web page"),
        (lambda path: path.rename(path.with_suffix(f".fp16{path.suffix}")), "variant fp16; give --variant fp16"),
    ],
)
def test_files_of_weights_that_cannot_be_read_are_named(
    damage: Callable, message: str, load: Callable, part: str, file: str, copied: Path
) -> None:
    damage(copied / part / file)
    with pytest.raises(InputError, match=f"base_model: the {part} of .*{message}") as caught:
        load(str(copied))
    assert "\n" not in str(caught.value)


def test_a_variant_is_loaded_in_float32_and_one_that_is_not_there_is_named(copied: Path) -> None:
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: value.half() for name, value in load_file(path).items()}
    save_file(half, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
    path.unlink()
    unet = load_unet(str(copied), variant="fp16")
    assert unet.dtype == torch.float32
    assert torch.equal(unet.conv_in.bias, half["conv_in.bias"].float())
    with pytest.raises(InputError, match="no weights of the variant bf16, but fp16"):
        load_unet(str(copied), variant="bf16")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 9}, r"of inpainting \(9 input channels\)"),
        ({"in_channels": 8}, r"of InstructPix2Pix \(8 input channels\)"),
        ({"addition_embed_type": "text_time"}, "of Stable Diffusion XL;"),
        ({"class_embed_type": "projection"}, "of a model with a further condition"),
    ],
)
def test_unets_of_other_models_are_named_by_their_configuration(
    config: dict[str, Any], message: str, copied: Path
) -> None:
    path = copied / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(InputError, match=f"base_model: the unet of .* is {message}"):
        load_unet(str(copied))


def test_a_folder_of_another_layout_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "v1-5-pruned.ckpt").touch()
    with pytest.raises(InputError, match=r"no folder 'unet'; give the file as base_model \(.*v1-5-pruned\.ckpt\)"):
        load_unet(str(tmp_path))
    (tmp_path / "transformer").mkdir()
    with pytest.raises(InputError, match="diffusion transformer, such as Stable Diffusion 3"):
        load_unet(str(tmp_path))


def test_a_tokenizer_without_its_merges_says_what_to_copy(copied: Path) -> None:
    tokenizer = clip_tokenizer()
    for file in (copied / "tokenizer").iterdir():
        file.unlink()
    (copied / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    with pytest.raises(InputError, match=r"lacks merges\.txt; copy it from"):
        load_tokenizer(str(copied))


def test_a_commit_in_the_cache_needs_no_hub(
    epsilon_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--owner--model" / "snapshots" / commit
    shutil.copytree(epsilon_model, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the cache is enough, connected or not
    for load in (load_unet, load_vae, load_text_encoder, load_tokenizer, load_noise_scheduler):
        load("owner/model", revision=commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=rf"needs a revision.*in the cache: {commit}"):
        load_unet("owner/model")
    with pytest.raises(InputError, match=rf"cache .* holds {commit}; .*'hf download owner/model --revision"):
        load_unet("owner/model", revision="f" * 40)
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"the unet of 'owner/model' cannot be loaded: .*a git-lfs pointer"):
        load_unet("owner/model", revision=commit)


OLD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.2.2",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


@pytest.mark.parametrize(
    "further", [{"skip_prk_steps": True}, {"clip_sample": True, "steps_offset": 0}, {"set_alpha_to_one": False}]
)
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
def test_old_scheduler_configurations_are_meant_as_diffusers_pipelines_take_them(
    name: str, further: dict[str, Any], epsilon_model: Path, tmp_path: Path
) -> None:
    config = OLD_SCHEDULER | further
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    actual = derive_scheduler(load_noise_scheduler(str(tmp_path)), name)
    pipeline = StableDiffusionPipeline.from_pretrained(
        epsilon_model, scheduler=getattr(diffusers, name).from_config(config)
    )
    expected = pipeline.scheduler
    torch.manual_seed(0)
    latents, predictions = 3 * torch.randn(1, 4, 8, 8), torch.randn(6, 1, 4, 8, 8)
    results = []
    for scheduler in (actual, expected):
        scheduler.set_timesteps(6)
        sample = latents
        for timestep, prediction in zip(scheduler.timesteps[:6], predictions):
            torch.manual_seed(1)  # for the noise of DDPM's steps
            sample = scheduler.step(prediction, timestep, sample).prev_sample
        results.append((scheduler.timesteps, sample))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=1e-6)
