"""The small base model: Stable Diffusion's classes and folder layout, a hundredth of its size, trained from scratch.

Its U-Net and text encoder learn together, on phantoms and on the training part of real crops: here words get their
meaning from images, where Stable Diffusion's text encoder brings one along. Fine-tuning then freezes the text encoder,
as for the large models.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from nodule_plugin.data.transforms import ORIENTATIONS, orient
from nodule_plugin.diffusion.training import denoising_target
from nodule_plugin.files import replacing
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import findings_to_prompt
from nodule_plugin.tiny.tokenizer import clip_tokenizer

TEXT_WIDTH = 64


def build_unet(sample_size: int, latent_channels: int) -> UNet2DConditionModel:
    """An untrained U-Net of 6 million parameters."""
    widths = (48, 96, 144)
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=tuple(width // 24 for width in widths),
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


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with zero terminal signal, v-prediction and trailing steps.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024: without, the mean brightness
    leaks through the last step, and a CT's mean carries meaning.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


@dataclass
class LatentPool:
    """Images as the autoencoder's posteriors, each under the 8 rotations and reflections of the square.

    Attributes:
        mean, std: (8, N, C, h, w), scaled to unit variance over the pool they were made from.
        findings: N.
    """

    mean: torch.Tensor
    std: torch.Tensor
    findings: Sequence[Findings]


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, images: torch.Tensor, findings: Sequence[Findings]) -> LatentPool:
    """Encode (N, 1, H, H) images in [-1, 1] under all 8 augmentations; these act on pixels, not on latents."""
    means, stds = [], []
    for orientation in tqdm(range(ORIENTATIONS), desc="encoding"):
        turned = orient(images, orientation)
        posteriors = [vae.encode(part.repeat(1, 3, 1, 1)).latent_dist for part in turned.split(64)]
        means.append(torch.cat([posterior.mean for posterior in posteriors]) * vae.config.scaling_factor)
        stds.append(torch.cat([posterior.std for posterior in posteriors]) * vae.config.scaling_factor)
    return LatentPool(torch.stack(means), torch.stack(stds), findings)


def snr_weight(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """Min-SNR-gamma weights for v-prediction, ``min(SNR, gamma) / (SNR + 1)`` (Hang et al., ICCV 2023, equation 8)."""
    alpha = scheduler.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr + 1)


class JointTrainer:
    """Trains a U-Net and its text encoder together on pools of latents; state in one file, so that it can go on.

    Args:
        latent_channels, sample_size: of the latents.
        learning_rate: reached after 200 steps.
        ema_decay: of the moving average that is kept of both networks.
        seed: of the weights and of every draw.
    """

    def __init__(
        self,
        latent_channels: int,
        sample_size: int,
        learning_rate: float = 6e-4,
        ema_decay: float = 0.999,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.networks = nn.ModuleDict(
            {"unet": build_unet(sample_size, latent_channels), "text_encoder": build_text_encoder()}
        )
        self.average = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.scheduler = DDPMScheduler.from_config(build_scheduler().config)
        self.tokenizer = clip_tokenizer()
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), lr=learning_rate, weight_decay=0.01)
        self.learning_rate, self.ema_decay, self.step = learning_rate, ema_decay, 0
        self._tokens: dict[str, torch.Tensor] = {}

    def train(
        self,
        pools: Sequence[LatentPool],
        shares: Sequence[float],
        minutes: float,
        checkpoint: Path,
        batch_size: int = 32,
        final_learning_rate: float = 1e-5,
    ) -> None:
        """Train for ``minutes``; each image of a batch comes from pool i with probability ``shares[i]``."""
        start, elapsed, losses = time.monotonic(), 0.0, [0.0]
        saved = start
        with tqdm(desc="diffusion", unit="step", mininterval=10, initial=self.step) as bar:
            while elapsed < 1:
                decay = final_learning_rate + (self.learning_rate - final_learning_rate) * (
                    0.5 + 0.5 * math.cos(math.pi * elapsed)
                )
                for group in self.optimizer.param_groups:
                    group["lr"] = decay * min(1, (self.step + 1) / 200)
                losses.append(0.98 * losses[-1] + 0.02 * self._step(*self._draw(pools, shares, batch_size)))
                bar.set_postfix(loss=f"{losses[-1] / (1 - 0.98 ** (len(losses) - 1)):.4f}", refresh=False)
                bar.update()
                elapsed = (time.monotonic() - start) / (60 * minutes)
                if time.monotonic() - saved > 120:
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.save(checkpoint)

    def _draw(
        self, pools: Sequence[LatentPool], shares: Sequence[float], batch_size: int
    ) -> tuple[torch.Tensor, list[str]]:
        latents, prompts = [], []
        for index in torch.multinomial(torch.tensor(shares), batch_size, replacement=True).tolist():
            pool = pools[index]
            variant, place = int(torch.randint(8, ())), int(torch.randint(len(pool.findings), ()))
            mean, std = pool.mean[variant, place], pool.std[variant, place]
            latents.append(mean + std * torch.randn_like(mean))
            prompts.append(_random_prompt(pool.findings[place]))
        return torch.stack(latents), prompts

    def _step(self, latents: torch.Tensor, prompts: list[str]) -> float:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = denoising_target(self.scheduler, latents, noise, timesteps)
        tokens = torch.stack([self._encode(prompt) for prompt in prompts])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = self.networks["text_encoder"](tokens).last_hidden_state
            prediction = self.networks["unet"](noisy, timesteps, encoder_hidden_states=context).sample.float()
        weights = snr_weight(self.scheduler, timesteps)
        error = (prediction - target).square().mean((1, 2, 3))
        self.optimizer.zero_grad()
        (weights * error).mean().backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, current in zip(self.average.parameters(), self.networks.parameters()):
                average.lerp_(current, 1 - decay)
        return error.mean().item()

    def _encode(self, prompt: str) -> torch.Tensor:
        if prompt not in self._tokens:
            ids = self.tokenizer(prompt, padding="max_length", max_length=77).input_ids
            self._tokens[prompt] = torch.tensor(ids)
        return self._tokens[prompt]

    def save(self, path: Path) -> None:
        """Write everything that training needs to go on."""
        state = {
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": torch.get_rng_state(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on from :meth:`save`."""
        state = torch.load(path, weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        torch.set_rng_state(state["random"])


def _random_prompt(findings: Findings) -> str:
    """The reference wording as a rule, the detailed one and the empty prompt now and then."""
    chance = float(torch.rand(()))
    if chance < 0.1:
        return ""
    return findings_to_prompt(findings, "detailed" if chance < 0.25 else "reference")


def save_base_model(folder: Path, trainer: JointTrainer, vae: AutoencoderKL, card: str) -> None:
    """Write the averaged networks and the autoencoder in diffusers' folder layout, weights in half precision.

    Args:
        folder: replaced as a whole.
        card: text of its README.md.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        root = Path(temporary) / "model"
        parts: dict[str, Any] = {"vae": vae, **dict(trainer.average.items())}
        for name, part in parts.items():
            copy.deepcopy(part).half().save_pretrained(root / name)
            _forget_origin(root / name / "config.json")
        trainer.tokenizer.save_pretrained(root / "tokenizer")
        build_scheduler().save_pretrained(root / "scheduler")
        (root / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
        (root / "README.md").write_text(card)
        shutil.rmtree(folder, ignore_errors=True)
        root.rename(folder)


def _forget_origin(file: Path) -> None:
    """Remove the folder that diffusers says a part was loaded from: a path of the machine it was trained on."""
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


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
