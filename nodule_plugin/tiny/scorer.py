"""A small CLIP of chest CT nodules and their prompts: the stand-in behind the metrics where no published weights are.

Its image tower is the "tiny nodule encoder" of the distances between sets, its two towers give the "Tiny CLIPScore". It
is saved in open_clip's folder layout and loaded by the code that loads CLIP and BiomedCLIP. Its numbers compare sets
measured with it; they are not FID, KID, LPIPS or CLIPScore and never go by those names.

The loss is CLIP's (Radford et al., ICML 2021) with soft targets: prompts whose ratings are alike share the credit,
since readers themselves differ by a step. Beside it each image's second view must be told from other images (Chen et
al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020) and from blurred, noisy and
faded ones, which keeps in the embedding what no prompt says: whether an image looks like a CT.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings

IMAGE_SIZE = 64
MODEL_CONFIG: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""In open_clip's terms: a ResNet of four one-block stages, and a two-layer text transformer on CLIP's vocabulary."""
PREPROCESS_CONFIG: Mapping[str, Any] = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
MAX_LOGIT_SCALE = 100.0


def train_scorer(
    images: Tensor,
    prompts: Sequence[str],
    ratings: Tensor,
    steps: int = 600,
    batch_size: int = 48,
    softness: float = 1.5,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.5,
    image_weight: float = 0.5,
    seed: int = 0,
    config: Mapping[str, Any] = MODEL_CONFIG,
) -> open_clip.CLIP:
    """Train the two towers from scratch.

    Args:
        images: (N, 3, 64, 64) in [-1, 1].
        prompts: N, one an image.
        ratings: (N, R) what the prompts say, as numbers; prompts at a sum of differences d share credit as
            ``exp(-d / softness)``.
        steps: batches, each of ``batch_size`` images drawn without replacement, in two views and a degraded one.
        softness: see ``ratings``; 0: each prompt is right for its own images alone.
        learning_rate: AdamW's peak, after 5 % warm-up, falling to 0 on a cosine.
        weight_decay: of the matrices; gains and biases have none.
        image_weight: weight of the loss between views; 0 leaves it out.
        seed: of initial weights, batches and views.
        config: architecture in open_clip's terms.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: if the images do not have the size, or prompts or ratings are not as many.
    """
    counts = {len(images), len(prompts), len(ratings)}
    if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE) or len(counts) > 1 or len(images) < 2:
        raise InputError(
            f"tiny scorer: (N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) images, N prompts and N ratings are needed, 2 or more; "
            f"not {tuple(images.shape)}, {len(prompts)} and {len(ratings)}"
        )
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config).train().to(memory_format=torch.channels_last)
    distinct = sorted(set(prompts))
    prompt_of = torch.tensor([distinct.index(prompt) for prompt in prompts])
    tokens = open_clip.SimpleTokenizer()(distinct)
    first = [prompts.index(prompt) for prompt in distinct]
    likeness = _prompt_likeness(ratings[first], softness)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}], learning_rate
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    progress = tqdm(range(steps), desc="tiny scorer")
    for _ in progress:
        chosen = torch.randperm(len(images))[:batch_size]
        loss = _loss(model, images[chosen], tokens, likeness, prompt_of[chosen], image_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log())
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _prompt_likeness(ratings: Tensor, softness: float) -> Tensor:
    if not softness:
        return torch.eye(len(ratings))
    return (-torch.cdist(ratings, ratings, p=1.0) / softness).exp()


def _loss(
    model: open_clip.CLIP, images: Tensor, tokens: Tensor, likeness: Tensor, prompt_of: Tensor, image_weight: float
) -> Tensor:
    count = len(images)
    views = [random_view(images), random_view(images)]
    if image_weight:
        views.append(degrade(random_view(images)))
    batch = torch.cat(views).to(memory_format=torch.channels_last)
    with torch.autocast(batch.device.type, torch.bfloat16):
        embeddings = F.normalize(model.encode_image(batch).float(), dim=1)
    scale = model.logit_scale.exp()
    loss = _prompt_loss(scale, embeddings[: 2 * count], model, tokens, likeness, prompt_of.repeat(2))
    if image_weight:
        loss = loss + image_weight * _view_loss(scale, embeddings, count)
    return loss


