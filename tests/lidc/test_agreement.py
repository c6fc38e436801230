from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from nodule_plugin.lidc.agreement import CALCIFIED, agreement, computed_agreement, reader_agreement, reader_pairs
from nodule_plugin.lidc.records import Annotation

# Share of readings equal to the rounded median of the nodule's other readings.
EXACT = {
    "calcification": 0.93,
    "texture": 0.73,
    "spiculation": 0.55,
    "lobulation": 0.48,
    "margin": 0.44,
    "malignancy": 0.43,
    "sphericity": 0.40,
}


@pytest.mark.parametrize("rating", EXACT)
def test_readers_of_lidc_idri_agree_as_published(rating: str) -> None:
    found = reader_agreement()[rating]
    assert round(found.exact, 2) == EXACT[rating]
    assert found.count == 5031
    assert found.within_one > found.exact


def test_what_is_stored_is_what_the_database_gives() -> None:
    stored, computed = reader_agreement(), computed_agreement()
    assert list(stored) == list(computed)
    for rating, found in computed.items():
        assert asdict(stored[rating]) == pytest.approx(asdict(found))


def test_each_reader_is_compared_with_the_others_median() -> None:
    def nodule(*codes: int) -> list[Annotation]:
        return [Annotation(str(i), "n", {"margin": c, "calcification": 6 - c}, ()) for i, c in enumerate(codes)]

    # Of 2 and 3 the median is 2.5, which goes up.
    assert reader_pairs([nodule(1, 2, 3)], "margin") == [(1, 3), (2, 2), (3, 2)]
    assert reader_pairs([nodule(1, 2), nodule(1, 1, 1, 1, 1)], "margin") == []
    assert reader_pairs([nodule(0, 1, 0)], CALCIFIED) == [(0, 1), (1, 0), (0, 1)]


def test_agreement_of_known_columns() -> None:
    perfect = agreement([1, 2, 3], [1, 2, 3])
    assert (perfect.exact, perfect.within_one, perfect.kappa, perfect.count) == (1.0, 1.0, 1.0, 3)
    # Quadratic weights: observed 1 + 4 + 0 + 1 over all pairs, expected from the margins.
    assert agreement([1, 1, 5, 5], [1, 5, 1, 5]).kappa == pytest.approx(0.0)
    assert math.isnan(agreement([3, 3], [3, 3]).kappa)
