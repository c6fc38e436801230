"""Studies with a known truth: how often each analysis is wrong, and how often it finds what is there.

A score is a latent value cut into five: the arm's effect, the reader, the reader's own view of the arm, the findings,
the image, and what is left, all normal. Nothing else is assumed of the analyses, which see the scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.planning import equivalence_power
from nodule_plugin.reader_study.statistics.crossed import Components, crossed_mean, mean_squares
from nodule_plugin.reader_study.statistics.ordinal import fit_ordinal
from nodule_plugin.reader_study.statistics.ranks import mann_whitney
from nodule_plugin.reader_study.statistics.roc import areas
from nodule_plugin.settings import whole_number

CUTS = np.array([-1.5, -0.5, 0.5, 1.5])


@dataclass(frozen=True)
class Truth:
    """Standard deviations of the latent value, in points of the scale.

    Attributes:
        reader: how generous readers are.
        view: how differently readers take to an arm.
        case: findings, shared by all arms.
        image: one image against another of the same findings and arm.
        noise: what is left: the same reader at the same image another day.
    """

    reader: float = 0.4
    view: float = 0.15
    case: float = 0.4
    image: float = 0.6
    noise: float = 0.7

    @property
    def total(self) -> float:
        """Standard deviation of a single latent value."""
        return float(np.linalg.norm([self.reader, self.view, self.case, self.image, self.noise]))

    def expected_score(self, shift: float) -> float:
        """The mean score of an arm whose latent effect is ``shift``."""
        return 1 + float(norm.sf((CUTS - shift) / self.total).sum())

    def shift_for(self, difference: float) -> float:
        """The latent effect that moves the mean score by ``difference`` from 3."""
        return float(brentq(lambda shift: self.expected_score(shift) - self.expected_score(0) - difference, -9, 9))


@dataclass(frozen=True)
class Rates:
    """How often analyses of simulated studies reject, at alpha.

    Attributes:
        readers, cases, studies: of the simulation.
        pooled: Mann-Whitney U of all readers' scores, as the reference method does; no true difference.
        image_means: the same test on each image's mean; no true difference.
        crossed: the test of difference with readers and cases random; no true difference.
        auc: the test of an area of 0.5; no true difference.
        coverage: fraction of the area's 95 % intervals that hold 0.5.
        ordinal: the ordinal mixed model's test, None where it was left out; no true difference.
        equivalence_error: equivalence is claimed although the true difference is the margin itself.
        equivalence_power: equivalence is claimed where there is no difference.
        planned_power: what ``plan`` says of that, from the variances that these studies have.
    """

    readers: int
    cases: int
    studies: int
    pooled: float
    image_means: float
    crossed: float
    auc: float
    coverage: float
    ordinal: float | None
    equivalence_error: float
    equivalence_power: float
    planned_power: float


def simulate_scores(
    truth: Truth, shifts: Sequence[float], readers: int, cases: int, rng: np.random.Generator
) -> np.ndarray:
    """One study's scores.

    Args:
        truth: standard deviations.
        shifts: latent effect of each arm.
        readers, cases: how many.
        rng: of the draws.

    Returns:
        (arms, readers, cases) scores from 1 to 5.
    """
    arms = len(shifts)
    latent = (
        np.reshape(shifts, (arms, 1, 1))
        + truth.reader * rng.standard_normal((1, readers, 1))
        + truth.view * rng.standard_normal((arms, readers, 1))
        + truth.case * rng.standard_normal((1, 1, cases))
        + truth.image * rng.standard_normal((arms, 1, cases))
        + truth.noise * rng.standard_normal((arms, readers, cases))
    )
    return 1.0 + np.searchsorted(CUTS, latent)


def error_rates(
    readers: int,
    cases: int,
    studies: int = 2000,
    margin: float = 0.5,
    alpha: float = 0.05,
    truth: Truth = Truth(),
    ordinal_studies: int = 0,
    seed: int = 0,
) -> Rates:
    """Simulate studies and count.

    Args:
        readers, cases: of a study, with one real and one generated image a case.
        studies: how many, with no difference, and as many with the margin as difference.
        margin, alpha: of the tests.
        truth: of the scores.
        ordinal_studies: on how many of them the ordinal model is fitted as well; it takes a tenth of a second each.
        seed: of the draws.

    Raises:
        InputError: if there is too little to simulate, or a setting makes no sense.
    """
    if readers < 2 or cases < 2 or studies < 1:
        raise InputError(f"simulate: 2 readers, 2 cases and 1 study are the least, not {readers}, {cases}, {studies}")
    if not (0 < margin < 2 and 0 < alpha < 0.5):
        raise InputError(
            f"simulate: margin {margin:g} must lie between 0 and 2 points, alpha {alpha:g} between 0 and 0.5"
        )
    whole_number("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("pooled", "image_means", "crossed", "auc", "covered", "ordinal", "wrong", "shown"), 0)
    components = []
    same = np.arange(cases)
    edge = truth.shift_for(margin)
    for study in tqdm(range(studies), desc=f"{readers} readers, {cases} cases", unit="study"):
        real, made = simulate_scores(truth, (0, 0), readers, cases, rng)
        difference = crossed_mean(made - real)
        area = areas(made, real, same, same).mean()
        low, high = area.interval(1 - alpha)
        counts["pooled"] += mann_whitney(made.ravel(), real.ravel()).p < alpha
        counts["image_means"] += mann_whitney(made.mean(0), real.mean(0)).p < alpha
        counts["crossed"] += difference.p_difference() < alpha
        counts["auc"] += area.p_difference(0.5) < alpha
        counts["covered"] += low <= 0.5 <= high
        counts["shown"] += difference.p_equivalence(margin) < alpha
        squares = mean_squares(made - real)
        components.append((squares.reader, squares.case, squares.error))
        if study < ordinal_studies:
            counts["ordinal"] += _ordinal_p(made, real) < alpha
        real, made = simulate_scores(truth, (0, edge), readers, cases, rng)
        counts["wrong"] += crossed_mean(made - real).p_equivalence(margin) < alpha
    # Mean squares are unbiased; components cut at 0 study by study would not be.
    by_reader, by_case, error = np.mean(components, 0)
    variances = Components(max(0.0, (by_reader - error) / cases), max(0.0, (by_case - error) / readers), float(error))
    fitted = min(ordinal_studies, studies)
    return Rates(
        readers,
        cases,
        studies,
        pooled=counts["pooled"] / studies,
        image_means=counts["image_means"] / studies,
        crossed=counts["crossed"] / studies,
        auc=counts["auc"] / studies,
        coverage=counts["covered"] / studies,
        ordinal=counts["ordinal"] / fitted if fitted else None,
        equivalence_error=counts["wrong"] / studies,
        equivalence_power=counts["shown"] / studies,
        planned_power=equivalence_power(variances, readers, cases, margin, alpha),
    )


def _ordinal_p(made: np.ndarray, real: np.ndarray) -> float:
    """The p-value of the analysis' ordinal model on one study."""
    scores = np.stack([real, made])
    arm, reader, case = (index.ravel() for index in np.indices(scores.shape))
    groups = [reader, arm * scores.shape[1] + reader, case, arm * scores.shape[2] + case]
    fit = fit_ordinal(scores.ravel(), (arm == 1)[:, None].astype(float), groups)
    return float(2 * norm.sf(abs(fit.beta[0] / fit.standard_errors[0])))


def rates_table(rates: Sequence[Rates]) -> str:
    """The rates as a Markdown table, in percent."""
    names = ["readers", "cases", "pooled U", "U of image means", "crossed t", "AUC = 0.5", "AUC interval covers"]
    names += ["ordinal model", "equivalence at the margin", "power", "planned power"]
    lines = ["| " + " | ".join(names) + " |", "|" + " ---: |" * len(names)]
    for line in rates:
        values = [line.pooled, line.image_means, line.crossed, line.auc, line.coverage, line.ordinal]
        values += [line.equivalence_error, line.equivalence_power, line.planned_power]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {line.readers} | {line.cases} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
