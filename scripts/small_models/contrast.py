"""Contrastive learning of images and their prompts, from scratch on few images.

The loss is CLIP's (Radford et al., ICML 2021) with soft targets: prompts whose ratings are alike share the credit,
since readers themselves differ by a step. Beside it each image's second view must be told from other images (Chen et
al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020) and from blurred, noisy and
faded ones, which keeps in the embedding what no prompt says: whether an image looks like a CT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from nodule_plugin.diffusion import sampling
from nodule_plugin.errors import InputError
from small_models.examples import IMAGE_SIZE, Examples

MAX_LOGIT_SCALE = 100.0


def train_pair(
    model: Any,
    tokenize: Callable[[Sequence[str]], Tensor],
    examples: Examples,
    steps: int = 600,
    batch_size: int = 48,
    softness: float = 1.5,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.5,
    image_weight: float = 0.5,
    precision: str = "float32",
    seed: int = 0,
) -> Any:
    """Train an image and a text tower from scratch, in place.

    Args:
        model: with ``encode_image``, ``encode_text(tokens, normalize)`` and ``logit_scale``, as open_clip's CLIP.
        tokenize: prompts to (N, 77) tokens.
        examples: at least two. Prompts at a sum of rating differences d share credit as ``exp(-d / softness)``.
        steps: batches, each of ``batch_size`` images drawn without replacement, in two views and a degraded one.
        softness: see ``examples``; 0: each prompt is right for its own images alone.
        learning_rate: AdamW's peak, after 5 % warm-up, falling to 0 on a cosine.
        weight_decay: of the matrices; gains and biases have none.
        image_weight: weight of the loss between views; 0 leaves it out.
        precision: of the image tower's forward pass, see :data:`nodule_plugin.diffusion.sampling.PRECISIONS`.
        seed: of batches and views.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: if the images do not have the size, or prompts or ratings are not as many.
    """
    images, prompts, ratings = examples.images, examples.prompts, examples.ratings
    counts = {len(images), len(prompts), len(ratings)}
    if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE) or len(counts) > 1 or len(images) < 2:
        raise InputError(
            f"tiny model: (N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) images, N prompts and N ratings are needed, 2 or more; "
            f"not {tuple(images.shape)}, {len(prompts)} and {len(ratings)}"
        )
    torch.manual_seed(seed)
    dtype = sampling.precision_dtype(precision)
    model.train().to(memory_format=torch.channels_last)
    distinct = sorted(set(prompts))
    prompt_of = torch.tensor([distinct.index(prompt) for prompt in prompts])
    tokens = tokenize(distinct)
    first = [prompts.index(prompt) for prompt in distinct]
    likeness = _prompt_likeness(ratings[first], softness)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}], learning_rate
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    progress = tqdm(range(steps), desc="contrast", mininterval=10)
    for _ in progress:
        chosen = torch.randperm(len(images))[:batch_size]
        embeddings = _embed_views(model, images[chosen], bool(image_weight), dtype)
        loss = _prompt_loss(model, embeddings, tokens, likeness, prompt_of[chosen].repeat(2))
        if image_weight:
            loss = loss + image_weight * _view_loss(model, embeddings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log())
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def _prompt_likeness(ratings: Tensor, softness: float) -> Tensor:
    if not softness:
        return torch.eye(len(ratings))
    return (-torch.cdist(ratings, ratings, p=1.0) / softness).exp()


def _embed_views(model: Any, images: Tensor, degraded: bool, dtype: torch.dtype) -> Tensor:
    """Unit embeddings of two views of each image and, where asked for, of a degraded one, (2 B or 3 B, D)."""
    views = [random_view(images), random_view(images)]
    if degraded:
        views.append(degrade(random_view(images)))
    batch = torch.cat(views).to(memory_format=torch.channels_last)
    with torch.autocast(batch.device.type, dtype, enabled=dtype != torch.float32):
        return F.normalize(model.encode_image(batch).float(), dim=1)


def _prompt_loss(model: Any, embeddings: Tensor, tokens: Tensor, likeness: Tensor, prompt_of: Tensor) -> Tensor:
    present = prompt_of.unique()
    texts = model.encode_text(tokens[present], normalize=True)
    logits = model.logit_scale.exp() * embeddings[: len(prompt_of)] @ texts.T
    targets = likeness[prompt_of][:, present]
    to_text = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    to_image = F.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (to_text + to_image) / 2


def _view_loss(model: Any, embeddings: Tensor) -> Tensor:
    count = len(embeddings) // 3
    similarity = model.logit_scale.exp() * embeddings[: 2 * count] @ embeddings.T
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
