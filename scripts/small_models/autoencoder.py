"""The small base model's autoencoder: Stable Diffusion's AutoencoderKL at a fraction of its width.

Trained as latent diffusion's own (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR
2022, section 3.1): reconstruction and a slight pull of the latents to a standard normal. Fine detail has a term of its
own in the place of a discriminator: an absolute error alone is small where an image is merely smooth, and the noise
texture of CT is what networks trained on photographs see first (docs/benchmarks/ablation.md).
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.functional import conv2d, pad
from tqdm import tqdm

from nodule_plugin.diffusion import sampling

COMPRESSION = 2
"""Pixels along each side that share a latent one: half the regions have 19 native pixels or fewer along a side, nine in
ten 35, so that 32 x 32 latents hold what there is; a quarter of 64 has to smooth."""


def build_autoencoder(latent_channels: int = 1, sample_size: int = 64) -> AutoencoderKL:
    """An untrained autoencoder, :data:`COMPRESSION` times smaller in the latents along each side, 0.6 M parameters."""
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=sample_size,
        mid_block_add_attention=False,
    )


PATH, IMAGES, CONSTANTS = 8, [0, 1], [2, 3]
"""The first channels of the trunk, of a group of norms: an image and its negative, a constant and its negative."""
CONSTANT = 8.0
"""Against an image's standard deviation of about 0.5."""
LOG_VARIANCE = -7.0
"""Of the latents at the beginning."""


@torch.no_grad()
def begin_as_resampling(vae: AutoencoderKL) -> None:
    """Let an untrained autoencoder begin as means of 2 x 2 pixels and linear interpolation between them, in place.

    Training then has to learn only what resampling loses: 300 steps for more than 1,000. The residual blocks begin at
    zero, and the trunk's first channels (:data:`PATH`) carry the image past them. Where encoder and decoder end, the
    constant rules the norm of its group, which is a fixed factor therefore, and SiLU(x) - SiLU(-x) is x. Nothing else
    reads the constant, or learns to: all images would grow brighter or darker with every step.
    """
    encoder, decoder, latents = vae.encoder, vae.decoder, vae.config.latent_channels
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
            block.norm1.weight[CONSTANTS] = 0
            if block.conv_shortcut is not None:
                _carry(block.conv_shortcut, torch.ones(1, 1))
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    box, tent = (torch.outer(row, row) for row in (torch.tensor([0.5, 0.5, 0]), torch.tensor([0.25, 0.5, 0.25])))
    _enter(encoder.conv_in, inputs=3)
    _carry(encoder.down_blocks[0].downsamplers[0].conv, box)
    _leave(encoder.conv_norm_out, encoder.conv_out, outputs=1)
    encoder.conv_out.weight[latents:], _bias(encoder.conv_out)[latents:] = 0, LOG_VARIANCE
    _enter(decoder.conv_in, inputs=1)
    _carry(decoder.up_blocks[0].upsamplers[0].conv, tent)
    _leave(decoder.conv_norm_out, decoder.conv_out, outputs=3)


def _enter(convolution: nn.Conv2d, inputs: int) -> None:
    """The path begins with the mean of the first ``inputs`` channels."""
    convolution.weight[:PATH], _bias(convolution)[:PATH] = 0, 0
    for image, constant, sign in zip(IMAGES, CONSTANTS, (1, -1)):
        convolution.weight[image, :inputs, 1, 1] = sign / inputs
        _bias(convolution)[constant] = sign * CONSTANT


def _carry(convolution: nn.Conv2d, kernel: torch.Tensor) -> None:
    """The path goes on, its image resampled by ``kernel``."""
    convolution.weight[:PATH], _bias(convolution)[:PATH] = 0, 0
    convolution.weight[:, CONSTANTS] = 0
    middle = len(kernel) // 2
    for image, constant in zip(IMAGES, CONSTANTS):
        convolution.weight[image, image] = kernel
        convolution.weight[constant, constant, middle, middle] = 1
    convolution.weight.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor(CONSTANTS), 0))


def _leave(norm: nn.GroupNorm, convolution: nn.Conv2d, outputs: int) -> None:
    """The path ends: each of the first ``outputs`` channels is its image."""
    norm.weight[IMAGES] = CONSTANT * (2 * norm.num_groups / norm.num_channels) ** 0.5
    norm.weight[CONSTANTS] = 0
    convolution.weight[:outputs], _bias(convolution)[:outputs] = 0, 0
    for image, sign in zip(IMAGES, (1, -1)):
        convolution.weight[:outputs, image, 1, 1] = sign


def _bias(convolution: nn.Conv2d) -> torch.Tensor:
    assert convolution.bias is not None  # diffusers' convolutions all have one
    return convolution.bias


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of the 8 rotations and reflections of the square for the whole batch, (B, C, H, H)."""
    turn, flip = torch.randint(0, 8, (1,), generator=generator).item() % 4, torch.rand(1, generator=generator) < 0.5
    images = images.rot90(int(turn), (-2, -1))
    return images.flip(-1) if flip else images


def random_crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """The same random square of ``side`` pixels from each image of the batch."""
    row, column = torch.randint(0, images.shape[-1] - side + 1, (2,), generator=generator).tolist()
    return images[..., row : row + side, column : column + side]


def high_pass(images: torch.Tensor) -> torch.Tensor:
    """What a binomial blur of 5 x 5 pixels takes from (B, C, H, W) images."""
    weights = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(weights, weights).expand(images.shape[1], 1, 5, 5)
    return images - conv2d(pad(images, [2, 2, 2, 2], mode="reflect"), kernel, groups=images.shape[1])


def train_autoencoder(
    patches: torch.Tensor,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-4,
    detail_weight: float = 5.0,
    kl_weight: float = 2e-7,
    latent_channels: int = 1,
    precision: str = "float32",
    seed: int = 0,
) -> AutoencoderKL:
    """Train from scratch.

    Args:
        patches: (N, 1, H, H) in [-1, 1].
        steps: the learning rate falls along them by a half cosine.
        batch_size: of crops of half the side for the first 85 % of the steps, which take a quarter of the time; then of
            half as many whole patches.
        detail_weight: of the absolute error of :func:`high_pass` beside that of the image.
        kl_weight: of the latents' divergence from a standard normal, summed over a crop's latents.
        latent_channels: see :func:`build_autoencoder`.
        precision: of the forward pass, see :data:`nodule_plugin.diffusion.sampling.PRECISIONS`.

    Returns:
        The autoencoder in evaluation mode, each channel of its latents with unit variance (``scaling_factor`` is 1).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = build_autoencoder(latent_channels, patches.shape[-1])
    begin_as_resampling(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0.01)
    dtype = sampling.precision_dtype(precision)
    with tqdm(range(steps), desc="autoencoder", unit="step", mininterval=10) as bar:
        for step in bar:
            elapsed = step / steps
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1, (step + 1) / 20) * (0.02 + 0.49 * (1 + _cosine(elapsed)))
            parts = 2 if elapsed < 0.85 else 1
            chosen = torch.randint(len(patches), (max(1, batch_size * parts // 2),), generator=generator)
            images = random_crop(augment(patches[chosen], generator), patches.shape[-1] // parts, generator)
            images = images.repeat(1, 3, 1, 1)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                posterior = vae.encode(images).latent_dist
                output = vae.decode(posterior.sample()).sample
            error = output.float() - images
            loss = error.abs().mean() + detail_weight * high_pass(error).abs().mean()
            loss = loss + kl_weight * posterior.kl().float().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            bar.set_postfix(error=f"{error.abs().mean().item():.4f}", refresh=False)
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
