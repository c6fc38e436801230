"""What a training run is judged by: images from held-out prompts, and the loss of held-out images."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.utils import CommonKeys
from torch import nn
from torchvision.utils import save_image

from nodule_plugin.data.latents import LatentDataset, collate_samples
from nodule_plugin.data.order import SampleKey, sample_seed
from nodule_plugin.diffusion import sampling
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.training import DenoisingPrepareBatch, squared_errors
from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.files import replacing
from nodule_plugin.handlers.selection import HELD_OUT_LOSS
from nodule_plugin.metrics.distribution import FeatureDistanceMetric
from nodule_plugin.metrics.features import FeatureExtractor, InceptionFeatures, OpenCLIPImageFeatures
from nodule_plugin.metrics.intervals import normal_interval
from nodule_plugin.metrics.kernel import KernelDistance

logger = logging.getLogger(__name__)
TRAINING_LOSS = "training_set_loss"
"""Name, in the trainer's metrics, of the denoising loss of training images under the held-out images' noise."""


class SetDistance(Metric):
    """A distance between the generated and the real images of a validation, as an Ignite metric.

    The evaluator's metrics also get ``<name>_low`` and ``<name>_high``, the limits of the 95 % confidence interval by
    the delete-one jackknife, where the distance is a kernel distance and there are images enough.

    Args:
        metric: such as :class:`nodule_plugin.metrics.distribution.KernelDistanceMetric`; joins the images of all
            processes by itself.
    """

    def __init__(self, metric: FeatureDistanceMetric) -> None:
        self.metric = metric
        super().__init__(output_transform=_predictions_and_labels)

    def reset(self) -> None:
        """Forget all images."""
        self.metric.reset()

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take a batch of (generated, real) images, (B, 3, H, W) in [-1, 1]."""
        generated, real = output
        self.metric.update(generated, real=False)
        self.metric.update(real, real=True)

    def compute(self) -> dict[str, float]:
        """``value`` and, of a kernel distance, the limits ``low`` and ``high``."""
        value: Any = self.metric.compute()
        if not isinstance(value, KernelDistance):
            return {"value": float(value)}
        error = self.metric.standard_error()
        limits = {} if math.isnan(error) else dict(zip(("low", "high"), normal_interval(value.mean, error)))
        return {"value": float(value.mean), **limits}

    def completed(self, engine: Engine, name: str) -> None:
        """Put the number and its limits into the engine's metrics."""
        for suffix, value in self.compute().items():
            engine.state.metrics[name if suffix == "value" else f"{name}_{suffix}"] = value


