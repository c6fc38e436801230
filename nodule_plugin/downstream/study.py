"""Train on synthetic, test on real: what classifiers learn from generated images, against what real ones teach them.

Source: Esteban, Hyland and Rätsch, "Real-valued (medical) time series generation with recurrent conditional GANs",
arXiv:1706.02633, 2017, section 4.2 (the test); Ravuri and Vinyals, "Classification accuracy score for conditional
generative models", NeurIPS 2019 (for images). Intervals are percentiles of a bootstrap over patients (Field and Welsh,
"Bootstrapping clustered data", J R Stat Soc B 2007;69:369-390): nodules of one patient are no independent tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from nodule_plugin.data.evaluation_images import Load
from nodule_plugin.downstream.classifier import predict, train_classifier
from nodule_plugin.downstream.tasks import TASKS, Pictures, Task, load_pictures
from nodule_plugin.errors import InputError

MEAN = "mean of the findings"
MIN_EACH = 5
"""Test images needed with a finding, and without it: an area under the curve of fewer says nothing."""


def run_downstream(
    training_items: Sequence[Mapping[str, Any]],
    generated_items: Sequence[Mapping[str, Any]],
    held_out_items: Sequence[Mapping[str, Any]],
    load: Load,
    tasks: Sequence[Task] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 400,
    resamples: int = 1000,
    seen_patients: Collection[str] = (),
    device: torch.device | str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one classifier for each seed on each choice of training images, and test them all on the same real images.

    Args:
        training_items: real images, see :func:`nodule_plugin.data.evaluation_images.training_items`.
        generated_items: images generated from the findings of the training images, see
            :func:`nodule_plugin.data.evaluation_images.generated_items`.
        held_out_items: real images of other patients, see :func:`nodule_plugin.data.evaluation_images.real_items`.
        load: loads an item, see :class:`nodule_plugin.data.evaluation_images.LoadSetImaged`.
        tasks: the findings.
        seeds: of the classifiers; their areas under the curve are averaged.
        steps: of each classifier's training, the same for all.
        resamples: of the bootstrap.
        seen_patients: whom the generator may have learnt from, for a count in "settings".
        device: to train on.
        settings: of the run, for the record.

    Returns:
        In plain JSON types: "findings" (name, rating, and how many of the test images have it and do not), "arms"
        (name, training images, and by finding, the mean included, "auroc" and "difference" to real images, each with a
        95 % interval; None where the training images or the test do not have it), "settings".

    Raises:
        InputError: if a source has no image or no ratings, a held-out patient is among the training images, or a
            generated image was asked for with the findings of a held-out one.
    """
    _check(training_items, generated_items, held_out_items)
    real = load_pictures(training_items, load, tasks, "real training images")
    synthetic = load_pictures(generated_items, load, tasks, "generated images")
    test = load_pictures(held_out_items, load, tasks, "held-out images")
    for name, pictures in (("training", real), ("generated", synthetic), ("held-out", test)):
        if pictures.answers.isnan().all():
            raise InputError(f"{name} images: none has findings; give a data list, and a set that inference wrote")
    arms = {
        "real": real,
        "synthetic, as many": synthetic.some(len(real), seed=0),
        "synthetic, all": synthetic,
        "real and synthetic": real + synthetic,
    }
    if len(synthetic) <= len(real):
        del arms["synthetic, as many"]
    logits = {
        name: [predict(train_classifier(pictures, steps, seed=seed, device=device), test.images) for seed in seeds]
        for name, pictures in arms.items()
    }
    draws = [np.arange(len(test)), *_patient_draws(test.patients, resamples)]
    areas = _with_mean({name: _areas(outputs, test, arms[name], draws) for name, outputs in logits.items()})
    names = [*(task.name for task in tasks), MEAN]
    return {
        "findings": [
            {
                "name": task.name,
                "rating": task.rating,
                "with": int((test.answers[:, column] == 1).sum()),
                "without": int((test.answers[:, column] == 0).sum()),
            }
            for column, task in enumerate(tasks)
        ],
        "arms": [
            {
                "name": name,
                "images": len(arms[name]),
                "auroc": dict(zip(names, _estimates(drawn))),
                "difference": None if name == "real" else dict(zip(names, _estimates(drawn - areas["real"]))),
            }
            for name, drawn in areas.items()
        ],
        "settings": {
            **(settings or {}),
            "test_images": len(test),
            "test_patients": len(set(test.patients)),
            "seeds": list(seeds),
            "steps": steps,
            "resamples": resamples,
            "seen": sum(patient in seen_patients for patient in test.patients),
        },
    }


