"""The small base model's autoencoder: Stable Diffusion's AutoencoderKL at a fraction of its width.

Trained as latent diffusion's own (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR
2022, section 3.1): reconstruction, a slight pull of the latents to a standard normal, and a patch discriminator that
keeps the noise texture of CT, which an absolute error alone would smooth away.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn.functional import l1_loss, relu
from tqdm import tqdm

from nodule_plugin.diffusion import sampling


def build_autoencoder(latent_channels: int = 2, sample_size: int = 64) -> AutoencoderKL:
    """An untrained autoencoder, 4 times smaller in the latents along each side, about a million parameters."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=16,
        sample_size=sample_size,
    )


class PatchDiscriminator(nn.Sequential):
    """Scores overlapping patches as real or not (Isola et al., CVPR 2017), (B, 3, H, W) to (B, 1, H/4, W/4)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of the 8 rotations and reflections of the square for the whole batch, (B, C, H, H)."""
    turn, flip = torch.randint(0, 8, (1,), generator=generator).item() % 4, torch.rand(1, generator=generator) < 0.5
    images = images.rot90(int(turn), (-2, -1))
    return images.flip(-1) if flip else images


def random_crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """The same random square of ``side`` pixels from each image of the batch."""
    row, column = torch.randint(0, images.shape[-1] - side + 1, (2,), generator=generator).tolist()
    return images[..., row : row + side, column : column + side]


def train_autoencoder(
    patches: torch.Tensor,
    steps: int,
    batch_size: int = 24,
    learning_rate: float = 1e-3,
    adversarial_fraction: float = 0.5,
    kl_weight: float = 2e-6,
    latent_channels: int = 2,
    precision: str = "float32",
    seed: int = 0,
) -> AutoencoderKL:
    """Train from scratch.

    Args:
        patches: (N, 1, H, H) in [-1, 1].
        steps: the learning rate falls along them by a half cosine.
        adversarial_fraction: the discriminator joins for this last fraction of the steps.
        kl_weight: of the latents' divergence from a standard normal, summed over an image's latents.
        latent_channels: of each of the latents' pixels, which stand for 4 x 4 of the image's. With two of them a U-Net
            learns faster than with four, from reconstructions that are as good (docs/benchmarks/ablation.md).
        precision: of the forward pass, see :data:`nodule_plugin.diffusion.sampling.PRECISIONS`.

    Returns:
        The autoencoder in evaluation mode, each channel of its latents with unit variance (``scaling_factor`` is 1).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae, judge = build_autoencoder(latent_channels, patches.shape[-1]), PatchDiscriminator()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0.01)
    judge_optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-4, betas=(0.5, 0.9))
    dtype = sampling.precision_dtype(precision)
    with tqdm(range(steps), desc="autoencoder", unit="step", mininterval=10) as bar:
        for step in bar:
            elapsed = step / steps
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1, step / 50) * (0.02 + 0.49 * (1 + _cosine(elapsed)))
            chosen = torch.randint(len(patches), (batch_size,), generator=generator)
            # Small crops first: four times the steps in the same time, and the network is convolutional.
            side = patches.shape[-1] // 2 if elapsed < 0.85 else patches.shape[-1]
            images = random_crop(augment(patches[chosen], generator), side, generator).repeat(1, 3, 1, 1)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                posterior = vae.encode(images).latent_dist
                output = vae.decode(posterior.sample()).sample
            output = output.float()
            error = l1_loss(output, images)
            loss = error + kl_weight * posterior.kl().float().mean()
            if adversarial := elapsed > 1 - adversarial_fraction:
                loss = loss + 0.02 * min(1, (elapsed - 1 + adversarial_fraction) * 10) * -judge(output).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            if adversarial:
                judge_loss = (relu(1 - judge(images)) + relu(1 + judge(output.detach()))).mean()
                judge_optimizer.zero_grad()
                judge_loss.backward()
                judge_optimizer.step()
            bar.set_postfix(error=f"{error.item():.4f}", refresh=False)
    vae.requires_grad_(False).eval()
    balance_channels(vae, patches[:: -(-len(patches) // 1024)])  # of all nodules: they lie in order
    return vae


def _cosine(fraction: float) -> float:
    return float(torch.cos(torch.tensor(fraction * torch.pi)))


@torch.no_grad()
def balance_channels(vae: AutoencoderKL, patches: torch.Tensor) -> None:
    """Give each channel of the latents zero mean and unit variance over ``patches`` (N, 1, H, H) in [-1, 1], in place.

    Of the latents as they are drawn in training, their spread about their means included: a channel that says little
    is mostly that. Stable Diffusion has one ``scaling_factor`` for all channels. Where they differ much, as in a small
    autoencoder, the loss of the diffusion is that of the loudest channel. Scale and shift go into the 1 x 1
    convolutions on both sides of the latents: the images that come out stay the same.
    """
    drawn = [vae.encode(batch.repeat(1, 3, 1, 1)).latent_dist for batch in patches.split(64)]
    means, variances = (torch.cat([getattr(distribution, name) for distribution in drawn]) for name in ("mean", "var"))
    shift, scale = means.mean((0, 2, 3)), (means.var((0, 2, 3)) + variances.mean((0, 2, 3))).sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    channels = len(scale)
    out.bias += out.weight[..., 0, 0] @ shift
    out.weight *= scale.view(1, -1, 1, 1)
    into.weight[:channels] /= scale.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - shift) / scale
    into.bias[channels:] -= 2 * scale.log()
    vae.register_to_config(scaling_factor=1.0)
