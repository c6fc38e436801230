"""Guided sampling of latent diffusion models, as a MONAI Inferer."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import torch
from monai.engines.utils import PrepareBatch
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from nodule_plugin.diffusion.latent_space import latent_shape, unscaled
from nodule_plugin.errors import InputError
from nodule_plugin.settings import whole_number
from nodule_plugin.weights import one_line

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the setting ``precision`` may say."""
SMALL_NETWORK = 20_000_000
"""Parameters below which a network's operations are too short for several threads."""


def precision_dtype(precision: str) -> torch.dtype:
    """The number format of that name.

    Raises:
        InputError: if there is none.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: choose one of {', '.join(PRECISIONS)}, not {precision!r}")
    return PRECISIONS[precision]


class GuidedSampler(Inferer):
    """From Gaussian noise to images, with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    The model's prediction is ``u + s (c - u)``, where c is predicted from the prompt, u from the empty prompt and s is
    the guidance scale. s = 1 is the prompt's prediction alone and s = 0 the empty prompt's alone; both cost half.
    Whether the network predicts epsilon, v or the sample the scheduler reads from the base model's own configuration.

    The same seed gives the same image, to the last bit, whatever the batch size: matrix products of other sizes add up
    in another order, so the network sees ``images_per_call`` images at a time and never the batch. That promise holds
    for 1; with more an image also shares its calls with others (the last group is padded by repetition, so that the
    size stays), and where it stands among them can change it by rounding errors (about 1e-6 in float32).

    Args:
        scheduler: the base model's diffusers scheduler; copied for every group, since many keep state between steps.
        vae: diffusers' AutoencoderKL (or one with its ``decode`` and ``config``), on the device of the inputs.
        num_inference_steps: denoising steps, the setting "steps".
        scheduler_class: name of a diffusers scheduler to use with the configuration of ``scheduler``; None keeps it.
        images_per_call: images in one network call; guidance doubles it. More helps GPUs and very small networks.
        guidance_interval: (from, to) fraction of the steps that is guided, the rest has scale 1 (Kynkaanniemi et al.
            2024, arXiv:2404.07724). None guides all.
        guidance_rescale: 0 to 1, how far to bring the guided prediction back to the standard deviation of c (Lin et al.
            2023, arXiv:2305.08891, section 3.4): at high scales images saturate without.
        precision: of the network's forward pass, see :data:`PRECISIONS`; all else stays float32.
        calls_at_once: groups that are sampled at the same time, which share the processor's threads; see
            :func:`calls_at_once`.

    Raises:
        InputError: if a setting is out of its range or there is no such scheduler.
    """

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        num_inference_steps: int = 25,
        scheduler_class: str | None = "DPMSolverMultistepScheduler",
        images_per_call: int = 1,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        precision: str = "float32",
        calls_at_once: int = 1,
    ) -> None:
        self.scheduler = scheduler if scheduler_class is None else derive_scheduler(scheduler, scheduler_class)
        self.vae = vae
        self.num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        _check_steps(self.scheduler, self.num_inference_steps)
        self.images_per_call = whole_number("images_per_call", images_per_call)
        self.guidance_interval = _checked_interval(guidance_interval)
        if not 0 <= guidance_rescale <= 1:
            raise InputError(f"guidance_rescale: a number from 0 to 1 is needed, not {guidance_rescale!r}")
        self.guidance_rescale = float(guidance_rescale)
        precision_dtype(precision)
        self.precision = precision
        self.calls_at_once = whole_number("calls_at_once", calls_at_once)

    @property
    def settings(self) -> dict[str, Any]:
        """What, beside the weights and the request, decides how an image looks; for manifests."""
        return {
            "scheduler": type(self.scheduler).__name__,
            "prediction_type": self.scheduler.config.get("prediction_type", "epsilon"),
            "num_inference_steps": self.num_inference_steps,
            "guidance_interval": self.guidance_interval and list(self.guidance_interval),
            "guidance_rescale": self.guidance_rescale,
            "images_per_call": self.images_per_call,
            "precision": self.precision,
        }

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *,
        context: Tensor,
        unconditional: Tensor | None = None,
        guidance_scale: float | Sequence[float] | Tensor = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Sample.

        Args:
            inputs: (B, C, h, w) standard normal noise in latent space, see :func:`seeded_noise`.
            network: ``network(latents, timesteps=(B,), context=(B, L, D)) -> (B, C, h, w)``.
            context: (B, L, D) embeddings of the prompts.
            unconditional: (1 or B, L, D) embedding of the empty prompt; may be None only if every scale is 1.
            guidance_scale: one for all, or one per image; 0 or above.
            seeds: those the noise was drawn with. Schedulers that add noise at each step continue each image's own
                stream; without seeds they draw from torch's global generator.

        Returns:
            (B, 3, H, W) float32 images in [-1, 1].

        Raises:
            InputError: if a guidance scale is negative or not finite, or the empty prompt's embedding is missing.
        """
        count = len(inputs)
        scales = _checked_scales(guidance_scale, count)
        if unconditional is None and any(scale != 1 for scale in scales):
            raise InputError("unconditional: guidance scales other than 1 need the embedding of the empty prompt")
        empty = context if unconditional is None else unconditional.expand(count, *unconditional.shape[1:])

        @torch.no_grad()  # of each thread its own
        def sampled(group: list[int]) -> Tensor:
            padded = group + group[-1:] * (self.images_per_call - len(group))
            latents = self._denoise(
                inputs[padded],
                network,
                context[padded],
                empty[padded],
                [scales[index] for index in padded],
                None if seeds is None else [int(seeds[index]) for index in padded],
            )
            return decode_latents(self.vae, latents)[: len(group)]

        groups = _groups(scales, self.images_per_call)
        images = torch.cat(self._each(sampled, groups))
        order = [index for group in groups for index in group]
        return images[torch.tensor(order).argsort().to(images.device)]

    def _each(self, sampled: Callable[[list[int]], Tensor], groups: list[list[int]]) -> list[Tensor]:
        """Every group's images; where several are sampled at once, one alone also has a share of the threads only.

        On more threads a sum adds up in another order, and the batch would be seen in the image.
        """
        if self.calls_at_once == 1:
            return [sampled(group) for group in groups]
        threads = torch.get_num_threads()
        share = max(1, threads // self.calls_at_once)
        try:
            with ThreadPoolExecutor(self.calls_at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
                return list(pool.map(sampled, groups))
        finally:
            torch.set_num_threads(threads)  # threads that others start later take the last number that was set

    def _denoise(
        self,
        noise: Tensor,
        network: Callable[..., Tensor],
        context: Tensor,
        empty: Tensor,
        scales: list[float],
        seeds: list[int] | None,
    ) -> Tensor:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.num_inference_steps, device=noise.device)
        step_options: dict[str, Any] = {}
        if seeds is not None and "generator" in inspect.signature(scheduler.step).parameters:
            step_options["generator"] = [_generator_after_noise(seed, noise.shape[1:]) for seed in seeds]
        latents = noise.float() * scheduler.init_noise_sigma
        for index, timestep in enumerate(scheduler.timesteps):
            fraction = index / len(scheduler.timesteps)
            low, high = self.guidance_interval or (0.0, 1.0)
            prediction = self._predict(
                network,
                scheduler.scale_model_input(latents, timestep),
                timestep,
                context,
                empty,
                scales if low <= fraction < high or scales[0] == 0 else [1.0] * len(scales),
            )
            latents = scheduler.step(prediction, timestep, latents, **step_options, return_dict=False)[0]
        return latents

    def _predict(
        self,
        network: Callable[..., Tensor],
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        empty: Tensor,
        scales: list[float],
    ) -> Tensor:
        kind = _kind(scales[0])
        if kind != "guided":
            return self._run(network, latents, timestep, context if kind == "conditional" else empty)
        both = self._run(network, torch.cat([latents] * 2), timestep, torch.cat([empty, context]))
        unconditional, conditional = both.chunk(2)
        scale = torch.tensor(scales, device=latents.device).view(-1, *[1] * (latents.ndim - 1))
        return _rescale(unconditional + scale * (conditional - unconditional), conditional, self.guidance_rescale)

    def _run(self, network: Callable[..., Tensor], latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        dtype = precision_dtype(self.precision)
        with torch.autocast(latents.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return network(latents, timesteps=timestep.expand(len(latents)), context=context).float()


class GenerationPrepareBatch(PrepareBatch):
    """From requests (see :mod:`nodule_plugin.data.requests`) to what :class:`GuidedSampler` takes.

    Prompts are encoded one at a time, so that an embedding does not depend on its neighbours.

    Args:
        conditioner: ``conditioner(list of B prompts) -> (B, L, D)``, which remembers those it knows, such as
            :class:`nodule_plugin.diffusion.components.TextConditioner`.
        vae: the autoencoder whose latents are sampled; its configuration gives their channels and size.
        image_size: height and width of the images, pixels.
        prompts: encoded at once, so that one that is too long is found before the first image is made.
        mark: ``mark(noise, seeds)``, what is done to the noise that seeds give, such as
            :class:`nodule_plugin.provenance.marking.ImageMark`; None for nothing.

    Raises:
        InputError: if the autoencoder cannot make images of that size.
    """

    def __init__(
        self,
        conditioner: Callable[[list[str]], Tensor],
        vae: Any,
        image_size: int,
        prompts: Iterable[str] = (),
        mark: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
    ) -> None:
        self.latent_shape = latent_shape(vae, image_size)
        self.conditioner = conditioner
        self.mark = mark
        for prompt in dict.fromkeys(prompts):
            conditioner([prompt])

    def __call__(
        self,
        batchdata: Sequence[Mapping[str, Any]],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, tuple, dict[str, Any]]:
        """Noise and conditions of a list of requests, each with ``prompt``, ``guidance_scale`` and ``seed``."""
        seeds = [int(request["seed"]) for request in batchdata]
        options: dict[str, Any] = {"device": device, "non_blocking": non_blocking, **kwargs}
        conditions = {
            "context": torch.cat([self.conditioner([request["prompt"]]) for request in batchdata]).to(**options),
            "unconditional": self.conditioner([""]).to(**options),
            "guidance_scale": [float(request["guidance_scale"]) for request in batchdata],
            "seeds": seeds,
        }
        noise = seeded_noise(seeds, self.latent_shape)
        return (self.mark(noise, seeds) if self.mark else noise).to(**options), None, (), conditions


def calls_at_once(network: nn.Module) -> int:
    """How many groups :class:`GuidedSampler` best samples at the same time.

    The operations of a small network are too short to be shared among threads: two images at once take 0.6 of the time
    on two cores, with the same bits. A large network fills all threads, and a GPU, with one.

    Returns:
        PyTorch's threads for a network below :data:`SMALL_NETWORK` parameters on the CPU, else 1.
    """
    parameters = list(network.parameters())
    small = sum(parameter.numel() for parameter in parameters) < SMALL_NETWORK
    return torch.get_num_threads() if small and all(parameter.device.type == "cpu" for parameter in parameters) else 1


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, each item from its own generator on the CPU: the same on every device, in every batch.

    Args:
        seeds: one per item.
        shape: of one item.

    Returns:
        (len(seeds), *shape) float32 on the CPU.
    """
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Images of latents that are scaled as the base model's own configuration says.

    Args:
        vae: diffusers' AutoencoderKL.
        latents: (B, C, h, w).

    Returns:
        (B, 3, H, W) float32 in [-1, 1].
    """
    weights = next(vae.parameters(), latents)  # an autoencoder of pixels has none
    return vae.decode(unscaled(vae, latents).to(weights.dtype), return_dict=False)[0].float().clamp(-1, 1)


def derive_scheduler(base: Any, name: str) -> Any:
    """The diffusers scheduler called ``name`` with the noise schedule and prediction type of ``base``.

    Raises:
        InputError: if diffusers has none of that name that can take the configuration of ``base``, or a package that it
            needs is missing.
    """
    names = sorted({kind.__name__ for kind in base.compatibles} | {type(base).__name__})
    if name not in names:
        raise InputError(f"scheduler_class: {name!r} does not fit the base model's; choose one of {', '.join(names)}")
    try:
        return getattr(diffusers, name).from_config(base.config)
    except ImportError as error:
        missing = re.search(r"pip install (?:-U |--upgrade )?([\w-]+)", str(error))
        remedy = f"pip install {missing[1]}, or choose another scheduler" if missing else "choose another scheduler"
        raise InputError(f"scheduler_class: {name} needs a package that is not installed; {remedy}") from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"scheduler_class: {name} cannot be used with this base model ({one_line(error)})") from error


def _check_steps(scheduler: Any, steps: int) -> None:
    """Try the timesteps out, on a copy, before the first image: beyond its training the model knows none.

    Raises:
        InputError: if they are out of range.
    """
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(steps)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"steps: {steps} are not possible with {type(trial).__name__} ({one_line(error)})") from error
    known, first = trial.config.num_train_timesteps, trial.timesteps.max()
    if first >= known or len(trial.timesteps.unique()) < steps:
        fault = f"begin at timestep {int(first)}" if first >= known else "fall on the same timesteps"
        raise InputError(
            f"steps: {steps} of {type(trial).__name__} {fault}, and the base model knows 0 to {known - 1}; take fewer"
        )


def _kind(scale: float) -> str:
    return {1.0: "conditional", 0.0: "unconditional"}.get(scale, "guided")


def _groups(scales: list[float], size: int) -> list[list[int]]:
    """Indices of images that need the same network calls, in groups of at most ``size``."""
    kinds: dict[str, list[int]] = {}
    for index, scale in enumerate(scales):
        kinds.setdefault(_kind(scale), []).append(index)
    return [members[at : at + size] for members in kinds.values() for at in range(0, len(members), size)]


def _generator_after_noise(seed: int, shape: Sequence[int]) -> torch.Generator:
    """A generator that goes on where :func:`seeded_noise` stopped: the steps' noise must not repeat the first."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(*shape, generator=generator)
    return generator


def _rescale(guided: Tensor, conditional: Tensor, fraction: float) -> Tensor:
    if fraction == 0:
        return guided
    dims = list(range(1, guided.ndim))
    rescaled = guided * (conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return fraction * rescaled + (1 - fraction) * guided


def _checked_scales(scales: float | Sequence[float] | Tensor, count: int) -> list[float]:
    values = torch.as_tensor(scales, dtype=torch.float64).flatten().expand(count).tolist()
    for value in values:
        if not 0 <= value < float("inf"):
            raise InputError(f"guidance_scale: a number of 0 or above is needed, not {value:g}")
    return values


def _checked_interval(interval: Sequence[float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low < high <= 1:
        raise InputError(f"guidance_interval: two rising numbers from 0 to 1 are needed, not {interval!r}")
    return low, high
