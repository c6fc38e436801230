"""The unit of an evaluation: images that belong together, what is known of each, and their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from torch import Tensor

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError

REAL = "real"
GENERATED = "generated"
CONTROL = "control"
TRAINING = "training"
DOSE = "dose response"
ATTACK = "attack"
FLAT_LEVELS = 2.0
"""Standard deviation, in 8-bit grey values, below which a picture is called flat; CT of a nodule has 20 and more."""


@dataclass(frozen=True)
class SetKey:
    """Which row of the table an image belongs to.

    Attributes:
        kind: "real", "generated", "control" (bad on purpose, to show what a metric then says), "training",
            "dose response" (one rating moves, all else stays) or "attack" (prompts of one training nodule each).
        model: what made the images.
        guidance_scale: that they were generated at; None where there is none.
    """

    kind: str
    model: str
    guidance_scale: float | None = None


OTHER_KERNEL = SetKey(CONTROL, "real images, other kernel")
"""The real images resampled by another kernel: what a difference of convention alone moves."""


@dataclass(frozen=True)
class ImageRecord:
    """What is known of one image.

    Attributes:
        id: unique within its set.
        prompt: its prompt, None where there is none.
        source_id: id of the real image whose findings it was generated from.
        patient_id: of a real image.
        ratings: rating -> code, as the readers gave it or the prompt asked for it; empty where not known.
        seed: that it was generated with.
        phantom: True for an image of the reference set that is no patient's.
        roi_mm: side of the square that it shows, mm.
        native_pixels: pixels along that side before it was brought to the image's size: of the scan, or of a file.
    """

    id: str
    prompt: str | None = None
    source_id: str | None = None
    patient_id: str | None = None
    ratings: Mapping[str, int] = field(default_factory=dict)
    phantom: bool = False
    seed: int | None = None
    roi_mm: float | None = None
    native_pixels: float | None = None


class LoadedImages(Sequence[Tensor]):
    """Images that are loaded each time they are looked at: a set of any size takes no memory.

    Args:
        items: one an image.
        load: an item -> (3, H, W) uint8.
        indices: of the items that belong to the set; None for all.
    """

    def __init__(
        self, items: Sequence[Any], load: Callable[[Any], Tensor], indices: Sequence[int] | None = None
    ) -> None:
        self._items, self._load = items, load
        self._indices = range(len(items)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return LoadedImages(self._items, self._load, self._indices[index])
        return self._load(self._items[self._indices[index]])

    def take(self, indices: Sequence[int]) -> LoadedImages:
        """The images at these indices; nothing is loaded."""
        return LoadedImages(self._items, self._load, [self._indices[index] for index in indices])


@dataclass(eq=False)  # known by its identity: what is learnt from a set is remembered with it
class ImageSet:
    """Images of one row of the table, in one order throughout.

    Attributes:
        key: the row.
        records: one an image.
        images: (3, H, W) uint8, one an image; sizes may differ. They may be loaded anew at each look.
        features: encoder id -> (N, D) features.
    """

    key: SetKey
    records: list[ImageRecord] = field(default_factory=list)
    images: Sequence[Tensor] = field(default_factory=list)
    features: dict[str, FeatureRows | Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices: Sequence[int], key: SetKey | None = None) -> ImageSet:
        """The images at ``indices``, in that order, as another set."""
        images: Sequence[Tensor] = (
            self.images.take(indices)
            if isinstance(self.images, LoadedImages)
            else [self.images[index] for index in indices]
        )
        return ImageSet(
            key or self.key,
            [self.records[index] for index in indices],
            images,
            {encoder: self.features_of(encoder).take(np.asarray(indices, dtype=int)) for encoder in self.features},
        )

    def features_of(self, encoder_id: str) -> FeatureRows:
        """The features that an encoder gave these images.

        Raises:
            InputError: if the set was not encoded with it.
        """
        if encoder_id not in self.features:
            raise InputError(f"{self.key.model}: not encoded with {encoder_id}; encode the set first")
        features = self.features[encoder_id]
        return features if isinstance(features, FeatureRows) else FeatureRows(features)

    def with_prompts(self, prompts: Sequence[str], key: SetKey) -> ImageSet:
        """The same images under each other's prompts, and with the ratings that go with those."""
        ratings = {record.prompt: record.ratings for record in self.records}
        records = [
            replace(record, prompt=prompt, ratings=ratings.get(prompt, {}))
            for record, prompt in zip(self.records, prompts)
        ]
        return ImageSet(key, records, self.images, self.features)

    def patients(self) -> set[str]:
        """Those that are known."""
        return {record.patient_id for record in self.records if record.patient_id is not None}

    def of_patients(self, others: ImageSet) -> int:
        """How many of these images are of patients that ``others`` holds images of, too."""
        shared = self.patients() & others.patients()
        return sum(record.patient_id in shared for record in self.records)

    def prompts(self) -> list[str] | None:
        """Every image's prompt, or None where one has none."""
        prompts = [record.prompt for record in self.records if record.prompt is not None]
        return prompts if prompts and len(prompts) == len(self.records) else None


def flat_warning(images: ImageSet) -> str | None:
    """A sentence where pictures of a set show (nearly) nothing: white, black or grey all over.

    They are what a file with another range of values becomes, and distances to them are large and mean nothing. Of a
    large set 50 images are looked at, evenly spaced.
    """
    looked_at = [images.images[int(index)] for index in np.unique(np.linspace(0, len(images) - 1, 50).astype(int))]
    flat = sum(float(image.float().std()) < FLAT_LEVELS for image in looked_at)
    if not flat:
        return None
    scale = images.key.guidance_scale
    which = images.key.model if scale is None else f"{images.key.model} at guidance scale {scale:g}"
    return (
        f"{flat} of {len(looked_at)} images looked at of {which} are (nearly) one grey value: no number "
        "about them can be trusted. Was their range of values another when they were saved?"
    )
