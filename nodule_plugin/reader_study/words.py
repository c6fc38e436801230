"""What the numbers say in sentences: the conclusion, and a paragraph for a paper's methods section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodule_plugin import __version__
from nodule_plugin.reader_study.answers import Chain
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


def blinding_sentence(blinding: Mapping[str, Any] | None, reference: str = "real") -> str:
    """What a program could tell the arms apart by, as :func:`.cues.compare_arms` measured it."""
    if blinding is None:
        return "Whether a program tells the arms apart was not measured (design of an earlier release)."
    size = f"{blinding['cases']} images of each arm, with which chance reaches {blinding['chance']:.2f}"
    telling = sorted((line for line in blinding["lines"] if line["telling"]), key=lambda line: -line["area"])
    if not telling:
        largest = max(line["area"] for line in blinding["lines"])
        return (
            f"No cue in edges, spectrum, grey values or files told the arms apart (largest area {largest:.2f}; {size})."
        )
    first = telling[0]
    return (
        f"A program told generated from {reference} images, most surely {first['model']} by its {first['family']} "
        f"({first['cue']}: area {first['area']:.2f}; {size}); this was accepted when the study was designed "
        f"({', '.join(blinding['accepted'])})."
    )


def chain_sentence(chain: Chain) -> str:
    """What the answers' chain shows, and no more."""
    if not chain.rows:
        return "0 rows of answers"
    told = f"{chain.rows} rows of answers, last link {chain.link}: "
    if chain.keyed:
        told += "as the server wrote them, none missing (checked with the sealed key)"
    else:
        told += "consistent, but without a key (a study of an earlier release): who can write the file can make it anew"
    bound = (
        f"; rows 1 to {chain.published} are those of a published link"
        if chain.published
        else "; no published link given"
    )
    return told + bound


def conclusion(results: Mapping[str, Any], plan: Plan, phantoms: bool, rehearsal: bool = False) -> list[str]:
    """The study's answer in a few sentences, the doubts first."""
    sentences, reference = [], reference_name(phantoms)
    if rehearsal:
        sentences.append("Rehearsal: the cases were drawn from a seed that somebody chose; this is no blinded study.")
    if phantoms:
        sentences.append("Phantoms (synthetic CT) stand in for real images: this shows that the steps work, no more.")
    readers = [line for line in results["readers"] if line["answered"]]
    if len(readers) < FEW_READERS:
        sentences.append(f"There were only {len(readers)} readers: what holds for readers at large stays uncertain.")
    if missing := sum(line["missing"] for line in results["readers"]):
        sentences.append(f"{missing} of {sum(line['images'] for line in results['readers'])} answers are missing.")
    if results["blinding"] is None or any(line["telling"] for line in results["blinding"]["lines"]):
        sentences.append(blinding_sentence(results["blinding"], reference))
    if untimed := sum(line["untimed"] for line in results["readers"]):
        sentences.append(
            f"{untimed} reading times are unknown: a page's showing was not noted, or the server's clock was set back."
        )
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
        blinding_sentence(results["blinding"], reference_name(content["phantoms"])),
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
