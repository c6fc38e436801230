"""Features of a set of images, read row by row: in memory or on disk, the distances do not care."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor

BLOCK = 1024
"""Rows that are held at a time where a statistic goes through a whole set."""


class RowSource(Protocol):
    """(N, D) numbers of which rows can be read by their places, such as an array or a memory-mapped file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, places: Any) -> np.ndarray: ...


class FeatureRows:
    """(N, D) features as float64 rows that are read when asked for.

    Args:
        source: a tensor, an array, or anything else whose rows can be read by their places.
        places: of the rows that belong to this set, in its order; None for all.
    """

    def __init__(self, source: Tensor | np.ndarray | RowSource, places: np.ndarray | None = None) -> None:
        self._source: Any = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
        self._places = np.arange(self._source.shape[0]) if places is None else places

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self._places), int(self._source.shape[1])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """The rows at these places, float64."""
        return np.asarray(self._source[self._places[places]], dtype=np.float64)

    def take(self, places: np.ndarray) -> FeatureRows:
        """The rows at these places as a set of their own; nothing is read yet."""
        return FeatureRows(self._source, self._places[places])

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """All rows in order, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def numbered_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in order, :data:`BLOCK` at a time, with their places."""
        for start in range(0, len(self), BLOCK):
            places = slice(start, min(start + BLOCK, len(self)))
            yield places, self[places]

    def read(self) -> np.ndarray:
        """All rows at once, where a statistic needs them so."""
        return self[:]
