"""How the cost of building the dataset grows with the number of scans, measured on phantom scans.

A phantom scan here is a whole series with a real scan's slice positions and its readers' XML, written as
``nodule_plugin.lidc.phantom`` writes them, except that all pixels are one value and take no room on disk (the files are
sparse): ingest reads headers and measures files, never pixels. 1,018 scans take 1.1 GB. Run from the repository root:

    python scripts/benchmarks/ingest_scale.py --scans 10 20 40 80 1018 --output output/ingest_scale.json \
        --figure docs/images/ingest_scale.png
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pydicom
from joblib import Parallel, delayed
from pydicom.uid import UID
from tqdm import tqdm

from nodule_plugin.data.sources import load_nodules
from nodule_plugin.files import write_json
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.phantom.dicom import INTERCEPT, SeriesIdentity, SliceGeometry, write_slice
from nodule_plugin.lidc.phantom.provenance import phantom_uid
from nodule_plugin.lidc.phantom.readings import write_readings
from nodule_plugin.lidc.records import Scan

SIDE = 512
PIXEL_BYTES = SIDE * SIDE * 2
ALL_SCANS = 1018
AIR = np.full((SIDE, SIDE), INTERCEPT)


def write_scan(folder: Path, number: int, scan: Scan) -> int:
    """Write one phantom scan; the number of its slices."""
    identity = SeriesIdentity(
        f"PHANTOM-{number:04d}",
        *(phantom_uid(kind, scan.series_instance_uid, 0) for kind in ("study", "series", "frame of reference")),
    )
    folder.mkdir(parents=True)
    outlined = {contour.z for annotation in scan.annotations for contour in annotation.contours}
    instance_at = {
        z: phantom_uid("instance", f"{scan.series_instance_uid} {z}", 0) for z in sorted({*scan.slice_z, *outlined})
    }
    first = folder / "000001.dcm"
    write_slice(
        first, AIR, identity, SliceGeometry("2.25.1", 1, (-180, -180, 0), scan.pixel_spacing, scan.slice_thickness)
    )
    dataset = pydicom.dcmread(first)
    del dataset.PixelData
    for index, z in enumerate(scan.slice_z, start=1):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(instance_at[z])
        dataset.InstanceNumber = index
        dataset.ImagePositionPatient = [-180, -180, round(z, 6)]
        dataset.SliceLocation = round(z, 6)
        path = folder / f"{index:06d}.dcm"
        dataset.save_as(path)
        with path.open("ab") as file:  # the pixel data's element, its value a hole of zeros
            file.write(struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, PIXEL_BYTES))
            file.truncate(file.tell() + PIXEL_BYTES)
    write_readings(folder / "readings.xml", identity, cluster_annotations(scan), instance_at)
    return len(scan.slice_z)


def write_scans(folder: Path, count: int) -> list[int]:
    """Write phantoms of ``count`` scans drawn from LIDC-IDRI's; the slices of each."""
    scans = load_scans()
    order = np.random.default_rng(0).permutation(len(scans))[:count]
    jobs = (delayed(write_scan)(folder / f"{n:04d}", n, scans[index]) for n, index in enumerate(order))
    return list(tqdm(Parallel(n_jobs=-1, return_as="generator")(jobs), "writing", total=count, unit="scan"))


def measure(root: Path, index_file: Path, workers: int) -> dict[str, Any]:
    """Build the dataset once, in this process."""
    start = time.perf_counter()
    nodules = load_nodules(root, index_file=index_file, num_workers=workers)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "nodules": len(nodules.nodules), "peak_memory_mb": usage.ru_maxrss / 1024}


def measure_elsewhere(root: Path, index_file: Path, workers: int) -> dict[str, Any]:
    """The same in a process of its own, as a user's run is, with the processor time of it and its workers."""
    command = [sys.executable, __file__, "--measure", str(root), str(index_file), str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        measured = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    measured["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    return measured


def run(scans: list[int], workers: list[int]) -> list[dict[str, Any]]:
    """A row for each number of scans and of workers."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ingest-scale-") as temporary:
        folder = Path(temporary)
        slices = write_scans(folder / "all", max(scans))
        for count in scans:
            root = folder / f"first {count}"
            root.mkdir()
            for name in sorted(path.name for path in (folder / "all").iterdir())[:count]:
                (root / name).symlink_to(folder / "all" / name)
            for number in workers:
                index_file = folder / f"{count}-{number}.jsonl"
                first, second = (measure_elsewhere(root, index_file, number) for _ in range(2))
                row = {
                    "scans": count,
                    "slices": sum(slices[:count]),
                    "workers": number,
                    "nodules": first["nodules"],
                    "first_s": round(first["seconds"], 2),
                    "second_s": round(second["seconds"], 2),
                    "first_cpu_s": round(first["cpu_seconds"], 2),
                    "second_cpu_s": round(second["cpu_seconds"], 2),
                    "peak_memory_mb": round(first["peak_memory_mb"]),
                    "index_mb": round(index_file.stat().st_size / 2**20, 2),
                }
                print(json.dumps(row), file=sys.stderr)
                rows.append(row)
    return rows


def extrapolate(rows: list[dict[str, Any]], key: str) -> float:
    """Seconds for all scans by a straight line through the smaller runs (least squares)."""
    smaller = [row for row in rows if row["scans"] < ALL_SCANS]
    slope, intercept = np.polyfit([row["scans"] for row in smaller], [row[key] for row in smaller], 1)
    return float(slope * ALL_SCANS + intercept)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Processor seconds against scans: unlike the clock's they hardly depend on what else the machine does."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for number in sorted({row["workers"] for row in rows}):
        own = [row for row in rows if row["workers"] == number]
        for key, style, label in (("first_cpu_s", "o-", "first run"), ("second_cpu_s", "s--", "again, headers kept")):
            name = f"{label}, {number} worker{'s' if number > 1 else ''}"
            axes.plot([row["scans"] for row in own], [row[key] for row in own], style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="phantom scans", ylabel="processor seconds")
    axes.set_title("Building the dataset: measured on phantom scans")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Write phantoms, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[10, 20, 40, 80], help="how many, up to 1018")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--figure", type=Path, help="draw the growth")
    parser.add_argument("--measure", nargs=3, metavar=("ROOT", "INDEX", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        root, index_file, workers = options.measure
        print(json.dumps(measure(Path(root), Path(index_file), int(workers))))
        return
    rows = run(sorted(options.scans), options.workers)
    report: dict[str, Any] = {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pydicom", "joblib", "numpy", "scipy")},
        "measured_on": "phantom scans",
        "rows": rows,
    }
    if sum(scans < ALL_SCANS for scans in options.scans) > 1:
        report["extrapolated_to_1018_scans_s"] = {
            f"{key}, {number} workers": round(extrapolate([row for row in rows if row["workers"] == number], key), 1)
            for number in options.workers
            for key in ("first_s", "second_s", "first_cpu_s", "second_cpu_s")
        }
    print(json.dumps(report, indent=4))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, report)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
