from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.components import TextConditioner, load_text_encoder, load_tokenizer, load_unet
from nodule_plugin.diffusion.fine_tuned import identify_weights, load_weights
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.provenance import weights_chain
from nodule_plugin.errors import InputError
from nodule_plugin.export.compvis import unet_name
from nodule_plugin.handlers.weights import WeightsLoader
from nodule_plugin.weights import weights_sha256

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
INPUTS = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500]))
CONTEXT = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with other weights in all its parts."""
    return make_tiny_sd(tmp_path_factory.mktemp("tuned"), seed=5)


@torch.no_grad()
def prediction(unet: Any) -> torch.Tensor:
    return unet(*INPUTS, encoder_hidden_states=CONTEXT).sample


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def forms(tuned: Path, folder: Path) -> dict[str, Path]:
    """One U-Net in all the forms that are taken."""
    state = dict(UNet2DConditionModel.from_pretrained(tuned, subfolder="unet").state_dict())
    (folder / "run" / "models").mkdir(parents=True)
    own = {f"unet.{name}": value for name, value in state.items()}
    return {
        "our model.pt": save(own, folder / "model.pt"),
        "our output folder": save(own, folder / "run" / "models" / "model.pt").parents[1],
        "diffusers .safetensors": save(state, folder / "diffusion_pytorch_model.safetensors"),
        "diffusers .bin": save(state, folder / "diffusion_pytorch_model.bin"),
        "diffusers folder": tuned,
        "diffusers unet folder": tuned / "unet",
    }


def test_a_fine_tuned_unet_is_taken_in_every_form(base: str, tuned: Path, tmp_path: Path) -> None:
    expected = prediction(load_unet(str(tuned)))
    for form, path in forms(tuned, tmp_path).items():
        network = DiffusionUNet.from_base(base)
        sha256 = identify_weights(str(path), network)
        load_weights(path, network)
        assert torch.equal(prediction(network.unet), expected), form
        files = [path] if path.is_file() else list(path.rglob("*"))
        assert sha256 in [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()], form


def test_the_unet_of_a_single_file_is_taken(base: str, tmp_path: Path) -> None:
    sizes = {"block_out_channels": (32, 64, 128, 128), "attention_head_dim": 8, "cross_attention_dim": 16}
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**sizes)
    tensors = {"model.diffusion_model." + unet_name(name): value for name, value in unet.state_dict().items()}
    file = save(tensors | {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "model.ckpt")
    network = DiffusionUNet(UNet2DConditionModel(**sizes))
    load_weights(file, network)
    torch.testing.assert_close(prediction(network.unet), prediction(unet), atol=1e-5, rtol=0)
    tensors["model.diffusion_model.extra.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"is of another network: unet.model.diffusion_model.extra.weight"):
        load_weights(save(tensors, file), network)


def lora(base: str, alpha: int = 2) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random low-rank updates of U-Net and text encoder, under peft's names."""
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    torch.manual_seed(3)
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=TARGETS))
    layers = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    pipeline.text_encoder.add_adapter(LoraConfig(r=4, target_modules=layers))
    for part in (pipeline.unet, pipeline.text_encoder):
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    return get_peft_model_state_dict(pipeline.unet), get_peft_model_state_dict(pipeline.text_encoder)


def kohya(unet: dict[str, torch.Tensor], encoder: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    tensors = {}
    for prefix, state in (("lora_unet_", unet), ("lora_te_text_model_", encoder)):
        for name, value in state.items():
            module, _, kind = name.partition(".lora_")
            module = prefix + module.replace(".", "_")
            tensors[f"{module}.lora_{'down' if kind == 'A.weight' else 'up'}.weight"] = value
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def written(kind: str, base: str, folder: Path) -> Path:
    """A file of low-rank updates as the programs write them."""
    unet, encoder = lora(base)
    old = convert_state_dict_to_diffusers(unet)
    if kind == "kohya":
        return save(kohya(unet, encoder, 3.0), folder / "kohya.safetensors")
    if kind == "diffusers":
        layers = {"unet_lora_layers": old, "text_encoder_lora_layers": convert_state_dict_to_diffusers(encoder)}
        StableDiffusionPipeline.save_lora_weights(folder, **layers)
    elif kind == "diffusers with settings":
        settings = {"r": 4, "lora_alpha": 2, "target_modules": TARGETS}
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=unet, unet_lora_adapter_metadata=LoraConfig(**settings).to_dict()
        )
    elif kind == "diffusers .bin":
        save({f"unet.{name}": value for name, value in old.items()}, folder / "pytorch_lora_weights.bin")
    return folder


