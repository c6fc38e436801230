"""The small base model: Stable Diffusion's classes and folder layout at a hundredth of its size."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from nodule_plugin.diffusion.tokenizer import clip_tokenizer
from nodule_plugin.export.pipeline import forget_origin
from nodule_plugin.files import write_json

TEXT_WIDTH = 64


def build_unet(sample_size: int, latent_channels: int) -> UNet2DConditionModel:
    """An untrained U-Net of 4.6 million parameters.

    Its first level is narrow: it carries fine grain and its work is that of a patch embedding, so that latents of twice
    the side cost hardly more.
    """
    widths = (16, 48, 80, 128)
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=tuple(width // 16 for width in widths),
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
    )


def build_text_encoder() -> CLIPTextModel:
    """An untrained CLIP text encoder with CLIP's vocabulary; most of its 3 million parameters are the vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
        )
    )


def build_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """A noise schedule with zero terminal signal and long stretches of little noise, and trailing steps.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024: without zero terminal signal,
    the mean brightness leaks through the last step, and a CT's mean carries meaning. Stable Diffusion's betas begin at
    0.00085: with them the last of 15 steps begins at a signal-to-noise ratio of 13 and smooths away what is weaker. Its
    autoencoder adds the grain; where latents carry it, as here, even an ideal network would lose 5 dB of a grain with
    0.03 of white noise's power. With these betas the last step begins at 370, and 0.2 dB are lost.
    """
    return DDIMScheduler(
        beta_start=1e-6,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def save_base_model(
    folder: Path,
    parts: Mapping[str, nn.Module],
    card: str,
    extra: Mapping[str, Any] | None = None,
    prediction_type: str = "v_prediction",
) -> None:
    """Write a base model in diffusers' folder layout, weights in half precision.

    Args:
        folder: replaced as a whole.
        parts: ``vae``, ``text_encoder`` and ``unet``.
        card: text of its README.md.
        extra: name -> content of further JSON files.
        prediction_type: of the U-Net.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        root = Path(temporary) / "model"
        for name in ("vae", "text_encoder", "unet"):
            module: Any = copy.deepcopy(parts[name]).half()
            module.save_pretrained(root / name)
            forget_origin(root / name / "config.json")
        clip_tokenizer().save_pretrained(root / "tokenizer")
        build_scheduler(prediction_type).save_pretrained(root / "scheduler")
        for name, content in {"model_index.json": MODEL_INDEX, **(extra or {})}.items():
            write_json(root / name, content, indent=2)
        (root / "README.md").write_text(card)
        shutil.rmtree(folder, ignore_errors=True)
        root.rename(folder)


MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
