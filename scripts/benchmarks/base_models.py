"""Stable Diffusion models with random weights for benchmarks: as fast and as large as trained ones, and no download.

python scripts/benchmarks/base_models.py sd15 FOLDER 512    # writes the model, and FOLDER/operations.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SMALL_MODEL = Path(__file__).resolve().parents[2] / "bundle" / "models" / "tiny"
"""Its tokenizer has CLIP's vocabulary: open_clip, which carries it too, is not on a bare machine."""


@dataclass(frozen=True)
class Architecture:
    """What sets the networks of one Stable Diffusion apart from those of another.

    Attributes:
        unet_widths: channels of the U-Net's four levels.
        heads: of its attention, one number or one for each level.
        vae_widths: channels of the autoencoder's four levels, which halve the size three times.
        text: settings of the text encoder beyond transformers' defaults.
        prediction_type: "epsilon", or "v_prediction" with the linear projections of SD 2.
        norm_groups: of all group normalisations.
    """

    unet_widths: tuple[int, ...]
    heads: int | tuple[int, ...]
    vae_widths: tuple[int, ...]
    text: dict[str, Any]
    prediction_type: str = "epsilon"
    norm_groups: int = 32

    def unet(self) -> UNet2DConditionModel:
        """The denoising U-Net, untrained."""
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=self.unet_widths,
            attention_head_dim=self.heads,
            cross_attention_dim=self.text["hidden_size"],
            use_linear_projection=self.prediction_type == "v_prediction",
            norm_num_groups=self.norm_groups,
        )

    def vae(self) -> AutoencoderKL:
        """The autoencoder, untrained."""
        return AutoencoderKL(
            block_out_channels=self.vae_widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=self.norm_groups,
            sample_size=512,
            scaling_factor=0.18215,
        )

    def text_encoder(self) -> CLIPTextModel:
        """The text encoder, untrained."""
        return CLIPTextModel(CLIPTextConfig(projection_dim=self.text["hidden_size"], **self.text))


ARCHITECTURES = {
    "sd15": Architecture(
        (320, 640, 1280, 1280),
        8,
        (128, 256, 512, 512),
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "sd2": Architecture(
        (320, 640, 1280, 1280),
        (5, 10, 20, 20),
        (128, 256, 512, 512),
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        "v_prediction",
    ),
    # SD 1.5 in small: widths a fifth and a quarter, so that encoding an image of 512 x 512 takes the same fraction of a
    # training step's operations (0.49 of the U-Net's, 0.46 there). A head has 32 channels.
    "small": Architecture(
        (64, 128, 256, 256),
        (2, 4, 8, 8),
        (32, 64, 128, 128),
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    ),
    # For trying a benchmark out.
    "tiny": Architecture(
        (8, 16, 16, 16),
        2,
        (8, 8, 16, 16),
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        norm_groups=4,
    ),
}


def build_base_model(name: str, folder: Path, seed: int = 0) -> Path:
    """Write one of :data:`ARCHITECTURES` to ``folder`` in diffusers' layout, unless it is there already.

    Returns:
        The folder.
    """
    index = folder / "model_index.json"
    if index.is_file():
        return folder
    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a billion random numbers
        architecture.unet().save_pretrained(folder / "unet")
        architecture.vae().save_pretrained(folder / "vae")
        architecture.text_encoder().save_pretrained(folder / "text_encoder")
    pad_token = "!" if architecture.prediction_type == "v_prediction" else "<|endoftext|>"
    CLIPTokenizer.from_pretrained(SMALL_MODEL / "tokenizer", pad_token=pad_token).save_pretrained(folder / "tokenizer")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=architecture.prediction_type,
    ).save_pretrained(folder / "scheduler")
    content = json.loads((SMALL_MODEL / "model_index.json").read_text())
    index.write_text(json.dumps(content | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    return folder


@dataclass(frozen=True)
class Operations:
    """Floating point operations of one image, in units of 1e12 (a multiplication with an addition is two).

    Attributes:
        forward: of the U-Net.
        training: of the U-Net's forward and backward pass, nothing recomputed.
        encoding: of the autoencoder's encoder.
        text: of the text encoder.
    """

    forward: float
    training: float
    encoding: float
    text: float


def count_operations(name: str, image_size: int) -> Operations:
    """Count on tensors without content: exact, and quick for full-size models."""
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        unet, vae, text = architecture.unet(), architecture.vae(), architecture.text_encoder()
        latents = torch.randn(1, 4, image_size // 8, image_size // 8)
        timestep = torch.zeros(1, dtype=torch.long)
        context = torch.randn(1, 77, architecture.text["hidden_size"])
        image, tokens = torch.randn(1, 3, image_size, image_size), torch.zeros(1, 77, dtype=torch.long)
    forward, prediction = _count(lambda: unet(latents, timestep, context, return_dict=False)[0])
    backward, _ = _count(lambda: prediction.sum().backward())
    with torch.no_grad():
        encoding, _ = _count(lambda: vae.encode(image))
        words, _ = _count(lambda: text(tokens))
    return Operations(forward, forward + backward, encoding, words)


def _count(work: Callable[[], Any]) -> tuple[float, Any]:
    """Operations of what is done, and what it gives."""
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops() / 1e12, result


def main() -> None:
    """Write a model and what its operations are."""
    name, folder, image_size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    operations = asdict(count_operations(name, image_size))
    build_base_model(name, folder)
    (folder / "operations.json").write_text(json.dumps(operations))


if __name__ == "__main__":
    main()
