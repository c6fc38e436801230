"""Patient-disjoint, malignancy-stratified division of nodules into training, validation and test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from nodule_plugin.data.nodule import Nodule
from nodule_plugin.errors import InputError

SPLITS = ("training", "validation", "test")


def split_by_patient(
    nodules: Sequence[Nodule], ratios: Sequence[int] = (7, 2, 1), seed: int = 0
) -> dict[str, list[Nodule]]:
    """Divide nodules so that no patient is in two splits and malignancy is spread evenly.

    The nodules are dealt into ``sum(ratios)`` folds by scikit-learn's StratifiedGroupKFold (groups: patients, strata:
    malignancy, 0 where it was not rated); the first folds become the test split, the next the validation split, the
    rest the training split. Where every stratum has fewer nodules than there are folds, malignancy is left aside. With
    fewer patients than folds the splits are filled by whole patients in the order training, test, validation, and a
    split may stay empty.

    Args:
        nodules: in any order; the result is the same.
        ratios: whole numbers for training, validation and test.
        seed: of the shuffle before dealing.

    Returns:
        split name -> its nodules, ordered by id.

    Raises:
        InputError: if ``ratios`` are not three whole numbers with a positive first one.
    """
    reduced = check_ratios(ratios)
    ordered = sorted(nodules, key=lambda nodule: nodule.id)
    split_of_fold = np.repeat(["test", "validation", "training"], reduced[::-1])
    if len({nodule.patient_id for nodule in ordered}) < len(split_of_fold):
        split_of_patient = _deal_few_patients(ordered, reduced, seed)
    else:
        split_of_patient = _deal_folds(ordered, split_of_fold, seed)
    splits: dict[str, list[Nodule]] = {split: [] for split in SPLITS}
    for nodule in ordered:
        splits[split_of_patient[nodule.patient_id]].append(nodule)
    return splits


def check_ratios(ratios: Sequence[int]) -> tuple[int, int, int]:
    """Ratios of training, validation and test in lowest terms: 70, 20, 10 becomes 7, 2, 1.

    Raises:
        InputError: if ``ratios`` are not three whole numbers with a positive first one.
    """
    whole = isinstance(ratios, Sequence) and all(isinstance(ratio, int) and ratio >= 0 for ratio in ratios)
    if not whole or len(ratios) != 3 or ratios[0] < 1:
        raise InputError(
            f"split ratios: three whole numbers are needed, the first above 0, such as 7 2 1; not {ratios}"
        )
    divisor = math.gcd(*ratios)
    return ratios[0] // divisor, ratios[1] // divisor, ratios[2] // divisor


def _deal_folds(nodules: Sequence[Nodule], split_of_fold: np.ndarray, seed: int) -> dict[str, str]:
    if len(split_of_fold) == 1:
        return {nodule.patient_id: split_of_fold[0] for nodule in nodules}
    patients = [nodule.patient_id for nodule in nodules]
    malignancy = [nodule.findings.malignancy or 0 for nodule in nodules]
    if max(Counter(malignancy).values()) < len(split_of_fold):  # too few to deal out evenly: scikit-learn refuses
        malignancy = [0] * len(nodules)
    folds = StratifiedGroupKFold(len(split_of_fold), shuffle=True, random_state=seed)
    return {
        patients[index]: str(split)
        for split, (_, fold) in zip(split_of_fold, folds.split(patients, malignancy, patients))
        for index in fold
    }


def _deal_few_patients(nodules: Sequence[Nodule], ratios: Sequence[int], seed: int) -> dict[str, str]:
    patients = sorted({nodule.patient_id for nodule in nodules})
    order = np.random.default_rng(seed).permutation(len(patients))
    ratio_of = dict(zip(SPLITS, ratios))
    first = [split for split in ("training", "test", "validation") if ratio_of[split]]
    return {patients[drawn]: first[rank] if rank < len(first) else "training" for rank, drawn in enumerate(order)}
