"""From the table of answers to everything that a study says: one dictionary of plain types.

Hidden repeats serve the agreement of readers with themselves; everything else rests on the first showing of each image.
Comparisons of two arms need readers crossed with cases: readers who answered less than 80 % are left out of these, then
cases with a gap, and the results say how many of each were used. The ordinal model uses every answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from nodule_plugin.lidc.agreement import weighted_kappa
from nodule_plugin.reader_study.answers_table import SUSPICION
from nodule_plugin.reader_study.questions import CODES, GENERATED, ITEMS, ORIGIN, REAL
from nodule_plugin.reader_study.seal import REAL_ARM, Key
from nodule_plugin.reader_study.statistics.agreement import (
    NOMINAL,
    bootstrap_interval,
    intraclass_correlation,
    krippendorff_alpha,
    mean_kappa,
)
from nodule_plugin.reader_study.statistics.crossed import complete_block, crossed_mean, mean_squares
from nodule_plugin.reader_study.statistics.interval import Estimate
from nodule_plugin.reader_study.statistics.ordinal import fit_ordinal
from nodule_plugin.reader_study.statistics.ranks import holm, mann_whitney
from nodule_plugin.reader_study.statistics.roc import Areas, areas, curve
from nodule_plugin.reader_study.study import Plan

ENOUGH = 0.8
"""Readers who answered a smaller fraction of the images are left out where readers and cases must be crossed."""
ALL_MODELS = "all models"
BOOTSTRAP_SEED = 0
LARGEST_LOG_ODDS = 700.0
"""An interval that ends beyond, of few answers that an arm's name tells apart, is no estimate: its odds overflow."""
Line = dict[str, Any]


def analyse(answers: pd.DataFrame, key: Key, plan: Plan, readers: Sequence[str], draws: int = 1000) -> dict[str, Any]:
    """Everything that a study's answers say.

    Args:
        answers: as :func:`build_table` makes it.
        key: of the study.
        plan: margins and error rate.
        readers: all that were asked.
        draws: of the bootstrap.

    Returns:
        Lists of lines: "readers", "scores" (the reference method's table), "comparisons", "recognition", "ordinal",
        "agreement", "repeats"; "curves" and "distributions" for figures; and the key's "blinding". A number that does
        not exist is None, and the line's "reason" says why. docs/reader_study.md documents the fields.
    """
    first = answers[answers["repeat_of"].isna()]
    models = list(key.arms[1:])
    results = {
        "blinding": key.blinding,
        "readers": reader_lines(answers, key, readers),
        "scores": score_lines(first, key.arms),
        "comparisons": comparison_lines(first, models, plan),
        "recognition": recognition_lines(first, models, plan),
        "ordinal": ordinal_lines(first, models),
        "agreement": agreement_lines(first, draws),
        "repeats": repeat_lines(answers),
        "curves": _curves(first, models),
        "distributions": _distributions(first, key.arms),
    }
    return {name: _plain(lines) for name, lines in results.items()}


def reader_lines(answers: pd.DataFrame, key: Key, readers: Sequence[str]) -> list[Line]:
    """For each reader: images answered and missing, refusals, changes, median reading time, unknown times."""
    total = sum(not image.practice for image in key.images.values())
    lines = []
    for reader in readers:
        own = answers[answers["reader"] == reader]
        lines.append(
            {
                "reader": reader,
                "images": total,
                "answered": len(own),
                "missing": total - len(own),
                "cannot_judge": int(own[list(ITEMS)].isna().sum().sum()),
                "changed": int((own["revisions"] > 1).sum()),
                "median_seconds": own["seconds"].median(),
                "median_visible_seconds": own["visible_seconds"].median(),
                "untimed": int(own["seconds"].isna().sum()),
            }
        )
    return lines


