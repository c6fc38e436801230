"""Training with differential privacy, whose unit is the patient.

Noisy gradient descent (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133) that bounds
what one patient, with all images and prompts, can change, as McMahan et al. (ICLR 2018, arXiv:1710.06963) bound a user:
every patient joins a step with the same probability, a patient's gradient is shortened to ``max_grad_norm``, and
Gaussian noise is added to the sum. The accounting is Opacus'. Neighbouring sets differ by one patient who is there or
not.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor
from torch.utils.data import Sampler

from nodule_plugin.data.order import SampleKey
from nodule_plugin.diffusion.iteration import TrainingIteration
from nodule_plugin.errors import InputError
from nodule_plugin.extras import Extra
from nodule_plugin.files import write_json
from nodule_plugin.settings import whole_number

logger = logging.getLogger(__name__)

_accounting: Any = Extra("opacus.accountants", "private")
_noise: Any = Extra("opacus.accountants.utils", "private")


class PatientSampler(Sampler[list[SampleKey]]):
    """A step's samples: each patient is there with the same probability, by itself (Poisson sampling).

    One batch is one optimizer step; a patient's images stand one after the other, their weights add up to 1. Where no
    patient was drawn, there is one sample of weight 0. Which patients join must not be known to those from whom the
    guarantee protects: the numbers come from the system, not from the run's seed, and differ from run to run.

    Args:
        patients: of each item of the data set.
        patients_per_step: expected.
        images_per_patient: drawn with replacement in a step.
        seed: of the run; it decides nothing here.

    Raises:
        InputError: if there are fewer patients than a step expects, or several processes.
    """

    accumulation_steps = world_size = 1

    def __init__(
        self, patients: Sequence[str], patients_per_step: int, images_per_patient: int = 1, seed: int = 0
    ) -> None:
        whole_number("patients_per_step", patients_per_step)
        whole_number("images_per_patient", images_per_patient)
        if idist.get_world_size() > 1:
            raise InputError("training: with differential privacy it runs in one process, not in several")
        self.items: dict[str, list[int]] = {}
        for index, patient in enumerate(patients):
            self.items.setdefault(patient, []).append(index)
        if patients_per_step > len(self.items):
            raise InputError(f"patients_per_step: {patients_per_step}, and there are {len(self.items)} patients only")
        self.length = len(patients)
        self.patients_per_step = patients_per_step
        self.images_per_patient = images_per_patient
        self.seed = seed
        self._start = 0
        self._random = np.random.default_rng(secrets.randbits(128))

    @property
    def sample_rate(self) -> float:
        """The probability with which a patient joins a step."""
        return self.patients_per_step / len(self.items)

    @property
    def batch_size(self) -> int:
        """Samples of a step, expected."""
        return self.patients_per_step * self.images_per_patient

    step_size = batch_size

    def __len__(self) -> int:
        """Steps of an epoch, in which as many samples are drawn as there are."""
        return -(-self.length // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """The same."""
        return len(self)

    def ends_step(self, batch: int) -> bool:
        """Always: a batch is a step."""
        return True

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Leave out the first ``start`` steps of the next epoch."""
        self._start = start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for _ in range(self._start, len(self)):
            joining = self._random.random(len(self.items)) < self.sample_rate
            keys = [
                self._key(int(self._random.choice(items)), 1 / self.images_per_patient)
                for items, joins in zip(self.items.values(), joining)
                if joins
                for _ in range(self.images_per_patient)
            ]
            yield keys or [self._key(0, 0.0)]

    def _key(self, index: int, weight: float) -> SampleKey:
        return SampleKey(index, int(self._random.integers(2**63 - 1)), weight)


