"""A full-structure, very small Stable Diffusion in diffusers' folder layout, with random weights, for tests."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from small_models.base_model import MODEL_INDEX
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.tokenizer import clip_tokenizer


def make_tiny_sd(
    folder: Path,
    prediction_type: str = "epsilon",
    latent_channels: int = 4,
    seed: int = 0,
    levels: int = 4,
    inpainting: bool = False,
    all_tokens: bool = False,
) -> Path:
    """Write the base model to ``folder``: the classes and files of SD 1.5 (epsilon) and 2.0 (v_prediction).

    Fewer ``levels`` of the U-Net make its steps faster, for tests that are not about it. The U-Net of ``inpainting``
    takes the mask and the masked image's latents too, nine channels of them all. The tokenizer has the most frequent of
    CLIP's tokens only, unless ``all_tokens`` are wanted: to read and write these takes longer than the networks do.
    """
    pad_token = "!" if prediction_type == "v_prediction" else "<|endoftext|>"
    tokenizer = clip_tokenizer(pad_token) if all_tokens else _short_tokenizer(pad_token)
    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8, 8, 16, 16)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        in_channels=2 * latent_channels + 1 if inpainting else latent_channels,
        out_channels=latent_channels,
        sample_size=8,
        block_out_channels=(8, 16, 16, 16)[:levels],
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        use_linear_projection=prediction_type == "v_prediction",
    ).save_pretrained(folder / "unet")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=16,
        )
    ).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    return folder


@functools.cache
def _clip_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """CLIP's tokens of single characters, and what is merged most often."""
    known = SimpleTokenizer()
    characters = list(known.encoder)[:512]
    return characters, list(known.bpe_ranks)[:2000]


def _short_tokenizer(pad_token: str) -> CLIPTokenizer:
    characters, merges = _clip_vocabulary()
    tokens = [*characters, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad_token)


def make_tuned_weights(base: Path, path: Path, seed: int = 1, scale: float = 0.05) -> Path:
    """Write weights of a U-Net that differs a little from the base model's, as training exports them."""
    network = DiffusionUNet.from_base(str(base))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    torch.save(network.state_dict(), path)
    return path
