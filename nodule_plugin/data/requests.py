"""What to generate: prompts, findings or a split of a data list, times guidance scales, times seeds."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.entries import LIMITS
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.findings import CALCIFICATION_ABSENT, SCALES, Findings
from nodule_plugin.prompts import findings_to_prompt
from nodule_plugin.settings import as_flag, as_numbers, as_seeds, whole_number

CALCIFIED = 3
"""Solid: the code that stands for "any calcification" beside its absence."""
_LONGEST_PROMPT = 2000


@dataclass(frozen=True)
class _Subject:
    """One thing to generate at every scale and seed."""

    name: str
    prompt: str
    findings: dict[str, int] | None
    roi_mm: float
    seed_offset: int = 0
    source_id: str | None = None


def generation_requests(
    prompts: Any = None,
    findings: Any = None,
    datalist: str | None = None,
    split: str | Sequence[str] = "test",
    limit: int | None = None,
    guidance_scales: Any = 5.0,
    seeds: Any = 0,
    roi_mm: float = 20.0,
    template: str = "reference",
    dataset_dir: str | None = None,
    unique_prompts: bool | str = False,
) -> list[dict[str, Any]]:
    """Lay out what to generate.

    Exactly one of ``prompts``, ``findings`` and ``datalist`` says of what. Each prompt and each set of findings is made
    at every guidance scale with every seed; the n-th item of a data list with n added to the seed, so that the images
    of one item at several scales start from the same noise and those of several items do not.

    Args:
        prompts: text (one prompt per line), a list of texts, or a file: .txt (one per line), .json (a list) or .csv
            (the column "prompt"). In a list nothing names a file.
        findings: a dictionary of ratings, a list of them, or a .json file with either.
        datalist: file as ``prepare`` writes it; prompt, findings and roi_mm come from its items.
        split: of the data list: training, validation or test; several are joined.
        limit: take only that many items of the data list, from the start.
        guidance_scales, seeds: a number, a list of numbers, or text such as "1, 5, 10".
        roi_mm: side of the square that an image shows, mm.
        template: that words the findings, see :mod:`nodule_plugin.prompts`.
        dataset_dir: folder of the data list's images; None for the one that it names.
        unique_prompts: of the data list, take only items whose prompt no other item of the split has. With the training
            split these prompts belong to one training nodule each: an attack that asks the model to hand it out.

    Returns:
        Items {"id", "prompt", "findings" (ratings or None), "guidance_scale", "seed", "roi_mm", "source_id" (of the
        data list's item, or None)}, ordered by scale, then seed, then subject. Ids are unique and fit for file names.

    Raises:
        InputError: naming what was given and cannot be used.
    """
    # An empty one is given, and refused below: whoever gave it meant something by it.
    kinds = {"prompts": prompts, "findings": findings, "datalist": datalist}
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"give exactly one of prompts, findings and datalist, not {' and '.join(given) or 'none'}")
    scales = [_checked_scale(value) for value in as_numbers("guidance_scales", guidance_scales)]
    starts = as_seeds("seeds", seeds)
    if isinstance(roi_mm, bool) or not isinstance(roi_mm, (int, float)) or not 0 < roi_mm <= LIMITS["roi_mm"][1]:
        raise InputError(f"roi_mm: a number above 0, up to {LIMITS['roi_mm'][1]:g} mm, is needed, not {roi_mm!r}")
    if prompts is not None:
        subjects = _from_prompts(_read_prompts(prompts), float(roi_mm))
    elif findings is not None:
        subjects = _from_findings(_read_findings(findings), template, float(roi_mm))
    else:
        subjects = _from_datalist(str(datalist), split, limit, dataset_dir, as_flag("unique_prompts", unique_prompts))
    return [
        {
            "id": f"{subject.name}_g{scale:.12g}_s{start + subject.seed_offset}",
            "prompt": subject.prompt,
            "findings": subject.findings,
            "guidance_scale": scale,
            "seed": start + subject.seed_offset,
            "roi_mm": subject.roi_mm,
            "source_id": subject.source_id,
        }
        for scale in scales
        for start in starts
        for subject in subjects
    ]


def dose_response(
    findings: Mapping[str, Any], template: str = "reference", ratings: Sequence[str] | None = None
) -> list[dict[str, int]]:
    """Findings in which one rating moves over its scale and all else stays, for each rating in turn.

    Generated with shared seeds, they show whether pictures follow a rating. Calcification, which is a list of kinds,
    moves between absent and solid.

    Args:
        findings: where every rating stands while another moves.
        template: of the prompts; a rating that it does not word cannot move a picture and is left out.
        ratings: to move; None for all that the template words.

    Returns:
        Sets of findings for ``generation_requests(findings=...)``, ``findings`` itself first, each of them once.

    Raises:
        InputError: if a rating is unknown, or the template does not word it.
    """
    start = Findings.from_dict(findings).to_dict()
    moved = {name: rating_steps(start, name, template) for name in (SCALES if ratings is None else ratings)}
    if silent := [name for name in moved if ratings is not None and not moved[name]]:
        raise InputError(f"dose response: the template {template!r} does not word {silent[0]!r}; choose another")
    return [start, *(step for steps in moved.values() for step in steps if step != start)]


def rating_steps(start: Mapping[str, int], name: str, template: str = "reference") -> list[dict[str, int]]:
    """``start`` at every code of the rating ``name``; none where the wording stays the same.

    Raises:
        InputError: if there is no such rating.
    """
    if name not in SCALES:
        raise InputError(f"dose response: no rating is called {name!r}; there are {', '.join(SCALES)}")
    codes = (CALCIFICATION_ABSENT, CALCIFIED) if name == "calcification" else SCALES[name].codes
    steps = [{**start, name: code} for code in codes]
    wordings = {findings_to_prompt(Findings.from_dict(step), template) for step in steps}
    return steps if len(wordings) > 1 else []


def _from_prompts(prompts: list[str], roi_mm: float) -> list[_Subject]:
    return [_Subject(f"prompt{index:03d}", prompt, None, roi_mm) for index, prompt in enumerate(prompts)]


def _from_findings(ratings: list[Any], template: str, roi_mm: float) -> list[_Subject]:
    subjects = []
    for index, item in enumerate(ratings):
        if not isinstance(item, Mapping):
            raise InputError(f"findings[{index}]: a dictionary of ratings is needed, not {item!r}")
        try:
            findings = Findings.from_dict(item)
        except InputError as error:
            raise InputError(f"findings[{index}]: {error}") from error
        prompt = findings_to_prompt(findings, template)
        subjects.append(_Subject(f"findings{index:03d}", prompt, findings.to_dict(), roi_mm))
    return subjects


def _from_datalist(
    path: str, split: str | Sequence[str], limit: int | None, dataset_dir: str | None, unique_prompts: bool
) -> list[_Subject]:
    if limit is not None:
        whole_number("limit", limit)
    splits = [split] if isinstance(split, str) else list(split)
    items = [item for name in splits for item in load_datalist(path, name, dataset_dir)]
    if unique_prompts:
        times = Counter(item["prompt"] for item in items)
        items = [item for item in items if times[item["prompt"]] == 1]
    items = items[:limit]
    if not items:
        kind = "items whose prompt is theirs alone" if unique_prompts else "items"
        raise InputError(f"datalist: {path} has no {kind} in its split {' + '.join(splits)!r}")
    names: set[str] = set()
    subjects = []
    for index, item in enumerate(items):
        name = _file_safe(item["id"])
        name = f"{name}-{index}" if name in names else name
        names.add(name)
        prompt = checked_prompt(f"{path}: prompt of {item['id']!r}", item["prompt"])
        subjects.append(_Subject(name, prompt, item["findings"], float(item["roi_mm"]), index, item["id"]))
    return subjects


def _file_safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text)[:100].strip(".-") or "item"


def _read_prompts(prompts: Any) -> list[str]:
    if isinstance(prompts, (str, Path)) and (suffix := Path(prompts).suffix.lower()) in _PROMPT_FILES:
        prompts = _PROMPT_FILES[suffix](Path(prompts))
    if isinstance(prompts, str):
        prompts = [line for line in prompts.splitlines() if line.strip()]
    if not isinstance(prompts, (list, tuple)) or not prompts:
        files = ", ".join(_PROMPT_FILES)
        raise InputError(f"prompts: a text, a list of texts or a file ({files}) is needed, not {prompts!r}")
    return [checked_prompt(f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts)]


def checked_prompt(name: str, prompt: Any) -> str:
    """A prompt as one line of text, which every file that is written can hold.

    Returns:
        ``prompt`` with tabs and line breaks as spaces, and none around it.

    Raises:
        InputError: if it is no text, empty, longer than 2,000 characters (text encoders read about 300), or holds
            control characters or what is no character at all.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{name}: a text that is not empty is needed, not {prompt!r}")
    text = re.sub(r"[\t\n\v\f\r]", " ", prompt.strip())
    if len(text) > _LONGEST_PROMPT:
        raise InputError(f"{name}: {len(text)} characters; shorten it to {_LONGEST_PROMPT} or fewer")
    if bad := [character for character in text if unicodedata.category(character) in ("Cc", "Cs")]:
        raise InputError(f"{name}: the character {bad[0]!r} in {text[:60]!r} cannot be shown; remove it")
    return text


def findings_content(name: str, findings: Any) -> Any:
    """Findings as they were given, or what the .json file holds that a text names.

    Raises:
        InputError: naming the setting, if there is no such file or it is not JSON.
    """
    if not isinstance(findings, (str, Path)):
        return findings
    try:
        return read_json(Path(findings), "give {'sphericity': 3, ...}, or a .json file that holds it")
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _read_findings(findings: Any) -> list[Any]:
    findings = findings_content("findings", findings)
    if isinstance(findings, Mapping):
        return [findings]
    if not isinstance(findings, (list, tuple)) or not findings:
        raise InputError(f"findings: a dictionary of ratings or a list of them is needed, not {findings!r}")
    return list(findings)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: {path} cannot be read as UTF-8 text: {error}") from error


def _read_column(path: Path) -> list[str | None]:
    """The column "prompt" of a CSV file."""
    try:
        table = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
        columns = list(table.fieldnames or [])
        if "prompt" not in columns:
            raise InputError(f"prompts: {path} has no column 'prompt' between commas, only {columns}")
        return [row["prompt"] for row in table]
    except csv.Error as error:
        raise InputError(f"prompts: {path} cannot be read as CSV: {error}") from error


_PROMPT_FILES: dict[str, Callable[[Path], Any]] = {".txt": _read_text, ".json": read_json, ".csv": _read_column}


def _checked_scale(value: float | int) -> float:
    if value < 0:
        raise InputError(f"guidance_scales: a guidance scale is a number of 0 or above, not {value:g}")
    return float(value)
