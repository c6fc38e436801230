"""The unit of an evaluation: images that belong together, what is known of each, and their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

REAL = "real"
GENERATED = "generated"
CONTROL = "control"
TRAINING = "training"


@dataclass(frozen=True)
class SetKey:
    """Which row of the table an image belongs to.

    Attributes:
        kind: "real", "generated", "control" (bad on purpose, to show what a metric then says), or "training".
        model: what made the images.
        guidance_scale: that they were generated at; None where there is none.
    """

    kind: str
    model: str
    guidance_scale: float | None = None


@dataclass(frozen=True)
class ImageRecord:
    """What is known of one image.

    Attributes:
        id: unique within its set.
        prompt: its prompt, None where there is none.
        source_id: id of the real image whose findings it was generated from.
        patient_id: of a real image.
        ratings: rating -> code, as the readers gave it or the findings asked for it; empty where not known.
        phantom: True for an image of the reference set that is no patient's.
    """

    id: str
    prompt: str | None = None
    source_id: str | None = None
    patient_id: str | None = None
    ratings: Mapping[str, int] = field(default_factory=dict)
    phantom: bool = False


@dataclass
class ImageSet:
    """Images of one row of the table, in one order throughout.

    Attributes:
        key: the row.
        records: one an image.
        images: (3, H, W) uint8, one an image; sizes may differ.
        features: encoder id -> (N, D).
    """

    key: SetKey
    records: list[ImageRecord] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    features: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def take(self, places: Sequence[int], key: SetKey | None = None) -> ImageSet:
        """The images at ``places``, in that order, as another set."""
        index = torch.as_tensor(list(places), dtype=torch.long)
        return ImageSet(
            key or self.key,
            [self.records[place] for place in places],
            [self.images[place] for place in places],
            {encoder: features[index] for encoder, features in self.features.items()},
        )

    def with_prompts(self, prompts: Sequence[str], key: SetKey) -> ImageSet:
        """The same images under each other's prompts, and with the ratings that go with those."""
        ratings = {record.prompt: record.ratings for record in self.records}
        records = [
            replace(record, prompt=prompt, ratings=ratings.get(prompt, {}))
            for record, prompt in zip(self.records, prompts)
        ]
        return ImageSet(key, records, self.images, self.features)

    def prompts(self) -> list[str] | None:
        """Every image's prompt, or None where one has none."""
        prompts = [record.prompt for record in self.records if record.prompt is not None]
        return prompts if prompts and len(prompts) == len(self.records) else None
