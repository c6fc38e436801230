from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from single_files import make_pair

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
)
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch, GuidedSampler
from nodule_plugin.errors import InputError

PREDICTION = {1: "epsilon", 2: "v_prediction"}


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    else:
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    return path


@pytest.fixture(scope="module", params=[1, 2])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, dict]:
    folder, tensors = make_pair(tmp_path_factory.mktemp("sd"), request.param, PREDICTION[request.param])
    return request.param, folder, tensors


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    return make_pair(tmp_path_factory.mktemp("sd1"), 1)


def test_the_test_names_are_those_of_the_published_files(first: tuple[Path, dict]) -> None:
    for name in (
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.bias",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
    ):
        assert name in first[1]


def sample(base: str, prediction_type: str | None = None) -> torch.Tensor:
    vae = load_vae(base)
    conditioner = TextConditioner(load_tokenizer(base), load_text_encoder(base))
    noise, _, _, conditions = GenerationPrepareBatch(conditioner, vae, 32)(
        [{"prompt": "The nodule is round in shape.", "guidance_scale": 3, "seed": 0}], "cpu"
    )
    sampler = GuidedSampler(load_noise_scheduler(base, prediction_type=prediction_type), vae, 2)
    return sampler(noise, DiffusionUNet.from_base(base).eval(), **conditions)


def test_one_file_gives_the_images_of_the_folder(pair: tuple[int, Path, dict], tmp_path: Path) -> None:
    version, folder, tensors = pair
    file = str(save(tensors, tmp_path / ("model.ckpt" if version == 1 else "model.safetensors")))
    for load in (load_unet, load_vae, load_text_encoder):
        expected, actual = load(str(folder)).state_dict(), load(file).state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    # Heads, activations, groups, padding and noise schedule are no weights: only images tell.
    expected = sample(str(folder))
    torch.testing.assert_close(sample(file, PREDICTION[version]), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01


def test_half_precision_and_names_of_merged_files_are_read(first: tuple[Path, dict], tmp_path: Path) -> None:
    merged = {name.replace("transformer.text_model.", "transformer."): value for name, value in first[1].items()}
    half = {name: value.half() if value.is_floating_point() else value for name, value in merged.items()}
    file = str(save(half, tmp_path / "half.safetensors"))
    expected, actual = load_text_encoder(str(first[0])).state_dict(), load_text_encoder(file).state_dict()
    assert all(torch.allclose(actual[name], expected[name], atol=1e-3) for name in expected)
    assert load_unet(file).dtype == torch.float32


def test_the_moving_average_is_taken_as_in_the_published_folders(first: tuple[Path, dict], tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    average = {
        "model_ema.diffusion_model" + name.removeprefix(prefix).replace(".", ""): value + 1
        for name, value in first[1].items()
        if name.startswith(prefix)
    }
    tensors = first[1] | average | {"model_ema.decay": torch.tensor(0.9999)}
    unet = load_unet(str(save(tensors, tmp_path / "pruned.ckpt")))
    assert torch.equal(unet.conv_in.bias, first[1][prefix + "input_blocks.0.0.bias"] + 1)


def test_version_2_does_not_say_what_it_predicts(pair: tuple[int, Path, dict], tmp_path: Path) -> None:
    version, _, tensors = pair
    file = str(save(tensors, tmp_path / "model.safetensors"))
    assert load_noise_scheduler(file, prediction_type="v_prediction").config.prediction_type == "v_prediction"
    if version == 1:
        assert load_noise_scheduler(file).config.prediction_type == "epsilon"
    else:
        with pytest.raises(InputError, match=r"prediction_type: .*give v_prediction for .*, epsilon for"):
            load_noise_scheduler(file)
    with pytest.raises(InputError, match="prediction_type: choose one of epsilon, v_prediction, sample, not 'v'"):
        load_noise_scheduler(file, prediction_type="v")


def original_config(**further: Any) -> dict[str, Any]:
    """What v1-inference.yaml says, for a U-Net of width 32 with 4 heads instead of 8."""
    unet = {"in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [4, 2, 1]}
    unet |= {"num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_heads": 4, "transformer_depth": 1}
    vae = {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    parameters = {
        "linear_start": 0.001,
        "linear_end": 0.012,
        "timesteps": 500,
        "scale_factor": 0.5,
        "unet_config": {"params": unet | {"context_dim": 64}},
        "first_stage_config": {"params": {"ddconfig": vae}},
    }
    return {"model": {"params": parameters | further}}


def test_a_yaml_of_the_same_name_beside_it_counts(first: tuple[Path, dict], tmp_path: Path) -> None:
    file = str(save(first[1], tmp_path / "model.safetensors"))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(original_config(parameterization="v")))
    assert load_unet(file).config.attention_head_dim == 4
    assert load_vae(file).config.scaling_factor == 0.5
    config = load_noise_scheduler(file).config
    assert (config.beta_start, config.num_train_timesteps, config.prediction_type) == (0.001, 500, "v_prediction")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(original_config()))
    assert load_noise_scheduler(file).config.prediction_type == "epsilon"
    (tmp_path / "model.yaml").write_text("model: {}\n")
    with pytest.raises(InputError, match=r"model\.yaml, beside the checkpoint, is not its original configuration"):
        load_unet(file)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_unet, "model.diffusion_model.out.2.bias"),
        (load_vae, "first_stage_model.post_quant_conv.bias"),
        (load_text_encoder, "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
    ],
)
def test_a_weight_missing_or_left_over_is_named(load: Any, name: str, first: tuple[Path, dict], tmp_path: Path) -> None:
    tensors = dict(first[1])
    tensors[name + "x"] = tensors.pop(name)
    file = save(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"base_model: {file}: .*1 weights missing \(.*bias\); 1 weights unexpected"):
        load(str(file))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.x"], "no whole Stable Diffusion 1 or 2"),
        (["conditioner.embedders.0.transformer.text_model.x"], "of Stable Diffusion XL;"),
        (["model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"], "of Stable Diffusion 3;"),
        (["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"], "of Flux;"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], r"of an autoencoder \(VAE\) alone"),
        (["control_model.time_embed.0.weight"], "of a ControlNet"),
    ],
)
def test_other_models_in_one_file_are_named(names: list[str], message: str, tmp_path: Path) -> None:
    file = save({name: torch.zeros(1) for name in names}, tmp_path / "v1-5-pruned-emaonly.safetensors")
    for load in (load_unet, load_vae, load_text_encoder, load_tokenizer, load_noise_scheduler):
        with pytest.raises(InputError, match=message):
            load(str(file))


def test_an_inpainting_model_in_one_file_is_named(first: tuple[Path, dict], tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    file = save(first[1] | {name: torch.zeros(32, 9, 3, 3)}, tmp_path / "inpainting.ckpt")
    with pytest.raises(InputError, match=r"of inpainting \(9 input channels\)"):
        load_unet(str(file))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": {"best": Decimal(1)}}, file)
    with pytest.raises(InputError, match=r"holds decimal\.Decimal beside tensors.*take the model's \.safetensors"):
        load_unet(str(file))
    torch.save([torch.zeros(1)], file)
    with pytest.raises(InputError, match="holds a list, not weights by name"):
        load_unet(str(file))
    torch.save(OrderedDict(), file)
    with pytest.raises(InputError, match="no whole Stable Diffusion"):
        load_unet(str(file))


def test_a_file_that_is_not_there_is_no_hub_id() -> None:
    with pytest.raises(InputError, match=r"base_model: there is no file nowhere/model\.ckpt"):
        load_unet("nowhere/model.ckpt")
