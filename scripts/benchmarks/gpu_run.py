"""Measurements in stages within a given time: what each may take, and results that are on the disk at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limits import Clock, NotFinished

OUTPUT_FILES, OUTPUT_BYTES = 8, 16 * 2**20
"""How many files OUT may hold, and how large each may be."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: of its row in the table.
        most: seconds it is given; infinite for all that are left.
        least: seconds below which it is not worth a start.
        measure: takes the seconds it has; gives rows, which get ``case`` from here where they have none.
    """

    name: str
    most: float
    least: float
    measure: Callable[[float], list[Row]]


@dataclass(frozen=True)
class Stage:
    """Measurements that make one table.

    Attributes:
        title: of the table.
        goal: beside which the results stand; empty for none.
        seconds: of 12 minutes; what a stage leaves over goes to the next ones.
        columns: heading -> from a row and all rows of the stage to a cell's text.
        cases: in order of worth.
        missing: why there are no cases, where there are none.
        together: cases that run at the same time, where none tells a speed.
    """

    title: str
    goal: str
    seconds: float
    columns: dict[str, Callable[[Row, Sequence[Row]], str]]
    cases: list[Case] = field(default_factory=list)
    missing: str = ""
    together: int = 1


class Results:
    """What OUT holds.

    Args:
        folder: made where there is none.
        stages: all.
        minutes: of the run.
    """

    def __init__(self, folder: Path, stages: Sequence[Stage], minutes: float) -> None:
        self.folder = folder
        self.stages = stages
        self.minutes = minutes
        self.rows: dict[str, list[Row]] = {stage.title: [] for stage in stages}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, stage: Stage, rows: Sequence[Row]) -> None:
        """Rows of a stage, of any thread; both files are written at once."""
        with self._lock:
            self._add(stage, rows)

    def _add(self, stage: Stage, rows: Sequence[Row]) -> None:
        self.rows[stage.title] += rows
        for row in rows:
            print(f"  {row['case']}: {row['status']} ({row['took']:.0f} s)", flush=True)
        report = {"minutes": self.minutes, "stages": self.rows}
        for name, text in (("gpu.json", json.dumps(report, indent=1)), ("gpu.md", self.render())):
            temporary = self.folder / f".{name}"
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.replace(self.folder / name)

    def render(self) -> str:
        """All tables in Markdown."""
        return "\n\n".join(render(stage, self.rows[stage.title]) for stage in self.stages)


def render(stage: Stage, rows: Sequence[Row]) -> str:
    """A stage's table in Markdown; a measurement that was cut or not run says so in its last column."""
    lines = [f"## {stage.title}", "", *([f"Goal: {stage.goal}.", ""] if stage.goal else [])]
    lines += [_line(["", *stage.columns, "remark"]), "|---" * (len(stage.columns) + 2) + "|"]
    for row in rows:
        cells = [cell(row, rows) for cell in stage.columns.values()]
        remark = "" if row["status"] == "done" else row["status"].splitlines()[0].replace("|", "/")
        lines.append(_line([row["case"], *cells, remark]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def run(stages: Sequence[Stage], results: Results, clock: Clock) -> None:
    """All stages, one after the other.

    A stage may take what the later ones are not promised. Whatever a measurement raises is its own row's remark.

    Args:
        stages: in order of worth.
        results: gets the rows.
        clock: of the whole run.
    """
    scale = clock.left / sum(stage.seconds for stage in stages)
    for number, stage in enumerate(stages):
        promised = sum(later.seconds for later in stages[number + 1 :]) * scale
        print(f"{stage.title} ({max(0.0, clock.left - promised):.0f} s)", flush=True)
        if stage.missing:
            results.add(stage, [{"case": stage.title, "status": f"not run: {stage.missing}", "took": 0.0}])
        with ThreadPoolExecutor(stage.together) as pool:
            for done in [pool.submit(_run, case, stage, results, clock, promised) for case in stage.cases]:
                done.result()


def _run(case: Case, stage: Stage, results: Results, clock: Clock, promised: float) -> None:
    started, left = time.monotonic(), clock.left - promised
    if left <= 0 or left < case.least:
        rows: list[Row] = [{"status": f"not run: {max(0.0, left):.0f} s were left, too few"}]
    else:
        rows = _measured(case, min(case.most, left))
    took = time.monotonic() - started
    results.add(stage, [{"case": case.name, "took": took, **row} for row in rows])


def _measured(case: Case, seconds: float) -> list[Row]:
    try:
        return [{"status": "done", **row} for row in case.measure(seconds)]
    except NotFinished as error:
        return [{"status": str(error)}]
    except (Exception, SystemExit) as error:  # a fault of one measurement must not cost the others their minutes
        return [{"status": f"failed: {type(error).__name__}: {error}"}]


def plan(stages: Sequence[Stage], minutes: float) -> str:
    """What is to be run, and how long each may take."""
    total = sum(stage.seconds for stage in stages)
    lines = [f"{minutes:g} minutes:"]
    for stage in stages:
        lines.append(
            f"  {stage.title}: {stage.seconds * minutes * 60 / total:.0f} s promised, then what was saved before"
        )
        lines += [f"    not run: {stage.missing}"] if stage.missing else []
        lines += [f"    {case.name}: {case.least:.0f} to {case.most:.0f} s" for case in stage.cases]
    return "\n".join(lines)


def check_output(folder: Path) -> None:
    """See that OUT can be taken home.

    Raises:
        SystemExit: if it holds too many files, or too large ones.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    large = [path.name for path in files if path.stat().st_size > OUTPUT_BYTES]
    if len(files) > OUTPUT_FILES or large:
        raise SystemExit(f"{folder}: {len(files)} files of {OUTPUT_FILES}; too large: {', '.join(large) or 'none'}")
