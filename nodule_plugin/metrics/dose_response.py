"""Does the picture change when one rating moves over its scale and all else stays?"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, page_trend_test, t, wilcoxon

from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.metrics.attributes import FindingReader, rating_of

MIN_CHAINS = 3


@dataclass(frozen=True)
class DoseCurve:
    """What is read off images in which one rating moves.

    Attributes:
        rating: that moves.
        model, guidance_scale: that made the images.
        codes: asked for, ascending; of calcification 0 (absent) and 1.
        read: mean of the codes read, for each code asked for.
        ci95: of those means, Student's interval over seeds.
        real: the mean code read off held-out real images whose readers gave that code; None where there is none, or
            the images are not held out. The
            regression reads extremes towards the middle, so this and not the diagonal is what to hope for.
        real_counts: how many of those images there are.
        chains: seeds that the curve rests on.
        trend: Kendall's rank correlation of asked and read, within a seed, mean over seeds; 1 for always rising.
        trend_ci95: Student's interval over seeds.
        p_value: one-sided, of no trend: Page's test over seeds, or Wilcoxon's signed-rank test for two codes.
        change: from the lowest to the highest code asked for, in codes read, mean over seeds.
        change_ci95: Student's interval over seeds.
        real_change: the same between the held-out real images' means.
    """

    rating: str
    model: str
    guidance_scale: float | None
    codes: list[int]
    read: list[float]
    ci95: list[list[float]]
    real: list[float | None]
    real_counts: list[int]
    chains: int
    trend: float
    trend_ci95: list[float]
    p_value: float
    change: float
    change_ci95: list[float]
    real_change: float | None

    @property
    def monotone(self) -> bool:
        """Whether the mean never falls from one code to the next."""
        return bool(np.all(np.diff(self.read) >= 0))


def dose_curves(images: ImageSet, real: ImageSet, training: ImageSet, reader: FindingReader) -> list[DoseCurve]:
    """A curve for each rating that moves, over at least three seeds, while seed and all other ratings stay.

    Args:
        images: of one model and guidance scale, made from :func:`nodule_plugin.data.requests.dose_response`.
        real: held-out real images.
        training: that the reader learns from.
        reader: of ratings.
    """
    curves = []
    for rating in dict.fromkeys(name for record in images.records for name in record.ratings):
        chains = _chains(images, rating)
        if len(chains) < MIN_CHAINS or reader.objection(training, rating):
            continue
        codes = sorted(chains[0])
        expected = reader.read(images, rating, training).expected
        table = np.array([[expected[chain[code]] for code in codes] for chain in chains])
        curves.append(_curve(images, rating, codes, table, _real_means(real, rating, codes, training, reader)))
    return curves


def _chains(images: ImageSet, rating: str) -> list[dict[int, int]]:
    """code -> index of the image, for each seed and surrounding ratings.

    Only chains as long as the longest, and of those the ones with the codes that most of them have.
    """
    chains: dict[tuple[object, ...], dict[int, int]] = defaultdict(dict)
    for index, record in enumerate(images.records):
        code = rating_of(record, rating)
        if code is not None and record.seed is not None:
            others = tuple(sorted((name, value) for name, value in record.ratings.items() if name != rating))
            chains[(record.seed, others)][code] = index
    longest = max(map(len, chains.values()), default=0)
    if longest < 2:
        return []
    whole = [chain for chain in chains.values() if len(chain) == longest]
    [(codes, _)] = Counter(frozenset(chain) for chain in whole).most_common(1)
    return [chain for chain in whole if chain.keys() == codes]


def _curve(
    images: ImageSet, rating: str, codes: list[int], table: np.ndarray, real: list[tuple[float | None, int]]
) -> DoseCurve:
    taus = np.array([float(kendalltau(codes, row).statistic) for row in table])
    taus = np.nan_to_num(taus)  # a flat row has no ranks: no trend
    change = table[:, -1] - table[:, 0]
    if len(codes) > 2:
        p_value = float(page_trend_test(table).pvalue)
    else:
        p_value = float(wilcoxon(change, alternative="greater").pvalue) if np.any(change) else 1.0
    ends = real[0][0], real[-1][0]
    return DoseCurve(
        rating,
        images.key.model,
        images.key.guidance_scale,
        codes,
        table.mean(axis=0).tolist(),
        [_interval(column) for column in table.T],
        [mean for mean, _ in real],
        [count for _, count in real],
        len(table),
        float(taus.mean()),
        np.clip(_interval(taus), -1.0, 1.0).tolist(),
        p_value,
        float(change.mean()),
        _interval(change),
        None if ends[0] is None or ends[1] is None else ends[1] - ends[0],
    )


def _interval(values: np.ndarray) -> list[float]:
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def _real_means(
    real: ImageSet, rating: str, codes: list[int], training: ImageSet, reader: FindingReader
) -> list[tuple[float | None, int]]:
    if real.of_patients(training):
        return [(None, 0)] * len(codes)
    given = np.array([rating_of(record, rating) for record in real.records], dtype=object)
    expected = reader.read(real, rating, training).expected
    chosen = [expected[given == code] for code in codes]
    return [(float(values.mean()) if len(values) else None, len(values)) for values in chosen]