@pytest.mark.parametrize("kind", ["diffusers", "diffusers with settings", "diffusers .bin", "kohya"])
def test_low_rank_updates_give_what_diffusers_gives(kind: str, base: str, tmp_path: Path) -> None:
    path = written(kind, base, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    before = prediction(pipeline.unet)
    pipeline.load_lora_weights(path)
    network = DiffusionUNet.from_base(base)
    names = set(network.state_dict())
    sha256 = identify_weights(str(path), network)
    load_weights(path, network)
    expected = prediction(pipeline.unet)
    torch.testing.assert_close(prediction(network.unet), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 1e-2
    assert set(network.state_dict()) == names
    assert sha256 != identify_weights(str(path), network)  # of other weights to update the hash is another
    encoder = load_text_encoder(base, weights=str(path))
    embedding = TextConditioner(load_tokenizer(base), encoder)(["a"])
    torch.testing.assert_close(embedding, pipeline.encode_prompt("a", "cpu", 1, False)[0], atol=1e-5, rtol=1e-5)


def test_pefts_own_folder_is_taken_with_its_scale(base: str, tmp_path: Path) -> None:
    unet = load_unet(base)
    torch.manual_seed(3)
    model = get_peft_model(unet, LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    network = DiffusionUNet.from_base(base)
    load_weights(tmp_path, network)
    torch.testing.assert_close(prediction(network.unet), prediction(model), atol=1e-5, rtol=1e-5)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json, which says how to scale it, cannot be read"):
        load_weights(tmp_path, network)


def test_the_first_format_of_diffusers_is_taken(base: str, tmp_path: Path) -> None:
    unet, _ = lora(base, alpha=4)
    names = {"lora_A.weight": "down.weight", "lora_B.weight": "up.weight"}
    old = {}
    for name, value in unet.items():
        module, _, kind = name.rpartition(".lora_")
        block, _, layer = module.removesuffix(".0").rpartition(".")
        old[f"{block}.processor.{layer}_lora.{names[f'lora_{kind}']}"] = value
    network, other = DiffusionUNet.from_base(base), DiffusionUNet.from_base(base)
    load_weights(save(old, tmp_path / "old.bin"), network)
    load_weights(save({f"unet.{name}": value for name, value in unet.items()}, tmp_path / "new.safetensors"), other)
    torch.testing.assert_close(prediction(network.unet), prediction(other.unet), atol=1e-6, rtol=1e-6)


def test_low_rank_updates_without_a_place_are_named(base: str, tmp_path: Path) -> None:
    unet, encoder = lora(base)
    network = DiffusionUNet.from_base(base)
    before = weights_sha256(network)
    elsewhere = {name.replace("attn2.to_k.", "attn2.to_x."): value for name, value in unet.items()}
    wide = {n: torch.zeros(4, 768) if "attn2.to_k.lora_A" in n else value for n, value in unet.items()}
    for tensors, message in (
        (elsewhere, r"\d+ low-rank updates do not fit the base model's U-Net \(.*attn2\.to\.x"),
        (wide, r"\d+ low-rank updates do not fit the base model's U-Net \(.*attn2\.to_k\.lora_A"),
    ):
        file = save(kohya(tensors, encoder, 1.0), tmp_path / "kohya.safetensors")
        with pytest.raises(InputError, match=message):
            load_weights(file, network)
    file = save(kohya({}, encoder, 1.0), tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="holds no low-rank updates of a U-Net"):
        load_weights(file, network)
    more = {f"{name.replace('layers.0', 'layers.9')}": value for name, value in encoder.items()}
    with pytest.raises(InputError, match="text encoder"):
        load_text_encoder(base, weights=str(save(kohya(unet, more, 1.0), tmp_path / "more.safetensors")))
    assert weights_sha256(network) == before


def test_an_engine_that_runs_twice_adds_the_updates_once(base: str, tmp_path: Path) -> None:
    path = written("diffusers", base, tmp_path)
    network = DiffusionUNet.from_base(base)
    loader = WeightsLoader(str(path), network)
    loader.logger = logging.getLogger()
    loader(None)  # type: ignore[arg-type]
    once = weights_sha256(network)
    loader(None)  # type: ignore[arg-type]
    assert weights_sha256(network) == once
    WeightsLoader("base", network)(None)  # type: ignore[arg-type]
    assert weights_sha256(network) == once


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["add_embedding.linear_1.weight", "conv_in.weight"], "of Stable Diffusion XL;"),
        (["lora_te2_text_model_x.lora_down.weight"], "of Stable Diffusion XL;"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "of Stable Diffusion 3;"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "of an IP-Adapter;"),
        (["emb_params"], "of a textual inversion;"),
        (["<nodule>"], "of a textual inversion;"),
        (["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"], "of a ControlNet;"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], r"of an autoencoder \(VAE\) alone;"),
        (["text_model.encoder.layers.0.mlp.fc1.bias"], "of a text encoder alone;"),
        (["lora_unet_x.hada_w1_a"], "of a LyCORIS network other than LoRA;"),
        (["lora_unet_x.lora_down.weight", "lora_unet_x.dora_scale"], "of a DoRA network;"),
        (["down_blocks.0.motion_modules.0.x"], "of a motion module of AnimateDiff;"),
        (["x"], "of another network: unet.conv_in.bias has shape none"),
    ],
)
def test_what_cannot_be_taken_is_named(names: list[str], message: str, base: str, tmp_path: Path) -> None:
    file = save({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    network = DiffusionUNet.from_base(base)
    for use in (lambda: identify_weights(str(file), network), lambda: load_weights(file, network)):
        with pytest.raises(InputError, match=rf"weights: {file}.* {message}"):
            use()


def test_files_that_are_no_weights_of_a_unet(base: str, tmp_path: Path) -> None:
    network = DiffusionUNet.from_base(base)
    state = {f"unet.{name}": value for name, value in network.unet.state_dict().items()}
    wide = state | {"unet.conv_in.weight": torch.zeros(8, 9, 3, 3)}
    with pytest.raises(InputError, match=r"of another network \(inpainting\): unet.conv_in.weight has shape \(8, 9"):
        load_weights(save(wide, tmp_path / "inpainting.pt"), network)
    torch.save({"network": state, "optimizer": {}, "iteration": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"is a training checkpoint; give the model\.pt"):
        load_weights(tmp_path / "checkpoint.pt", network)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder .* holds none of unet/diffusion_pytorch_model.safetensors"):
        load_weights(tmp_path / "empty", network)
    torch.save({"string_to_param": {"*": torch.zeros(768)}, "name": "nodule"}, tmp_path / "embedding.pt")
    with pytest.raises(InputError, match="of a textual inversion"):
        load_weights(tmp_path / "embedding.pt", network)
    shutil.copy(tmp_path / "inpainting.pt", tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"weights .*cut\.pt: cut, damaged or no weights"):
        load_weights(tmp_path / "cut.pt", network)
    (tmp_path / "a.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"weights .*a\.json: cut, damaged or no weights"):
        load_weights(tmp_path / "a.json", network)


def test_base_models_own_weights_are_known_by_their_content(base: str) -> None:
    network = DiffusionUNet.from_base(base)
    before = identify_weights("base", network)
    assert before == identify_weights("base", network)
    with torch.no_grad():
        network.unet.conv_in.bias[0] += 1e-6
    assert identify_weights("base", network) != before


def test_a_file_that_is_missing_or_lacks_weights_is_named(base: str, tmp_path: Path) -> None:
    network = DiffusionUNet.from_base(base)
    path = tmp_path / "model.pt"
    with pytest.raises(InputError, match=r"weights: there is no file .*model.pt; train first"):
        identify_weights(str(path), network)
    state = network.state_dict()
    state.pop("unet.conv_in.bias")
    with pytest.raises(InputError, match=r"is of another network: unet.conv_in.bias has shape none"):
        identify_weights(str(save(state, path)), network)
    torch.save(network, path)
    with pytest.raises(InputError, match=r"holds nodule_plugin\.diffusion.network.DiffusionUNet beside tensors"):
        identify_weights(str(path), network)


def test_other_programs_files_beside_the_weights_are_no_chain(tmp_path: Path) -> None:
    (tmp_path / "nodule.json").write_text('{"description": "of a web user interface"}')
    assert weights_chain(tmp_path / "nodule.safetensors") is None
