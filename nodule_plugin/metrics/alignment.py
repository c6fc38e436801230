"""Agreement of images with their prompts: CLIPScore and BioCLIPScore.

Source: Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021 (weight 2.5);
Zhang et al., "BiomedCLIP", arXiv:2303.00915. The reference method puts no words before the prompt, so neither do these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.data.pixels import Images
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.feature_cache import Encoder
from nodule_plugin.metrics.intervals import mean_error
from nodule_plugin.metrics.measures import HIGHER, MEASURED, Measure, Scale, Value, missing
from nodule_plugin.metrics.openclip import OpenCLIPModel

BIOMEDCLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
WEIGHT = 2.5
"""Hessel et al. stretch the cosine, which seldom passes 0.4, over a range of 0 to 1."""


def clip_scores(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """``2.5 * max(cosine, 0)`` of each image with its prompt.

    Args:
        image_embeddings: (B, D), any length.
        text_embeddings: (B, D), any length.

    Returns:
        (B,) scores from 0 to 2.5.
    """
    return WEIGHT * F.cosine_similarity(image_embeddings, text_embeddings, dim=1).clamp(min=0)


def shuffle_prompts(prompts: Sequence[str], seed: int = 0) -> list[str]:
    """The same prompts dealt anew, so that no image keeps a prompt that reads like its own.

    Images are sorted by prompt, prompts and images in random order, and moved on by the size of the largest group.

    Args:
        prompts: one an image.
        seed: of the order.

    Raises:
        InputError: if more than half of the prompts are one and the same: then there is no such dealing.
    """
    draw = np.random.default_rng(seed)
    names, group, counts = np.unique(
        np.asarray(prompts, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    if 2 * counts.max() > len(prompts):
        raise InputError(f"shuffled prompts: {counts.max()} of {len(prompts)} images share a prompt; at most half may")
    order = np.lexsort((draw.random(len(prompts)), draw.permutation(len(names))[group]))
    dealt = np.empty(len(prompts), dtype=int)
    dealt[order] = np.roll(order, -int(counts.max()))
    return [prompts[index] for index in dealt]


class CLIPScorer:
    """CLIPScore of images and prompts, with any CLIP model that open_clip loads.

    Usable alone: ``CLIPScorer(model="ViT-B-32-quickgelu/openai")(images, prompts)``. Weights are loaded at first use.

    Args:
        model: see :class:`nodule_plugin.metrics.openclip.OpenCLIPModel`; None: none given, see :attr:`unavailable`.
        prefix: words put before every prompt ("A photo depicts " in Hessel et al.).
        context_length: tokens of a prompt; None for what the model's config says.
        device: where the model runs.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        prefix: str = "",
        context_length: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.clip = OpenCLIPModel(model, context_length, device)
        self.prefix = prefix
        self._embeddings: dict[str, Tensor] = {}

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be computed, or None."""
        return self.clip.unavailable

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Score each image with its own prompt.

        Args:
            images: (B, 3, H, W) in [-1, 1], or B pictures.
            prompts: B prompts.

        Returns:
            (B,) scores from 0 to 2.5.

        Raises:
            InputError: if there are not as many images as prompts, or the model cannot be loaded.
        """
        if len(images) != len(prompts) or len(prompts) == 0:
            raise InputError(f"CLIP score: one prompt an image is needed, not {len(prompts)} for {len(images)} images")
        return clip_scores(self.clip.encode_images(images), self.encode_prompts(prompts))

    def score(self, images: Images, prompts: Sequence[str]) -> float:
        """Mean of the images' scores; see :meth:`__call__`."""
        return float(self(images, prompts).mean())

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(B, D) embeddings of the prompts, each distinct one embedded once and remembered."""
        new = sorted(set(prompts) - set(self._embeddings))
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            self._embeddings.update(zip(batch, self.clip.encode_texts([self.prefix + prompt for prompt in batch])))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])


class BiomedCLIPScorer(CLIPScorer):
    """BioCLIPScore: :class:`CLIPScorer` with BiomedCLIP and its context of 256 tokens.

    Args:
        model: a hub id, or a local copy of the folder.
        prefix, context_length, device: see :class:`CLIPScorer`.
    """

    def __init__(
        self,
        model: str | Path | None = BIOMEDCLIP,
        prefix: str = "",
        context_length: int | None = 256,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(model, prefix, context_length, device)


@dataclass(frozen=True, eq=False)
class AlignmentMeasure(Measure):
    """Mean score of images with their prompts, beside the score with prompts dealt anew.

    Args:
        key, name, group: see :class:`Measure`.
        scorer: of images and prompts.
        model_name: of the scorer's model, as tables name it; None for its own.
        seed: of the dealing.
    """

    scorer: CLIPScorer
    model_name: str | None = None
    seed: int = 0
    scale = Scale(HIGHER)

    @property
    def network(self) -> str:
        words = f"after {self.scorer.prefix!r}" if self.scorer.prefix else "as they are"
        return f"{self.model_name or self.scorer.clip.name}, prompts {words}"

    @property
    def unavailable(self) -> str | None:
        return self.scorer.unavailable

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        return self.scorer.clip.convention

    def encoders(self, kind: str) -> list[Encoder]:
        return [self.scorer.clip] if kind in MEASURED else []

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        prompts = images.prompts()
        if prompts is None:
            return missing("images without prompts")
        features = images.features_of(self.scorer.clip.id)
        scores = self._scores(features, prompts)
        details = self._shuffled(features, prompts, scores)
        return Value(float(scores.mean()), mean_error(scores), len(scores), details=details)

    def _scores(self, features: FeatureRows, prompts: Sequence[str]) -> np.ndarray:
        """(N,) scores; texts and images a block at a time."""
        scores, start = [], 0
        for block in features.blocks():
            texts = self.scorer.encode_prompts(prompts[start : start + len(block)]).double()
            scores.append(clip_scores(torch.from_numpy(block), texts).numpy())
            start += len(block)
        return np.concatenate(scores)

    def _shuffled(self, features: FeatureRows, prompts: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
        most = max(Counter(prompts).values())
        if 2 * most > len(prompts):
            return {"shuffled": None, "shuffled_reason": f"{most} of {len(prompts)} images share one prompt"}
        shuffled = self._scores(features, shuffle_prompts(prompts, self.seed))
        difference = scores - shuffled
        return {
            "shuffled": float(shuffled.mean()),
            "above_shuffled": float(difference.mean()),
            "above_shuffled_error": mean_error(difference),
        }
