"""A small classifier, trained from scratch so that all it knows comes from the images it was given."""

from __future__ import annotations

import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from nodule_plugin.data.transforms import ORIENTATIONS, orient
from nodule_plugin.downstream.tasks import Pictures
from nodule_plugin.errors import InputError


def build_classifier(tasks: int) -> ResNet:
    """A residual network with 10 layers at a quarter of the usual width, (B, 1, H, W) to (B, tasks) logits."""
    return ResNet(
        block="basic",
        layers=[1, 1, 1, 1],
        block_inplanes=[16, 32, 64, 128],
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=5,
        conv1_t_stride=2,
        no_max_pool=True,
        num_classes=tasks,
    )


def train_classifier(
    pictures: Pictures,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train on images drawn with replacement, so that sets of any size make as many steps.

    Each image comes in one of the 8 rotations and reflections of the square. Answers that are not known cost nothing.

    Args:
        pictures: to learn from.
        steps: the learning rate falls along them to zero by a half cosine.
        batch_size, learning_rate, weight_decay: of AdamW.
        seed: of the weights and the draws.
        device: to train on.

    Returns:
        The classifier in evaluation mode.

    Raises:
        InputError: if there is no image.
    """
    if not len(pictures):
        raise InputError("classifier: there is no image to learn from")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = build_classifier(pictures.answers.shape[1]).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="classifier", unit="step", mininterval=5, leave=False):
        chosen = torch.randint(len(pictures), (batch_size,), generator=generator)
        drawn = torch.randint(ORIENTATIONS, (batch_size,), generator=generator).tolist()
        images = torch.stack([orient(*pair) for pair in zip(pictures.images[chosen], drawn, strict=True)]).to(device)
        answers = pictures.answers[chosen].to(device)
        known = ~answers.isnan()
        losses = binary_cross_entropy_with_logits(network(images), answers.nan_to_num(), reduction="none")
        optimizer.zero_grad()
        (losses[known].sum() / known.sum().clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """(N, tasks) logits of (N, 1, H, W) images, on the processor."""
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).cpu() for part in images.split(batch_size)])
