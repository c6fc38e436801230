"""Which findings a classifier learns to tell, and the images that it learns from or is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.evaluation_images import Load
from nodule_plugin.data.image_set import ImageRecord
from nodule_plugin.findings import CALCIFICATION_ABSENT, SCALES


@dataclass(frozen=True)
class Task:
    """A yes-no question about a nodule.

    Attributes:
        name: the finding that is present.
        rating: the scale that answers, see :data:`nodule_plugin.findings.SCALES`.
        positive: codes that say yes.
        negative: codes that say no; where the readers' code is among neither, the image counts for neither.
    """

    name: str
    rating: str
    positive: frozenset[int]
    negative: frozenset[int]

    def answer(self, record: ImageRecord) -> float:
        """1 for yes, 0 for no, NaN where the image's ratings do not tell."""
        code = record.ratings.get(self.rating)
        return 1.0 if code in self.positive else 0.0 if code in self.negative else float("nan")


def _task(name: str, rating: str, positive: set[int], indeterminate: Sequence[int] = ()) -> Task:
    codes = set(SCALES[rating].codes)
    return Task(name, rating, frozenset(positive), frozenset(codes - positive - set(indeterminate)))


TASKS = (
    _task("subsolid", "texture", {1, 2, 3}),
    _task("calcified", "calcification", set(SCALES["calcification"].codes) - {CALCIFICATION_ABSENT}),
    _task("margin not sharp", "margin", {1, 2, 3}),
    _task("spiculated", "spiculation", {2, 3, 4, 5}),
    _task("lobulated", "lobulation", {2, 3, 4, 5}),
    _task("suspicious of malignancy", "malignancy", {4, 5}, indeterminate=[3]),
)
"""Every finding that prompts can word and that is either there or not. A spiculation or lobulation that readers call
"nearly none" counts as present: stronger ones are so rare that a test on hundreds of nodules could not tell."""


@dataclass(frozen=True)
class Pictures:
    """Images with answers.

    Attributes:
        images: (N, 1, H, W) in [-1, 1].
        answers: (N, tasks) 1, 0 or NaN.
        patients: N; None for images that are no patient's.
    """

    images: Tensor
    answers: Tensor
    patients: list[str | None]

    def __len__(self) -> int:
        return len(self.images)

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(
            torch.cat([self.images, other.images]),
            torch.cat([self.answers, other.answers]),
            self.patients + other.patients,
        )

    def some(self, count: int, seed: int) -> Pictures:
        """That many of them, drawn without replacement."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return Pictures(self.images[chosen], self.answers[chosen], [self.patients[index] for index in chosen.tolist()])


def load_pictures(items: Sequence[Mapping[str, Any]], load: Load, tasks: Sequence[Task], name: str) -> Pictures:
    """Load the images of an evaluation.

    Args:
        items: see :mod:`nodule_plugin.data.evaluation_images`.
        load: loads an item, see :class:`nodule_plugin.data.evaluation_images.LoadSetImaged`.
        tasks: answered by the items' ratings.
        name: of the images, for the progress bar.
    """
    images = torch.stack([load(item)["image"][:1] for item in tqdm(items, desc=name)])
    answers = torch.tensor([[task.answer(item["record"]) for task in tasks] for item in items])
    return Pictures(images, answers, [item["record"].patient_id for item in items])