def _predictions_and_labels(output: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return output[CommonKeys.PRED], output[CommonKeys.LABEL]


class HeldOutLoss:
    """The denoising loss of held-out and of training images, on the same noise and timesteps at every validation.

    Puts :data:`HELD_OUT_LOSS` and :data:`TRAINING_LOSS` into the trainer's metrics. Image number n of either set meets
    the same noise and timesteps, so that their difference shows what the model has learned by heart rather than luck.

    Args:
        network: the moving average, as a rule.
        held_out, training: the sets; of the training set as many images are taken as there are held out.
        vae, conditioner, noise_scheduler: of :class:`nodule_plugin.diffusion.training.DenoisingPrepareBatch`, here
            without caption dropout, weights of timesteps and noise offset, so that runs can be compared.
        batch_size: samples in one forward pass.
        draws: noise and timesteps drawn for each image.
        interval: epochs between two validations.
        precision: see :data:`nodule_plugin.diffusion.sampling.PRECISIONS`.
    """

    def __init__(
        self,
        network: nn.Module,
        held_out: LatentDataset,
        training: LatentDataset,
        vae: AutoencoderKL,
        conditioner: TextConditioner,
        noise_scheduler: DDPMScheduler,
        batch_size: int = 16,
        draws: int = 4,
        interval: int = 1,
        precision: str = "float32",
    ) -> None:
        self.network = network
        self.sets = {
            name: (dataset, DenoisingPrepareBatch(vae, conditioner, noise_scheduler, dataset.cache))
            for name, dataset in ((HELD_OUT_LOSS, held_out), (TRAINING_LOSS, training))
        }
        self.count = min(len(held_out), len(training))
        self.batch_size = batch_size
        self.draws = draws
        self.interval = interval
        self.dtype = sampling.precision_dtype(precision)

    def attach(self, engine: Engine) -> None:
        """Compute both at the end of every ``interval``-th epoch of the trainer; other epochs have none."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def _forget(self, engine: Engine) -> None:
        for name in self.sets:
            engine.state.metrics.pop(name, None)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        mode = self.network.training
        self.network.eval()
        for name, (dataset, prepare_batch) in self.sets.items():
            engine.state.metrics[name] = self._mean_loss(dataset, prepare_batch, engine.state.device)
        self.network.train(mode)
        losses = engine.state.metrics
        logger.info(
            "Epoch %d: held-out loss %.5f, the same of training images %.5f, gap %.5f.",
            engine.state.epoch,
            losses[HELD_OUT_LOSS],
            losses[TRAINING_LOSS],
            losses[HELD_OUT_LOSS] - losses[TRAINING_LOSS],
        )

    def _mean_loss(self, dataset: LatentDataset, prepare_batch: DenoisingPrepareBatch, device: torch.device) -> float:
        total, count = 0.0, self.count * self.draws
        for keys in self._batches():
            batch = collate_samples([dataset.fixed(key) for key in keys])
            noisy, target, _, conditions = prepare_batch(batch, device)
            with torch.autocast(noisy.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                prediction = self.network(noisy, **conditions)
            total += float(squared_errors(prediction, target.value).sum())
        return float(idist.all_reduce(total)) / count

    def _batches(self) -> Iterator[list[SampleKey]]:
        keys = [SampleKey(n, sample_seed(n, draw), 1.0) for draw in range(self.draws) for n in range(self.count)]
        own = keys[idist.get_rank() :: idist.get_world_size()]
        for first in range(0, len(own), self.batch_size):
            yield own[first : first + self.batch_size]


class SampleGrid:
    """Write the first generated images of each validation as one picture, and to TensorBoard.

    Args:
        directory: where ``samples_0007.png`` (the epoch's number) and the like go.
        count: images in the grid.
        summary_writer: of TensorBoard; None writes the file only.
    """

    def __init__(self, directory: str, count: int = 32, summary_writer: Any = None) -> None:
        self.directory = Path(directory)
        self.count = count
        self.summary_writer = summary_writer
        self.images: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Collect during a validation, write at its end; of several processes the first, its own images."""
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.images = []

    def _collect(self, engine: Engine) -> None:
        missing = self.count - sum(len(batch) for batch in self.images)
        if missing > 0:
            self.images.append(engine.state.output[CommonKeys.PRED][:missing].detach().float().cpu())

    def _write(self, engine: Engine) -> None:
        images = torch.cat(self.images).clamp(-1, 1) / 2 + 0.5
        with replacing(self.directory / f"samples_{engine.state.epoch:04d}.png") as temporary:
            save_image(images, temporary, nrow=8)
        if self.summary_writer is not None:
            self.summary_writer.add_images("generated", images, engine.state.epoch)


def validation_features(
    inception_weights: str | None, scorer: str, device: torch.device, images: int
) -> FeatureExtractor:
    """What a distance is measured on: Inception where its weights are given, else the image tower of the scorer.

    Raises:
        InputError: if ``images`` are to be measured and the package that does it is not installed: better now than
            after the first epochs.
    """
    if images:
        package = "torch_fidelity" if inception_weights else "open_clip"
        check_installed(package, "evaluate", ", or train without validation (--val_images 0)")
    if inception_weights:
        return InceptionFeatures(inception_weights, device=device)
    return OpenCLIPImageFeatures(scorer, name="tiny nodule encoder", device=device)


def shard(items: Sequence[Any]) -> list[Any]:
    """What this process has to do of ``items``; all of them where there is one process.

    Raises:
        InputError: if there are fewer items than processes, since all must take part.
    """
    if 0 < len(items) < idist.get_world_size():
        raise InputError(f"val_images: {len(items)} for {idist.get_world_size()} processes; give at least one for each")
    return list(items[idist.get_rank() :: idist.get_world_size()])
