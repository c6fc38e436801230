from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.inferers import SimpleInferer
from scipy.stats import norm
from tiny_sd import make_tiny_sd
from torch import Tensor, nn
from warm import run_python

from nodule_plugin.diffusion.training import DenoisingLoss, DenoisingTarget
from nodule_plugin.errors import InputError
from nodule_plugin.privacy import training
from nodule_plugin.privacy.training import Guarantee, PatientSampler, PrivateIteration

PATIENTS = ["a", "b", "b", "c", "c", "c"]


def guarantee(noise: float = 0.0) -> Guarantee:
    return Guarantee(math.inf, 1e-3, noise, 0.5, 10, 3)


class Step:
    """A linear network and one step on rows, each of them a patient's."""

    def __init__(self, noise: float = 0.0, max_grad_norm: float = 0.1, images: int = 1, expected: int = 2) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        sampler = PatientSampler(PATIENTS, expected, images)
        self.iteration = PrivateIteration(
            guarantee(noise), max_grad_norm, "float32", optimizer=self.optimizer, sampler=sampler
        )
        self.before = self.weights()

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.network.parameters()).detach().clone()

    def __call__(self, rows: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """The change of the weights in a step, learning rate 1: the negative gradient."""

        def prepare(batch: Any, *_: Any, **__: Any) -> tuple:
            weight = torch.tensor(weights or [1 / self.iteration.sampler.images_per_patient] * len(rows))
            return rows, DenoisingTarget(torch.ones(len(rows), 2), weight), (), {}

        state = SimpleNamespace(device=torch.device("cpu"), step=0, output=None, step_loss=None)
        engine: Any = SimpleNamespace(
            prepare_batch=prepare,
            state=state,
            non_blocking=False,
            to_kwargs={},
            network=self.network,
            inferer=SimpleInferer(),
            loss_function=DenoisingLoss(),
            fire_event=lambda event: None,
        )
        self.iteration(engine, {})
        self.loss = state.step_loss
        return self.weights() - self.before


def test_every_patient_joins_with_the_same_probability_however_many_images() -> None:
    sampler = PatientSampler(PATIENTS, 2, images_per_patient=4)
    drawn = []
    for _ in range(800):
        for batch in sampler:
            groups = [[PATIENTS[key.item] for key in batch[at : at + 4]] for at in range(0, len(batch), 4)]
            if batch[0].weight:
                assert all(len(set(group)) == 1 and len(group) == 4 for group in groups)
                assert {key.weight for key in batch} == {0.25}
                drawn.append({group[0] for group in groups})
            else:
                assert len(batch) == 1
                drawn.append(set())
    assert len(drawn) == 800 * len(sampler) == 800
    assert [np.mean([name in names for names in drawn]) for name in "abc"] == pytest.approx([2 / 3] * 3, abs=0.07)
    assert {len(names) for names in drawn} == {0, 1, 2, 3}  # each by itself
    assert len({key.seed for _ in range(20) for batch in sampler for key in batch}) > 20


def test_the_order_does_not_follow_from_the_seed() -> None:
    draws = [[key.seed for batch in PatientSampler(PATIENTS * 20, 3, seed=1) for key in batch] for _ in range(2)]
    assert draws[0] != draws[1]


def test_an_epoch_draws_as_many_samples_as_there_are_and_goes_on_where_it_was() -> None:
    sampler = PatientSampler(PATIENTS * 10, 3, images_per_patient=2)
    assert (len(sampler), sampler.steps_per_epoch, sampler.step_size) == (10, 10, 6)
    sampler.set_position(3, start=7)
    assert len(list(sampler)) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatientSampler(PATIENTS, 4), "patients_per_step: 4, and there are 3 patients only"),
        (lambda: PatientSampler(PATIENTS, 0), "patients_per_step"),
        (lambda: PatientSampler(PATIENTS, 2, 0), "images_per_patient"),
        (lambda: Guarantee.planned(PatientSampler(PATIENTS, 2), 1, -1.0), "epsilon: a number above 0"),
        (lambda: Guarantee.planned(PatientSampler(PATIENTS, 2), 1, 8.0, 1.5), "delta: a probability"),
        (lambda: Step(max_grad_norm=0), "max_grad_norm: differential privacy needs"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_half_precision_and_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not float16"):
        PrivateIteration(guarantee(), 1.0, "float16", optimizer=None, sampler=None)
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="one process"):
        PatientSampler(PATIENTS, 2)


def test_one_patient_changes_a_step_by_no_more_than_the_norm() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [-400.0, 1.0, 0.0], [1e-4, 0.0, 0.0]])
    with_all, without = Step()(rows), Step()(rows[[0, 2]])
    assert (with_all - without).norm().item() == pytest.approx(0.1 / 2, rel=1e-4)  # over the expected number, 2
    assert Step(max_grad_norm=1e9)(rows).norm() > 1000


def test_gradients_below_the_norm_are_those_of_ordinary_training() -> None:
    step = Step(max_grad_norm=1e9, images=2, expected=2)
    rows = torch.randn(4, 3)
    change = step(rows)  # two patients of two images each
    twin = Step()
    (twin.network(rows) - 1).square().mean().backward()
    assert torch.allclose(
        change, -nn.utils.parameters_to_vector([p.grad for p in twin.network.parameters()]), atol=1e-5
    )
    assert step.loss == pytest.approx(float((twin.network(rows) - 1).square().mean()), rel=1e-5)


