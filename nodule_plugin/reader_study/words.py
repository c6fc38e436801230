"""What the numbers say in sentences: the conclusion, and a paragraph for a paper's methods section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodule_plugin import __version__
from nodule_plugin.reader_study.study import Plan

FEW_READERS = 5
"""With fewer readers than this the page says that they are few."""


def p_value(p: float | None) -> str:
    """A p-value as papers print it."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def reference_name(phantoms: bool) -> str:
    """What the images of the arm "real" are called: phantoms are never called real."""
    return "phantom" if phantoms else "real"


def conclusion(results: Mapping[str, Any], plan: Plan, phantoms: bool) -> list[str]:
    """The study's answer in a few sentences, the doubts first."""
    sentences, reference = [], reference_name(phantoms)
    if phantoms:
        sentences.append("Phantoms (synthetic CT) stand in for real images: this shows that the steps work, no more.")
    readers = [line for line in results["readers"] if line["answered"]]
    if len(readers) < FEW_READERS:
        sentences.append(f"There were only {len(readers)} readers: what holds for readers at large stays uncertain.")
    if missing := sum(line["missing"] for line in results["readers"]):
        sentences.append(f"{missing} of {sum(line['images'] for line in results['readers'])} answers are missing.")
    for line in results["comparisons"]:
        if line["item"] == plan.primary:
            sentences.append(_compared(line, plan, reference))
    sentences += [_recognised(line, plan, reference) for line in results["recognition"]]
    return sentences


def _compared(line: Mapping[str, Any], plan: Plan, reference: str) -> str:
    what = f"{line['item'].capitalize()}, {line['model']} against {reference} images"
    if line["difference"] is None:
        return f"{what}: not computed: {line['reason']}."
    told = (
        f"{what}: {line['difference']:+.2f} points ({100 * (1 - 2 * plan.alpha):.0f} % interval {line['low']:.2f} to "
        f"{line['high']:.2f}, margin {plan.margin:g})"
    )
    if line["equivalent"]:
        return f"{told}: equivalent (p {p_value(line['p_equivalence'])})."
    if line["p_difference"] < plan.alpha:
        return f"{told}: different (p {p_value(line['p_difference'])}), and not shown to be equivalent."
    return f"{told}: neither a difference nor equivalence is shown."


def _recognised(line: Mapping[str, Any], plan: Plan, reference: str) -> str:
    if line["auc"] is None:
        return f"Telling {line['model']} from {reference} images: not computed: {line['reason']}."
    told = (
        f"Telling {line['model']} from {reference} images: area under the curve {line['auc']:.2f} "
        f"({100 * (1 - plan.alpha):.0f} % interval {line['low']:.2f} to {line['high']:.2f}; 0.5 is chance)"
    )
    if line["indistinguishable"]:
        return f"{told}: within {plan.auc_margin:g} of chance."
    if line["p_chance"] < plan.alpha:
        return f"{told}: readers can tell them apart." if line["auc"] > 0.5 else f"{told}: readers confuse them."
    return f"{told}: neither that readers can tell them apart nor that they cannot is shown."


def methods_paragraph(
    results: Mapping[str, Any], content: Mapping[str, Any], arms: list[str], cases: int, repeats: int
) -> str:
    """A paragraph to paste, with this study's numbers.

    Args:
        results: of :func:`nodule_plugin.reader_study.analysis.analyse`.
        content: of ``study.json``.
        arms: "real", then the models.
        cases: findings, each with one image of every arm.
        repeats: images shown twice.
    """
    plan = Plan(**content["plan"])
    readers = results["readers"]
    images = len(arms) * cases
    lower, upper = content["window_hu"]
    models = ", ".join(arms[1:])
    missing = sum(line["missing"] for line in readers)
    source = f"{reference_name(content['phantoms'])} images"
    sentences = (
        f"{len(readers)} readers independently scored {images} images in an order of their own: {cases} {source} and "
        f"{cases} images of each of {len(arms) - 1} generative models ({models}), generated from the same findings.",
        f"Readers did not know the origin of the images; {repeats} images were shown twice, unannounced.",
        f"All images had {content['size'][0]} x {content['size'][1]} pixels, were limited to {lower:g} to {upper:g} HU "
        "and stored with 256 grey levels.",
        "Readers scored realism, malignancy, sphericity, texture, margin, spiculation and lobulation from 1 to 5 (the "
        "last six with LIDC's labels), said whether the image was real or generated, and how sure they were.",
        "Each answer was stored before the next image was shown; changes were recorded.",
        f"The key was sealed beforehand (SHA-256 {content['commitment']['sha256']}).",
        f"{missing} answers were missing.",
        "Readers and cases were taken as random samples.",
        f"Mean differences between generated and {source} of the same findings were tested for equivalence by two "
        f"one-sided tests (margin {plan.margin:g} points, alpha {plan.alpha:g}), with the standard error from the "
        "two-way analysis of variance of readers by cases and Satterthwaite's degrees of freedom; the primary item was "
        f"{plan.primary}.",
        "Areas under the receiver operating characteristic curve were compared with 0.5 by the method of Obuchowski "
        "and Rockette with Hillis' degrees of freedom and DeLong's covariances, clustered by findings.",
        "Scores were also analysed by a cumulative logit model with random readers, reader-by-arm effects, findings "
        "and images (Laplace approximation).",
        "Agreement is given as Krippendorff's alpha, quadratically weighted kappa and ICC(2,1).",
        "p-values of a family of tests were corrected after Holm.",
        f"Analysis: nodule-plugin {__version__}.",
    )
    return " ".join(sentences)
