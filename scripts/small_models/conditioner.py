"""The small base model's text encoder, whose words get their meaning from images (Stable Diffusion's CLIP brings it).

It is trained beside an image tower, as CLIP's is, on patients of whom the judging scorer sees none. Only the text
encoder is kept. Training the U-Net leaves it as it is, as with the large models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from nodule_plugin.diffusion.tokenizer import clip_tokenizer
from nodule_plugin.extras import Extra
from small_models.base_model import TEXT_WIDTH, build_text_encoder
from small_models.contrast import train_pair
from small_models.examples import Examples
from small_models.scorer import MODEL_CONFIG

open_clip = Extra("open_clip", "evaluate")


class ConditioningPair(nn.Module):
    """transformers' CLIP text encoder beside open_clip's image tower, with the members that open_clip's CLIP has."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = open_clip.CLIP(**MODEL_CONFIG).visual
        self.text_encoder = build_text_encoder()
        self.projection = nn.Linear(TEXT_WIDTH, MODEL_CONFIG["embed_dim"], bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode_image(self, image: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, 64, 64)."""
        return self.visual(image)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings (B, D) of token sequences (B, 77)."""
        embeddings = self.projection(self.text_encoder(text).pooler_output)
        return F.normalize(embeddings, dim=-1) if normalize else embeddings


def train_text_encoder(examples: Examples, seed: int = 0, **settings: Any) -> CLIPTextModel:
    """A text encoder trained from scratch on image-prompt pairs.

    Args:
        examples: of the conditioning fold.
        seed: of initial weights, batches and views.
        settings: see :func:`small_models.contrast.train_pair`.
    """
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()

    def tokenize(prompts: Sequence[str]) -> Tensor:
        return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids

    pair = train_pair(ConditioningPair(), tokenize, examples, seed=seed, **settings)
    return pair.text_encoder.requires_grad_(False)