def _prompt_loss(
    scale: Tensor, embeddings: Tensor, model: open_clip.CLIP, tokens: Tensor, likeness: Tensor, prompt_of: Tensor
) -> Tensor:
    present = prompt_of.unique()
    logits = scale * embeddings @ model.encode_text(tokens[present], normalize=True).T
    targets = likeness[prompt_of][:, present]
    to_text = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    to_image = F.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (to_text + to_image) / 2


def _view_loss(scale: Tensor, embeddings: Tensor, count: int) -> Tensor:
    similarity = scale * embeddings[: 2 * count] @ embeddings.T
    similarity = similarity.masked_fill(torch.eye(2 * count, len(embeddings), dtype=torch.bool), float("-inf"))
    return F.cross_entropy(similarity, torch.arange(2 * count).roll(count))


def degrade(images: Tensor) -> Tensor:
    """The (B, C, H, W) images each blurred, made noisy or changed in contrast, the first third, the next, the rest."""
    blurred, noisy, faded = images.tensor_split(3)
    sigma = 0.6 + 1.4 * float(torch.rand(()))
    noise = (0.02 + 0.18 * torch.rand(len(noisy), 1, 1, 1)) * torch.randn(len(noisy), 1, *images.shape[2:])
    contrast = 0.6 + 0.3 * torch.rand(len(faded), 1, 1, 1)
    return torch.cat([gaussian_blur(blurred, [9, 9], [sigma, sigma]), (noisy + noise).clamp(-1, 1), faded * contrast])


def random_view(images: Tensor) -> Tensor:
    """The (B, C, H, W) images turned by quarter-turns, flipped, and shifted by up to 3 pixels, all in the same way.

    Nothing is interpolated: a metric has to see blur.
    """
    turns, flip, down, right = (int(torch.randint(high, ())) for high in (4, 2, 7, 7))
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    moved = padded[..., down : down + images.shape[2], right : right + images.shape[3]].rot90(turns, (2, 3))
    return moved.flip(3) if flip else moved


def save_scorer(model: open_clip.CLIP, folder: Path, card: str, config: Mapping[str, Any] = MODEL_CONFIG) -> None:
    """Write the model in open_clip's folder layout, weights with 16 bits, and its model card.

    Nothing half-written stays: each file is written under another name in the same folder first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    settings = {"model_cfg": config, "preprocess_cfg": PREPROCESS_CONFIG}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        save_file(weights, Path(scratch) / "open_clip_model.safetensors")
        (Path(scratch) / "open_clip_config.json").write_text(json.dumps(settings, indent=4) + "\n")
        (Path(scratch) / "README.md").write_text(card)
        for file in Path(scratch).iterdir():
            file.replace(folder / file.name)


@dataclass(frozen=True)
class Examples:
    """Images with prompts.

    Attributes:
        images: (N, 3, 64, 64) in [-1, 1].
        prompts: N.
        ratings: (N, R) what the prompts say, as numbers.
        source: what the images are, in words.
    """

    images: Tensor
    prompts: list[str]
    ratings: Tensor
    source: str


def scorer_examples(datalist: Path, part: str, dataset_dir: Path | None = None) -> Examples:
    """The images of one part of a data list that lie wholly inside their slices.

    Raises:
        InputError: see :func:`nodule_plugin.data.datalist.load_datalist`; or if the part is empty.
    """
    items = real_items(datalist=datalist, part=part, dataset_dir=dataset_dir)
    load = LoadSetImaged(size=(IMAGE_SIZE, IMAGE_SIZE))
    images = torch.stack([load(item)["image"] for item in tqdm(items, desc=part)])
    synthetic = sum(item["synthetic"] for item in items)
    source = {0: "real LIDC-IDRI", len(items): "phantom"}.get(synthetic, "real LIDC-IDRI and phantom")
    return Examples(images, [item["prompt"] for item in items], torch.stack([_ratings(item) for item in items]), source)


def _ratings(item: Mapping[str, Any]) -> Tensor:
    findings = Findings.from_dict(item["findings"])
    # Calcification is present or not, no matter of degree: it weighs as much as two steps on another scale.
    degrees = (findings.sphericity, findings.margin, findings.texture, findings.spiculation)
    return torch.tensor([*degrees, 2 * findings.calcified], dtype=torch.float32)