def score_lines(first: pd.DataFrame, arms: Sequence[str]) -> list[Line]:
    """The reference method's table: mean and standard deviation of all readers' scores, Mann-Whitney U against real.

    It takes each score of each reader as independent, which they are not; it stands here to be compared with the paper.
    ``p_image_means`` is the same test on one number an image, the mean over its readers.
    """
    lines = []
    for item in ITEMS:
        scores = {arm: first.loc[first["arm"] == arm, item].dropna().to_numpy() for arm in arms}
        means = {arm: first.loc[first["arm"] == arm].groupby("case")[item].mean().dropna().to_numpy() for arm in arms}
        for arm in arms:
            own = scores[arm]
            line: Line = {"item": item, "arm": arm, "n": len(own)}
            line |= {"mean": own.mean() if len(own) else None, "sd": own.std(ddof=1) if len(own) > 1 else None}
            line |= dict.fromkeys(("u", "p", "method", "p_image_means"))
            if arm != REAL_ARM and len(own) and len(scores[REAL_ARM]):
                test = mann_whitney(own, scores[REAL_ARM])
                line |= {"u": test.u, "p": test.p, "method": test.method}
                line["p_image_means"] = mann_whitney(means[arm], means[REAL_ARM]).p
            lines.append(line)
    return _with_holm(lines, "p")


def comparison_lines(first: pd.DataFrame, models: Sequence[str], plan: Plan) -> list[Line]:
    """Each model against real images, item by item, readers and cases random.

    The difference of mean scores (generated minus real of the same findings) with its interval of level 1 - 2 alpha,
    the test of equivalence within the margin, the test of difference, and Cliff's delta averaged over readers.
    """
    lines = [_comparison(first, item, model, plan) for item in ITEMS for model in models]
    return _with_holm(_with_holm(lines, "p_difference"), "p_equivalence")


def _comparison(first: pd.DataFrame, item: str, model: str, plan: Plan) -> Line:
    line: Line = {"item": item, "model": model}
    generated, real = (_pivot(first[first["arm"] == arm], item, "case") for arm in (model, REAL_ARM))
    generated, real = generated.align(real, join="inner")
    readers, cases = complete_block((generated - real).notna().to_numpy(), ENOUGH)
    line |= {"readers": int(readers.sum()), "cases": int(cases.sum())}
    names = ("difference", "standard_error", "df", "low", "high", "p_equivalence", "equivalent", "p_difference")
    line |= dict.fromkeys((*names, "delta", "delta_low", "delta_high", "var_reader", "var_case", "var_error"))
    if line["readers"] < 2 or line["cases"] < 2:
        return line | {"reason": "fewer than two readers or two cases without gaps"}
    made, taken = (table.to_numpy()[np.ix_(readers, cases)] for table in (generated, real))
    estimate = crossed_mean(made - taken)
    low, high = estimate.interval(1 - 2 * plan.alpha)
    p = estimate.p_equivalence(plan.margin)
    line |= {"difference": estimate.value, "standard_error": estimate.standard_error, "df": estimate.df}
    line |= {"low": low, "high": high, "p_equivalence": p, "equivalent": bool(p < plan.alpha)}
    line["p_difference"] = estimate.p_difference()
    same = np.flatnonzero(cases)
    delta = areas(made, taken, same, same).mean()
    ends = delta.interval(1 - plan.alpha)
    line |= {
        "delta": 2 * delta.value - 1,
        "delta_low": max(-1.0, 2 * ends[0] - 1),
        "delta_high": min(1.0, 2 * ends[1] - 1),
    }
    components = mean_squares(made - taken).components()
    return line | {
        "var_reader": components.reader,
        "var_case": components.case,
        "var_error": components.error,
        "reason": None,
    }