@dataclass(frozen=True)
class Guarantee:
    """What is guaranteed to a patient.

    Attributes:
        epsilon, delta: of differential privacy; epsilon is infinite where no noise is added.
        noise_multiplier: the noise's standard deviation over ``max_grad_norm``.
        sample_rate: the probability with which a patient joins a step.
        steps: of the optimizer.
        patients: in training.
        known: how many of them the base model has learnt from before, which the guarantee does not cover.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    patients: int
    known: int = 0

    @classmethod
    def planned(
        cls,
        sampler: PatientSampler,
        epochs: int,
        epsilon: float | None,
        delta: float | None = None,
        known: Collection[str] = (),
    ) -> Guarantee:
        """The least noise with which a whole training keeps to an epsilon.

        Args:
            sampler: of the training.
            epochs: of the training.
            epsilon: at most; None adds no noise, for comparison.
            delta: None for a tenth of one over the number of patients.
            known: patients that a network of the base model (the autoencoder, too) has learnt from.

        Raises:
            InputError: if a number is out of its range, no noise is enough, or Opacus is not installed.
        """
        patients, steps = len(sampler.items), epochs * len(sampler)
        delta = 0.1 / patients if delta is None else delta
        if not 0 < delta < 1:
            raise InputError(f"delta: a probability between 0 and 1 is needed, not {delta}")
        seen = len(sampler.items.keys() & set(known))
        if seen:
            logger.warning(
                "The base model has learnt from %d of these %d patients before, without differential privacy: the"
                " guarantee is of what this training adds. Begin from a base model that has seen none of them.",
                seen,
                patients,
            )
        if epsilon is None:
            return cls(float("inf"), delta, 0.0, sampler.sample_rate, steps, patients, seen)
        if not 0 < epsilon < float("inf"):
            raise InputError(f"epsilon: a number above 0 is needed, or null for none, not {epsilon}")
        try:
            noise = _noise.get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sampler.sample_rate,
                steps=steps,
                accountant="rdp",  # by Renyi divergence, an upper bound
            )
        except ValueError as error:
            raise InputError(f"epsilon: {epsilon} cannot be kept to in {steps} steps ({error})") from error
        return cls(0.0, delta, noise, sampler.sample_rate, steps, patients, seen).after(steps)

    def after(self, steps: int) -> Guarantee:
        """The same with the epsilon that so many steps have spent."""
        if self.noise_multiplier == 0:
            return replace(self, steps=steps)
        accountant = _accounting.RDPAccountant()
        accountant.history = [(self.noise_multiplier, self.sample_rate, steps)]
        return replace(self, steps=steps, epsilon=float(accountant.get_epsilon(self.delta)))

    def describe(self) -> dict[str, Any]:
        """Of JSON's types; no epsilon where it is infinite."""
        return {"unit": "patient", **asdict(self), "epsilon": None if self.noise_multiplier == 0 else self.epsilon}


class PrivateIteration(TrainingIteration):
    """A step: every patient's gradient by itself, shortened, summed, noised, over the expected number of patients.

    Args:
        guarantee: tells how much noise.
        max_grad_norm: what a patient's gradient is shortened to.
        optimizer, sampler, precision, lr_scheduler: see :class:`TrainingIteration`.

    Raises:
        InputError: if a setting is out of its range.
    """

    sampler: PatientSampler  # type: ignore[assignment]

    def __init__(self, guarantee: Guarantee, max_grad_norm: float | None, precision: str, **options: Any) -> None:
        if max_grad_norm is None or max_grad_norm <= 0:
            raise InputError(f"max_grad_norm: differential privacy needs a number above 0, not {max_grad_norm}")
        if precision == "float16":
            raise InputError("precision: differential privacy takes bfloat16 or float32, not float16")
        super().__init__(precision=precision, **options)
        self.guarantee = guarantee
        self.norm = max_grad_norm
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._random = torch.Generator(self.parameters[0].device)
        self._random.manual_seed(secrets.randbits(63))

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Train on a step's samples; the loss is the patients' sum over their expected number."""
        inputs, target, args, kwargs = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        engine.network.train()
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        loss = torch.zeros((), device=inputs.device)
        size = self.sampler.images_per_patient
        for first in range(0, len(inputs), size):
            part = slice(first, first + size)
            options = {name: _part(value, part) for name, value in kwargs.items()}
            with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                prediction = engine.inferer(inputs[part], engine.network, *(_part(v, part) for v in args), **options)
            own = engine.loss_function(prediction, _part(target, part))
            own.backward()
            add_clipped(total, [parameter.grad for parameter in self.parameters], self.norm)
            self.optimizer.zero_grad(set_to_none=True)
            loss += own.detach()
        deviation = self.guarantee.noise_multiplier * self.norm
        for parameter, gradient in zip(self.parameters, total):
            noise = torch.randn(gradient.shape, generator=self._random, device=gradient.device, dtype=gradient.dtype)
            parameter.grad = (gradient + deviation * noise) / self.sampler.patients_per_step
        self._loss = loss / self.sampler.patients_per_step
        engine.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: target, CommonKeys.LOSS: self._loss}
        self._step(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [engine.state.output]


def add_clipped(total: Sequence[Tensor], gradients: Sequence[Tensor | None], norm: float) -> None:
    """Add gradients, shortened all together to a norm, to ``total`` in place; such as are not finite count as zero."""
    there = [(place, gradient) for place, gradient in zip(total, gradients) if gradient is not None]
    length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for _, gradient in there]))
    if not torch.isfinite(length):
        return
    factor = (norm / length.clamp(min=1e-12)).clamp(max=1)
    for place, gradient in there:
        place.add_(gradient * factor)


def _part(value: Any, part: slice) -> Any:
    """Some samples of a tensor, or of all members of a named tuple."""
    return value[part] if isinstance(value, Tensor) else type(value)(*(member[part] for member in value))


class GuaranteeRecord:
    """After every epoch, write what has been spent: ``differential_privacy.json`` beside the weights.

    Args:
        guarantee: of the training.
        path: of the file.
    """

    def __init__(self, guarantee: Guarantee, path: str | Path) -> None:
        self.guarantee = guarantee
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Follow the trainer ``engine``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the guarantee after the steps so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.guarantee.after(engine.state.step).describe())
