"""What the small CLIP can do on images it has not seen, and the model card that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from nodule_plugin.metrics.alignment import CLIPScorer, clip_scores, shuffle_prompts
from nodule_plugin.metrics.frechet import frechet_distance


@dataclass(frozen=True)
class HeldOut:
    """Results on images of patients that were not trained on.

    Attributes:
        images, prompts: how many images, and distinct prompts among them.
        matched, shuffled: mean score with the own prompt, and with prompts dealt anew so that all differ.
        above, above_error: mean difference of the two, and its standard error.
        auc: how often an image's own prompt scores higher than another of the distinct prompts.
        top5: how often the own prompt is among the five best of the distinct ones.
        distances: Fréchet distance of the images' halves, and to the images made worse in a stated way.
    """

    images: int
    prompts: int
    matched: float
    shuffled: float
    above: float
    above_error: float
    auc: float
    top5: float
    distances: dict[str, float]


def evaluate_scorer(model: str | Path, images: Tensor, prompts: Sequence[str]) -> HeldOut:
    """Measure a scorer.

    Args:
        model: its folder.
        images: (N, 3, H, W) in [-1, 1].
        prompts: N, no single one more than half of them.
    """
    scorer = CLIPScorer(model)
    embeddings = scorer.clip.encode_images(images)
    matched = clip_scores(embeddings, scorer.encode_prompts(prompts))
    shuffled = clip_scores(embeddings, scorer.encode_prompts(shuffle_prompts(prompts)))
    distinct = sorted(set(prompts))
    texts = F.normalize(scorer.encode_prompts(distinct), dim=1)
    similarity = F.normalize(embeddings, dim=1) @ texts.T
    own = similarity.gather(1, torch.tensor([[distinct.index(prompt)] for prompt in prompts]))
    better = (similarity > own).sum(1)
    difference = matched - shuffled
    return HeldOut(
        images=len(prompts),
        prompts=len(distinct),
        matched=float(matched.mean()),
        shuffled=float(shuffled.mean()),
        above=float(difference.mean()),
        above_error=float(difference.std() / len(difference) ** 0.5),
        auc=1 - float((better / (len(distinct) - 1)).mean()),
        top5=float((better < 5).float().mean()),
        distances=_distances(scorer, images, embeddings),
    )


def _distances(scorer: CLIPScorer, images: Tensor, embeddings: Tensor) -> dict[str, float]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    noise = torch.randn(len(images), 1, *images.shape[2:], generator=torch.Generator().manual_seed(1))
    worse = {
        "noise, deviation 35 HU": (images + 0.05 * noise).clamp(-1, 1),
        "noise, deviation 140 HU": (images + 0.2 * noise).clamp(-1, 1),
        "blur, deviation 1 pixel": gaussian_blur(images, [9, 9], [1.0, 1.0]),
        "blur, deviation 3 pixels": gaussian_blur(images, [17, 17], [3.0, 3.0]),
        "contrast, 75 %": images * 0.75,
    }
    distances = {"two halves": frechet_distance(embeddings[halves[0]], embeddings[halves[1]])}
    return distances | {
        name: frechet_distance(embeddings, scorer.clip.encode_images(changed)) for name, changed in worse.items()
    }


def model_card(results: Mapping[str, HeldOut], training_images: Mapping[str, int], steps: int) -> str:
    """The README.md of the model's folder.

    Args:
        results: split of the data list -> what was measured on it.
        training_images: what the images are, in words -> how many there were.
        steps: of training.
    """
    trained_on = " and ".join(f"{count} {source}" for source, count in training_images.items())
    return f"""# Tiny nodule CLIP

A small CLIP of chest CT nodules (64 x 64 regions of interest, lung window) and their prompts, trained from scratch by
`scripts/train_small_model.py` on {trained_on} images for {steps} steps. It stands in for
Inception, CLIP and BiomedCLIP where their weights are not at hand, under names of its own: FD and KD (tiny nodule
encoder), Tiny CLIPScore. **Its numbers compare sets measured alike. They are not FID, KID, LPIPS, CLIPScore or
BioCLIPScore and must not be set beside published values.** For research use only; not for diagnosis.

open_clip's folder layout; weights stored with 16 bits, loaded with 32.

## On images of patients that it was not trained on

Its settings were chosen by the validation split. Test results of an earlier version were known, too. It was trained on
two thirds of the training patients; the other third taught the text encoder that conditions the small base model.

| | {" | ".join(results)} |
|{" --- |" * (len(results) + 1)}
{_lines(results)}

Scores are 2.5 times the cosine. Chance is 50 % for the comparison of two prompts. It tells sets of images apart by
their agreement with prompts, and says little about a single image. A change whose distance does not exceed that of two
halves by far is not seen; halves hold half as many images, which makes their distance larger.

## Source and licence

Weights derived from parts of LIDC-IDRI (CC BY 3.0); no image is contained. Armato SG III et al. (2015) Data From
LIDC-IDRI, The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato SG III et al. (2011) Med Phys
38:915-931; Clark K et al. (2013) J Digit Imaging 26:1045-1057.
"""


def _lines(results: Mapping[str, HeldOut]) -> str:
    columns = []
    for result in results.values():
        column = {
            "images": f"{result.images}",
            "distinct prompts": f"{result.prompts}",
            "score with the own prompt": f"{result.matched:.3f}",
            "score with prompts shuffled": f"{result.shuffled:.3f}",
            "difference ± standard error": f"{result.above:.3f} ± {result.above_error:.3f}",
            "own prompt scores higher than another": f"{100 * result.auc:.0f} %",
            "own prompt among the best five (chance)": f"{100 * result.top5:.0f} % ({500 / result.prompts:.0f} %)",
        }
        columns.append(column | {f"Fréchet distance: {name}": f"{d:.1f}" for name, d in result.distances.items()})
    return "\n".join(f"| {name} | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0])
