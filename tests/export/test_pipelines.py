from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.errors import InputError
from nodule_plugin.export.forms import export_model
from nodule_plugin.export.model import NOTICE

from .conftest import PREDICTION, PROMPT, Sampled


def image_of(pipeline: StableDiffusionPipeline, sampled: Sampled) -> torch.Tensor:
    """What diffusers makes of the same latents, (1, 3, H, W) in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 3.0, "num_inference_steps": 3, "output_type": "pt"}
    return pipeline(PROMPT, latents=sampled.noise, **options).images * 2 - 1


@pytest.fixture(scope="module")
def folder(stable_diffusion: Sampled, metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "diffusers"
    assert max(export_model("diffusers", stable_diffusion.source, output, metadata).values()) < 1e-5
    return output


def test_diffusers_gives_our_images(stable_diffusion: Sampled, folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    torch.testing.assert_close(image_of(pipeline, stable_diffusion), stable_diffusion.image, atol=1e-4, rtol=0)
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == 32  # of the training images
    assert not list(folder.rglob("*.bin"))
    assert str(Path(stable_diffusion.source.base_model).parent) not in "".join(
        file.read_text() for file in folder.rglob("*.json")
    )


def test_the_small_model_too_and_with_16_bits(small: Sampled, metadata: dict[str, Any], tmp_path: Path) -> None:
    export_model("diffusers", small.source, tmp_path / "out", metadata, fp16=True)
    full = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(image_of(full, small), small.image, atol=1e-4, rtol=0)
    assert {full.unet.dtype, full.vae.dtype, full.text_encoder.dtype} == {torch.float32}
    half = StableDiffusionPipeline.from_pretrained(tmp_path / "out", variant="fp16", dtype=torch.float16)
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16}
    weight = full.unet.conv_in.weight
    assert torch.equal(half.unet.conv_in.weight, weight.half())
    modes = {oct(file.stat().st_mode)[-3:] for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert modes == {"644"}


@pytest.fixture(scope="module")
def file(stable_diffusion: Sampled, metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "single"
    assert max(export_model("single-file", stable_diffusion.source, output, metadata, fp16=True).values()) < 1e-5
    names = {"README.md", *(f"model{part}{end}" for part in ("", ".fp16") for end in (".safetensors", ".yaml"))}
    assert {path.name for path in output.iterdir()} == names
    return output / "model.safetensors"


def test_diffusers_reads_the_single_file(stable_diffusion: Sampled, folder: Path, file: Path) -> None:
    whole = StableDiffusionPipeline.from_pretrained(folder)
    parts = {"tokenizer": whole.tokenizer, "scheduler": whole.scheduler, "safety_checker": None}
    read = StableDiffusionPipeline.from_single_file(str(file), config=str(folder), local_files_only=True, **parts)
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(whole, part).state_dict(), getattr(read, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), part
    torch.testing.assert_close(image_of(read, stable_diffusion), stable_diffusion.image, atol=1e-4, rtol=0)


def test_the_single_file_is_a_base_model_that_says_what_it_predicts(stable_diffusion: Sampled, file: Path) -> None:
    version = 2 if stable_diffusion.model.text_encoder.config.hidden_act == "gelu" else 1
    assert load_model(Source(str(file))).scheduler.config.prediction_type == PREDICTION[version]
    parameters = yaml.safe_load(file.with_suffix(".yaml").read_text())["model"]["params"]
    assert parameters["parameterization"] == ("v" if version == 2 else "eps")
    with safe_open(file, "pt") as opened, safe_open(file.with_name("model.fp16.safetensors"), "pt") as half:
        assert opened.metadata()["modelspec.description"] == NOTICE
        names = set(opened.keys())
        assert set(half.keys()) == names
        assert half.get_tensor("first_stage_model.quant_conv.bias").dtype == torch.float16
    # As the published files have them.
    prefix = "cond_stage_model.model." if version == 2 else "cond_stage_model.transformer.text_model."
    text = {
        1: ("embeddings.position_ids", "encoder.layers.0.self_attn.q_proj.weight", "final_layer_norm.bias"),
        2: ("positional_embedding", "transformer.resblocks.23.attn.in_proj_weight", "text_projection", "logit_scale"),
    }[version]
    assert {prefix + name for name in text} <= names
    assert {
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "model.diffusion_model.output_blocks.8.2.conv.weight",
        "model.diffusion_model.input_blocks.3.0.op.bias",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.bias",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
    } <= names


def test_what_a_single_file_cannot_hold_is_refused(small: Sampled, metadata: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"format: the unet has in_channels 1, .* which has 4; give --format diffusers"
    ):
        export_model("single-file", small.source, tmp_path / "out", metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "fp16", "message"),
    [
        ("ckpt", False, "format: there is no 'ckpt'; choose one of diffusers, single-file, lora, onnx, pt2"),
        ("onnx", True, "fp16: onnx has no such variant"),
        ("diffusers", False, "out: already there and not an empty folder"),
    ],
)
def test_nothing_is_overwritten(
    form: str, fp16: bool, message: str, small: Sampled, metadata: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InputError, match=message):
        export_model(form, small.source, tmp_path / "out", metadata, fp16=fp16)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_size_the_model_cannot_make_is_refused(small: Sampled) -> None:
    with pytest.raises(InputError, match=r"^image_size: a whole number from 1 to 4096 is needed, not 100000$"):
        Source(base_model="none", image_size=100000)
    with pytest.raises(InputError, match="image_size: a multiple of 2 is needed for this base model, not 63"):
        load_model(replace(small.source, image_size=63))