def recognition_lines(first: pd.DataFrame, models: Sequence[str], plan: Plan) -> list[Line]:
    """Can readers tell generated from real? The area under the curve, for each model and for all of them."""
    lines = []
    for model in [*models, ALL_MODELS] if len(models) > 1 else models:
        measured, readers, cases = _areas(first, models if model == ALL_MODELS else [model])
        line: Line = {"model": model, "readers": len(readers), "cases": cases}
        line |= dict.fromkeys(
            (
                "auc",
                "standard_error",
                "df",
                "low",
                "high",
                "p_chance",
                "low_equivalence",
                "high_equivalence",
                "p_equivalence",
            )
        )
        line |= {"indistinguishable": None, "by_reader": {}}
        made = first[first["arm"].isin(models if model == ALL_MODELS else [model])]
        taken = first[first["arm"] == REAL_ARM]
        line["generated_called_generated"] = (made[ORIGIN] == GENERATED).mean() if len(made) else None
        line["real_called_real"] = (taken[ORIGIN] == REAL).mean() if len(taken) else None
        if measured is None:
            lines.append(line | {"reason": "no reader answered enough, or fewer than two cases are without gaps"})
            continue
        mean = measured.mean()
        p = mean.p_equivalence(plan.auc_margin, 0.5)
        (low, high), narrow = mean.interval(1 - plan.alpha), mean.interval(1 - 2 * plan.alpha)
        line |= {"auc": mean.value, "standard_error": mean.standard_error, "df": mean.df}
        line |= {"low": max(0.0, low), "high": min(1.0, high), "p_chance": mean.p_difference(0.5)}
        line |= {"low_equivalence": max(0.0, narrow[0]), "high_equivalence": min(1.0, narrow[1]), "p_equivalence": p}
        line |= {"indistinguishable": bool(p < plan.alpha), "by_reader": dict(zip(readers, measured.areas.tolist()))}
        line["reason"] = "one reader: says nothing of other readers" if len(readers) == 1 else None
        lines.append(line)
    return lines


def _areas(first: pd.DataFrame, models: Sequence[str]) -> tuple[Areas | None, list[str], int]:
    """Areas of the readers who answered enough, on cases without gaps; None where that leaves too little."""
    tables = [_pivot(first[first["arm"] == arm], SUSPICION, "case") for arm in (*models, REAL_ARM)]
    readers = sorted(set.intersection(*(set(table.index) for table in tables)))
    shared = sorted(set.intersection(*(set(table.columns) for table in tables)))
    if not readers or not shared:
        return None, [], 0
    values = np.stack([table.loc[readers, shared].to_numpy() for table in tables])  # (arms, readers, cases)
    kept, cases = complete_block(~np.isnan(values).any(0), ENOUGH)
    if not kept.any() or cases.sum() < 2:
        return None, [], 0
    values, of = values[:, kept][:, :, cases], np.flatnonzero(cases)
    made = np.concatenate(list(values[:-1]), axis=1)
    names = [name for name, keep in zip(readers, kept) if keep]
    return areas(made, values[-1], np.tile(of, len(models)), of), names, int(cases.sum())


def ordinal_lines(first: pd.DataFrame, models: Sequence[str]) -> list[Line]:
    """The cumulative logit model: odds ratio of a higher score for each model against real images.

    Random: readers, readers' own view of each arm, cases (findings), images. All answers count, gaps or not.
    """
    lines = []
    for item in ITEMS:
        rated = first.dropna(subset=[item])
        names = ("log_odds", "standard_error", "odds_ratio", "low", "high", "p")
        blank = {"item": item, "n": len(rated), **dict.fromkeys(names), "deviations": None, "reason": None}
        if rated[item].nunique() < 2 or rated["reader"].nunique() < 2 or set(rated["arm"]) != {REAL_ARM, *models}:
            reason = "needs two different scores, two readers and every arm"
            lines += [{**blank, "model": model, "reason": reason} for model in models]
            continue
        predictors = np.stack([rated["arm"] == model for model in models], 1).astype(float)
        view, image = rated["reader"] + "\0" + rated["arm"], rated["arm"] + "\0" + rated["case"].astype(str)
        groups = [series.to_numpy() for series in (rated["reader"], view, rated["case"], image)]
        fit = fit_ordinal(rated[item].to_numpy(), predictors, groups)
        deviations = dict(zip(("reader", "reader x arm", "case", "image"), fit.deviations.tolist()))
        for model, beta, error in zip(models, fit.beta, fit.standard_errors):
            line: Line = {**blank, "model": model, "log_odds": beta, "standard_error": error, "deviations": deviations}
            log_odds = Estimate(beta, error, math.inf)
            ends = log_odds.interval()
            if fit.converged and error > 0 and max(map(abs, ends)) < LARGEST_LOG_ODDS:  # none of these is so with NaN
                line |= {"odds_ratio": math.exp(beta), "p": log_odds.p_difference()}
                line |= dict(zip(("low", "high"), map(math.exp, ends)))
            else:
                line["reason"] = "the model did not converge"
            lines.append(line)
    return _with_holm(lines, "p")


