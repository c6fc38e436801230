from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open

from nodule_plugin.diffusion.components import load_unet
from nodule_plugin.diffusion.lora import LORA_FILE, low_rank_tensors, save_low_rank
from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError
from nodule_plugin.export.forms import export_model
from nodule_plugin.handlers.selection import ModelSelection

INPUTS = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500]))
CONTEXT = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def prediction(unet: Any) -> torch.Tensor:
    return unet(*INPUTS, encoder_hidden_states=CONTEXT, return_dict=False)[0]


def randomise(module: Any) -> None:
    torch.manual_seed(3)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a low-rank training whose alpha is not its rank."""
    with pytest.raises(InputError, match=r"^lora_alpha: 2 scales low-rank updates, and there are none; give lora_rank"):
        DiffusionUNet.from_base(str(base), lora_alpha=2)
    network = DiffusionUNet.from_base(str(base), lora_rank=4, lora_alpha=2)
    randomise(network)
    weights = tmp_path_factory.mktemp("run") / "models" / "model.pt"
    ModelSelection(network, str(weights), None)._write()
    return weights


def test_what_training_writes_is_loaded_by_diffusers(
    base: Path, run: Path, metadata: dict[str, Any], tmp_path: Path
) -> None:
    assert export_model("lora", Source(str(base), str(run)), tmp_path / "out", metadata)[LORA_FILE] < 1e-5
    expected = prediction(load_model(Source(str(base), str(run))).network.unet)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    before = prediction(pipeline.unet)
    pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(prediction(pipeline.unet), expected, atol=1e-4, rtol=0)
    assert (expected - before).abs().max() > 0.01


def test_updates_are_merged_into_a_whole_pipeline(
    base: Path, run: Path, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """Those of the text encoder too, in a file that another program might have written."""
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.text_encoder.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "fc1"]))
    randomise(pipeline.text_encoder)
    encoder = {f"text_encoder.{name}": value for name, value in low_rank_tensors(pipeline.text_encoder).items()}
    with safe_open(run.with_name(LORA_FILE), "pt") as file:
        unet = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    source = Source(str(base), str(save_low_rank(unet | encoder, tmp_path)))
    for form in ("diffusers", "lora"):
        export_model(form, source, tmp_path / form, metadata)
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "diffusers")
    loaded = StableDiffusionPipeline.from_pretrained(base)
    loaded.load_lora_weights(tmp_path / "lora")
    tokens = torch.arange(77)[None]
    with torch.no_grad():
        hidden = [pipeline.text_encoder(tokens).last_hidden_state for pipeline in (pipeline, merged, loaded)]
    for found in hidden[1:]:
        torch.testing.assert_close(found, hidden[0], atol=1e-4, rtol=0)
    expected = prediction(load_model(Source(str(base), str(run))).network.unet)
    torch.testing.assert_close(prediction(merged.unet), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, prediction(load_unet(str(base))), atol=0.01)


def test_all_weights_are_no_low_rank_updates(base: Path, run: Path, metadata: dict[str, Any], tmp_path: Path) -> None:
    alone = tmp_path / "model.pt"
    alone.write_bytes(run.read_bytes())
    with pytest.raises(InputError, match=r"weights: .*model\.pt holds all weights of a U-Net and there is no pytorch_"):
        export_model("lora", Source(str(base), str(alone)), tmp_path / "out", metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