def _check(
    training: Sequence[Mapping[str, Any]],
    generated: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
) -> None:
    for name, items in (("training", training), ("generated", generated), ("held-out", held_out)):
        if not items:
            raise InputError(f"{name} images: there is none; give a data list, and a set that inference wrote")
    patients = {item["record"].patient_id for item in training}
    if shared := sorted({item["record"].patient_id for item in held_out} & patients):
        raise InputError(
            f"held-out images: patient {shared[0]} is among the training images, too; choose another split"
        )
    tested = {item["record"].id for item in held_out}
    for item in generated:
        if item["record"].source_id in tested:
            raise InputError(
                f"generated image {item['record'].id} was asked for with the findings of the held-out nodule "
                f"{item['record'].source_id}; generate from the training split (inference: --split training)"
            )


def _patient_draws(patients: Sequence[str | None], resamples: int, seed: int = 0) -> list[np.ndarray]:
    """Test images of as many patients, drawn with replacement, ``resamples`` times."""
    names, of_image = np.unique([str(patient) for patient in patients], return_inverse=True)
    images_of = [np.flatnonzero(of_image == index) for index in range(len(names))]
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([images_of[index] for index in rng.integers(len(names), size=len(names))])
        for _ in range(resamples)
    ]


def _areas(logits: Sequence[Tensor], test: Pictures, arm: Pictures, draws: Sequence[np.ndarray]) -> np.ndarray:
    """(draws, tasks) areas under the curve, averaged over classifiers.

    NaN where the whole test or the arm's training images do not have both answers often enough, or a draw not at all.
    """
    columns = []
    for column in range(test.answers.shape[1]):
        taught = {1.0, 0.0} <= set(arm.answers[:, column].tolist())
        answers = test.answers[:, column]
        enough = min(int((answers == value).sum()) for value in (0, 1)) >= MIN_EACH
        columns.append(
            [
                np.mean([_area(one[:, column], answers, draw) for one in logits]) if taught and enough else np.nan
                for draw in draws
            ]
        )
    return np.array(columns).T


def _with_mean(areas: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A further column: the mean of those findings that every arm has a number of, so that arms can be compared."""
    common = np.all([~np.isnan(drawn[0]) for drawn in areas.values()], axis=0)
    return {
        name: np.column_stack([drawn, drawn[:, common].mean(axis=1) if common.any() else np.full(len(drawn), np.nan)])
        for name, drawn in areas.items()
    }


def _area(logits: Tensor, answers: Tensor, draw: np.ndarray) -> float:
    """Area under the curve by the ranks of the logits as they are.

    No function of them comes first: torch.sigmoid, which torchmetrics applies, can give equal logits different last
    bits in a vector register and in the rest of a tensor, and so breaks ties.
    """
    chosen = draw[~answers[draw].isnan().numpy()]
    drawn = answers[chosen].numpy()
    return float("nan") if drawn.min() == drawn.max() else float(roc_auc_score(drawn, logits[chosen].numpy()))


def _estimates(areas: np.ndarray) -> list[dict[str, Any] | None]:
    """Value and interval of each column: the first row is of all images, the others of draws."""
    estimates: list[dict[str, Any] | None] = []
    for value, draws in zip(areas[0], areas[1:].T):
        known = draws[~np.isnan(draws)]
        interval = [float(end) for end in np.percentile(known, [2.5, 97.5])] if len(known) else None
        estimates.append(None if np.isnan(value) else {"value": float(value), "ci95": interval})
    return estimates