def test_a_patients_images_are_shortened_together() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [1e6, 0.0, 0.0]])
    assert Step(images=2)(rows).norm().item() == pytest.approx(0.1 / 2, rel=1e-4)
    assert Step(images=1)(rows).norm().item() == pytest.approx(2 * 0.1 / 2, rel=0.3)


def test_a_patient_whose_gradient_is_not_finite_counts_for_nothing() -> None:
    step = Step()
    with pytest.raises(InputError, match="the loss is nan"):
        step(torch.tensor([[math.nan, 0.0, 0.0]]))
    total = [torch.zeros(2)]
    training.add_clipped(total, [torch.tensor([math.inf, 0.0])], 1.0)
    assert torch.equal(total[0], torch.zeros(2))


def test_noise_has_the_stated_spread_even_where_nobody_joined() -> None:
    changes = torch.stack([Step(noise=3.0)(torch.zeros(1, 3), weights=[0.0]) for _ in range(300)])
    assert changes.std().item() == pytest.approx(3.0 * 0.1 / 2, rel=0.1)
    assert changes.mean().item() == pytest.approx(0, abs=0.02)
    assert len(torch.unique(changes)) > 0.99 * changes.numel()  # not from the run's seed


def test_the_accounting_is_that_of_the_gaussian_mechanism_where_everybody_joins() -> None:
    """One step of all patients: Balle and Wang (ICML 2018, theorem 8) know its exact delta."""
    sampler = PatientSampler([str(number) for number in range(50)], 50)
    planned = Guarantee.planned(sampler, 1, epsilon=2.0, delta=1e-3)
    assert planned.sample_rate == planned.steps == 1
    assert 1.9 < planned.epsilon <= 2.0
    noise, epsilon = planned.noise_multiplier, planned.epsilon
    a, b = 1 / (2 * noise), epsilon * noise
    exact = norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)
    assert 1e-4 < exact <= 1e-3  # the bound by Renyi divergence holds, and is no more than a power of ten off


def test_less_epsilon_more_noise_and_fewer_steps_less_epsilon() -> None:
    sampler = PatientSampler([str(number // 2) for number in range(200)], 10)
    strict, loose = (Guarantee.planned(sampler, 3, epsilon) for epsilon in (1.0, 8.0))
    assert strict.noise_multiplier > loose.noise_multiplier > 0
    assert strict.delta == 0.1 / 100
    assert strict.after(10).epsilon < strict.epsilon <= 1.0
    none = Guarantee.planned(sampler, 3, None)
    assert none.describe() == {
        "unit": "patient",
        "epsilon": None,
        "delta": 0.001,
        "noise_multiplier": 0.0,
        "sample_rate": 0.1,
        "steps": 60,
        "patients": 100,
        "known": 0,
    }


def test_what_the_base_model_knows_already_is_not_covered(caplog: pytest.LogCaptureFixture) -> None:
    sampler = PatientSampler([*"aabcd"], 2)
    planned = Guarantee.planned(sampler, 1, None, known=["a", "d", "z"])
    assert planned.describe()["known"] == 2
    assert "learnt from 2 of these 4 patients before" in caplog.text


def test_the_record_tells_what_has_been_spent(tmp_path: Path) -> None:
    sampler = PatientSampler([str(number) for number in range(100)], 10)
    planned = Guarantee.planned(sampler, 4, 8.0)
    engine = Engine(lambda engine, batch: setattr(engine.state, "step", engine.state.step + 1))
    engine.state.step = 0
    training.GuaranteeRecord(planned, tmp_path / "models" / "differential_privacy.json").attach(engine)
    engine.run(range(10), max_epochs=2)
    spent = json.loads((tmp_path / "models" / "differential_privacy.json").read_text())
    assert spent["steps"] == 20
    assert spent["epsilon"] == pytest.approx(planned.after(20).epsilon)
    assert spent["epsilon"] < 8


@pytest.mark.slow
def test_the_bundle_trains_with_differential_privacy(repository: Path, phantom_datalist: Path, tmp_path: Path) -> None:
    configs = repository / "bundle" / "configs"
    files = str([str(configs / "train.json"), str(configs / "private.json")])
    base = make_tiny_sd(tmp_path / "base")
    settings = {
        "datalist": phantom_datalist,
        "base_model": base,
        "output_dir": tmp_path / "out",
        "patients_per_step": 4,
        "images_per_patient": 2,
        "epochs": 2,
        "val_images": 0,
        "validate#data": [],
        "validate#key_metric": None,
        "allow_marked": True,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [
        "-m",
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        files,
        "--bundle_root",
        str(repository / "bundle"),
    ]
    done = run_python([sys.executable, *command, *words], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    spent = json.loads((tmp_path / "out" / "models" / "differential_privacy.json").read_text())
    assert (spent["unit"], spent["known"]) == ("patient", 0)
    assert 4 < spent["epsilon"] <= 8
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
    again = run_python([sys.executable, *command, *words, "--epsilon", "2", "--epochs", "3"], tmp_path)
    assert again.returncode != 0
    assert "differential_privacy" in again.stderr
