"""The report of a study: one self-contained HTML page, tables as CSV, everything as JSON, the methods as text."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import PackageLoader
from matplotlib import rc_context

from nodule_plugin import __version__
from nodule_plugin.errors import InputError
from nodule_plugin.files import write_files
from nodule_plugin.reader_study.analysis import analyse
from nodule_plugin.reader_study.answers import AnswerStore, Chain
from nodule_plugin.reader_study.answers_table import build_table
from nodule_plugin.reader_study.figures import agreement_figure, curve_figure, difference_figure, distribution_figure
from nodule_plugin.reader_study.fonts import choose_fonts
from nodule_plugin.reader_study.questions import ORIGIN
from nodule_plugin.reader_study.seal import Key, open_key
from nodule_plugin.reader_study.sheet import csv_bytes
from nodule_plugin.reader_study.study import Plan, Study, load_study
from nodule_plugin.reader_study.words import (
    chain_sentence,
    conclusion,
    methods_paragraph,
    p_value,
    reference_name,
)
from nodule_plugin.report.html import data_url, environment
from nodule_plugin.settings import whole_number

_logger = logging.getLogger(__name__)

FORMAT = "nodule-plugin reader study results"
VERSION = 1
TABLES = ("readers", "scores", "comparisons", "recognition", "ordinal", "agreement", "repeats")


def write_analysis(
    folder: str | Path, key_file: str | Path, output: str | Path, draws: int = 1000, links: Sequence[str] = ()
) -> Path:
    """Open the seal, analyse the answers, write the report.

    Args:
        folder: of the study; nothing is written to it.
        key_file: of the study.
        output: folder for ``report.html``, ``results.json``, ``methods.txt``, ``answers.csv`` and a CSV for each table.
        draws: of the bootstrap.
        links: of the answers' chain that were published, to be checked.

    Returns:
        The page.

    Raises:
        InputError: if the key, the study or the answers are not what was sealed and stored, there is no answer, or
            ``output`` lies in the study's folder, where it would tell the server what is sealed.
    """
    whole_number("bootstrap", draws)
    study = load_study(folder)
    if {Path(output).resolve(), *Path(output).resolve().parents} & {study.folder.resolve()}:
        raise InputError(f"output: {output} lies in the study's folder, which is served; give a folder elsewhere")
    key = open_key(key_file, study)
    store = AnswerStore(study.answers_file, study.content["id"], read_only=True)
    chain = store.verify(key.answers_key, links)
    answers = build_table(store.rows(), key)
    if answers.empty:
        raise InputError(f"answers: {store.file} holds no answer that counts; let readers answer first")
    results = describe(study, key, answers, chain, draws)
    contents = {f"{name}.csv": csv_bytes(results[name]) for name in TABLES}
    contents |= {
        "answers.csv": csv_bytes(answers.astype(object).where(answers.notna(), None).to_dict("records")),
        "methods.txt": f"{results['methods']}\n".encode(),
        "report.html": render(results).encode(),
        "results.json": (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode(),
    }
    write_files(contents, Path(output), "output")
    return Path(output) / "report.html"


def describe(study: Study, key: Key, answers: pd.DataFrame, chain: Chain, draws: int) -> dict[str, Any]:
    """The content of ``results.json``."""
    results = analyse(answers, key, study.plan, study.readers, draws)
    counted = [image for image in key.images.values() if not image.practice]
    cases, repeats = len({image.case for image in counted}), sum(image.repeat_of is not None for image in counted)
    names = ("id", "title", "size", "window_hu", "phantoms", "plan", "commitment")
    phantoms = study.content["phantoms"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": {"nodule-plugin": __version__},
        "study": {name: study.content[name] for name in names}
        | {"rehearsal": study.rehearsal, "chain": study.content.get("chain")},
        "arms": list(key.arms),
        "reference": reference_name(phantoms),
        "cases": cases,
        "hidden_repeats": repeats,
        "answer_rows": chain.rows,
        "answers_chain": vars(chain) | {"words": chain_sentence(chain)},
        "conclusion": conclusion(results, study.plan, phantoms, study.rehearsal),
        "methods": methods_paragraph(results, study.content, list(key.arms), cases, repeats),
        **results,
    }


def render(results: Mapping[str, Any]) -> str:
    """The page as HTML text; it loads nothing from anywhere."""
    templates = environment(PackageLoader(__package__, "templates"))
    plan = results["study"]["plan"]
    figures, missing = draw_figures(results, Plan(**plan))
    urls = {name: data_url(picture) for name, picture in figures.items()}
    templates.filters |= {"p": p_value, "number": _number, "question": _question, "percent": _percent}
    template = templates.get_template("report.html")
    return template.render(results=results, plan=plan, pictures=urls, missing_characters=missing)


def draw_figures(results: Mapping[str, Any], plan: Plan) -> tuple[dict[str, bytes], str]:
    """The page's figures as PNG, and the characters of names that no installed font can draw."""
    names = [*results["arms"], *(line["reader"] for line in results["readers"])]
    families, missing = choose_fonts("".join(names))
    if missing:
        _logger.warning("figures: no installed font has %s; install one that has, such as Noto Sans CJK", missing)
    with rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # told once, above
        figures = {
            "distributions": distribution_figure(results),
            "differences": difference_figure(results, plan.margin, 1 - 2 * plan.alpha),
            "curves": curve_figure(results),
            "agreement": agreement_figure(results),
        }
    return figures, missing


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    # An odds ratio of separated scores has no upper end to speak of, but thirty digits.
    return f"{value:.{digits}e}" if abs(value) >= 1e5 else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _question(name: str) -> str:
    return "Real or generated" if name == ORIGIN else name.capitalize()