def agreement_lines(first: pd.DataFrame, draws: int) -> list[Line]:
    """Agreement between readers, for each item and for real-or-generated, with intervals over cases."""
    lines = []
    cases = first.drop_duplicates("image").set_index("image")["case"]
    for question in (*ITEMS, ORIGIN):
        values = first.assign(generated=(first[ORIGIN] == GENERATED).astype(float)) if question == ORIGIN else first
        table = _pivot(values, "generated" if question == ORIGIN else question, "image")
        of, scores = cases.reindex(table.columns).to_numpy(), table.to_numpy()
        alpha = partial(krippendorff_alpha, level=NOMINAL) if question == ORIGIN else krippendorff_alpha
        line: Line = {"question": question, "readers": table.shape[0], "images": table.shape[1]}
        if table.shape[0] < 2:
            names = (
                "alpha",
                "alpha_low",
                "alpha_high",
                "kappa",
                "kappa_low",
                "kappa_high",
                "icc",
                "icc_low",
                "icc_high",
            )
            lines.append({**line, **dict.fromkeys(names), "reason": "fewer than two readers"})
            continue
        for name, measure in (("alpha", alpha), ("kappa", mean_kappa)):
            low, high = bootstrap_interval(measure, scores, of, draws, BOOTSTRAP_SEED)
            line |= {name: measure(scores), f"{name}_low": low, f"{name}_high": high}
        icc = intraclass_correlation(scores)
        line |= {"icc": icc.value, "icc_low": icc.low, "icc_high": icc.high}
        lines.append(line | {"reason": None if math.isfinite(line["alpha"]) else "all answers are the same"})
    return lines


def repeat_lines(answers: pd.DataFrame) -> list[Line]:
    """Each reader's agreement with herself on the images that were shown twice."""
    lines = []
    again = answers[answers["repeat_of"].notna()]
    for reader, second in again.groupby("reader"):
        first = answers[(answers["reader"] == reader) & answers["repeat_of"].isna()].set_index("image")
        second = second[second["repeat_of"].isin(first.index)]
        for question in (*ITEMS, ORIGIN):
            before, after = first.loc[second["repeat_of"], question], second[question]
            if question == ORIGIN:
                before, after = (series == GENERATED for series in (before, after))
            pairs = np.stack([before.to_numpy(float), after.to_numpy(float)])
            pairs = pairs[:, ~np.isnan(pairs).any(0)]
            line: Line = {"reader": reader, "question": question, "pairs": pairs.shape[1]}
            line |= {"identical": (pairs[0] == pairs[1]).mean() if pairs.size else None, "kappa": None}
            line |= {"kappa": weighted_kappa(*pairs) if pairs.size else None}
            lines.append(line)
    return lines


def _curves(first: pd.DataFrame, models: Sequence[str]) -> list[Line]:
    lines = []
    for model in models:
        for reader, own in first[first["arm"].isin([model, REAL_ARM])].groupby("reader"):
            is_generated = (own["arm"] == model).to_numpy()
            if 0 < is_generated.sum() < len(own):
                points = curve(own[SUSPICION].to_numpy(), is_generated)
                lines.append({"model": model, "reader": reader, "points": points.tolist()})
    return lines


def _distributions(first: pd.DataFrame, arms: Sequence[str]) -> list[Line]:
    lines = []
    for item in ITEMS:
        for arm in arms:
            scores = first.loc[first["arm"] == arm, item]
            lines.append({"item": item, "arm": arm, "counts": [int((scores == code).sum()) for code in CODES]})
    return lines


def _pivot(lines: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    return lines.pivot(index="reader", columns=by, values=column)


def _with_holm(lines: list[Line], name: str) -> list[Line]:
    """Add ``<name>_holm``: the p-values corrected for all that were computed."""
    given = [line for line in lines if line[name] is not None]
    corrected = iter(holm([line[name] for line in given]))
    return [{**line, f"{name}_holm": next(corrected) if line[name] is not None else None} for line in lines]


def _plain(value: Any) -> Any:
    """Without NumPy's types; NaN and infinities (of degrees of freedom) become None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
