"""The columns of the results table: what is measured on a set of images, against which real ones, with which error.

A measure is put together from what it looks at (an encoder's features, a network's distances), what it computes and
how its numbers are to be read (:class:`Scale`). It never fails for lack of weights or images: it then says why there is
no number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, ImageSet
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.feature_cache import Encoder
from nodule_plugin.metrics.intervals import normal_interval

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"
PUBLISHED, BACKBONES, STAND_IN = "published", "backbones", "stand-in"
BEYOND, FINDINGS = "beyond", "findings"
MEASURED = (REAL, GENERATED, CONTROL)
"""Kinds of sets that are rows of the table."""
NOT_HELD_OUT = "{} of {} real images are of training patients"
"""Why what only held-out images can tell is not told."""


@dataclass(frozen=True)
class Value:
    """One number of the table, or why there is none.

    Attributes:
        value: None where it was not computed.
        standard_error: None where it is not known.
        count: what the number rests on: images, or pairs of images.
        reason: why there is no number.
        details: further numbers, by name.
        bounds: that the value cannot leave, and its interval with it.
    """

    value: float | None
    standard_error: float | None = None
    count: int = 0
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json holds it; with the normal 95 % interval where the error is known."""
        interval = None
        if self.value is not None and self.standard_error is not None:
            low, high = normal_interval(self.value, self.standard_error)
            interval = [max(low, self.bounds[0]), min(high, self.bounds[1])]
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "ci95": interval,
            "count": self.count,
            "reason": self.reason,
            **self.details,
        }


def missing(reason: str) -> Value:
    """A value that says why it is none."""
    return Value(None, reason=reason)


@dataclass(frozen=True)
class Scale:
    """How a column's numbers are to be read.

    Attributes:
        better: "lower", "higher" or "near real".
        interval: how their standard error, and with that the interval, is found.
        bounds: that they cannot leave.
    """

    better: str = LOWER
    interval: str = "standard deviation over images, divided by the root of their number"
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Measure(ABC):
    """One column.

    Args:
        key: stable name for machines.
        name: heading.
        group: the table that the column stands in; a measure in "published" is the metric the literature knows by its
            name.
        convention: how the images that it measures were made, by name; what differs in it must not be compared.
    """

    key: str
    name: str
    group: str = field(default=STAND_IN, kw_only=True)
    convention: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    @abstractmethod
    def scale(self) -> Scale:
        """How its numbers are to be read."""

    @property
    @abstractmethod
    def network(self) -> str:
        """Name of what the numbers rest on."""

    @property
    @abstractmethod
    def unavailable(self) -> str | None:
        """Why no number can be computed at all, or None."""

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What the network does with an image, and which of its layers is looked at, by name: a part of the number."""
        return {}

    def encoders(self, kind: str) -> list[Encoder]:
        """What the measure needs from images of one kind, see :class:`nodule_plugin.data.image_set.SetKey`."""
        return []

    def measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None = None) -> Value:
        """The number of ``images``.

        Args:
            images: to measure.
            real: that they are compared with where it is a comparison.
            training: that the model has seen, for the measures that ask what it learnt.
        """
        if self.unavailable:
            return missing(self.unavailable)
        return replace(self._measure(images, real, training), bounds=self.scale.bounds)

    @abstractmethod
    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value: ...

    def describe(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return {
            "key": self.key,
            "name": self.name,
            "better": self.scale.better,
            "extractor": self.network,
            "group": self.group,
            "standard": self.group == PUBLISHED,
            "interval": self.scale.interval,
            "unavailable": self.unavailable,
            "convention": {**self.convention, **self.preprocessing},
        }


def columns(
    tables: Mapping[str, Sequence[Measure | Sequence[Measure]]], convention: Mapping[str, Any] | None = None
) -> list[Measure]:
    """The measures of all tables in one list, each with its table as its group.

    Args:
        tables: group -> measures, and lists of measures.
        convention: of the images, see :func:`nodule_plugin.data.evaluation_images.image_convention`.

    Raises:
        InputError: if two have the same key.
    """
    listed = [
        replace(measure, group=group, convention=convention or {})
        for group, entries in tables.items()
        for entry in entries
        for measure in ([entry] if isinstance(entry, Measure) else entry)
    ]
    keys = [measure.key for measure in listed]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise InputError(f"measures: two have the key {repeated[0]}; give one of them another key or suffix")
    return listed
