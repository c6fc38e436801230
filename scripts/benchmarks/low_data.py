"""What generated nodules add where real ones are few: nodule or none, on patches around LUNA16's candidates.

    python scripts/benchmarks/low_data.py --candidates DIR --datalist work/datalist.json --generated work/for_training \
        --output low_data.json

``--candidates`` is a folder with ``candidates.csv`` (image, nodule, part) and its patches; ``--generated`` what
inference wrote for the data list's training split. A logistic regression on features of a published network
(EfficientNet-Lite0) learns from a few real patches of each class, and from these and as many again as --added patches
without a nodule into which one was put: a generated region of interest, or the real one whose findings it was asked
for (copy and paste). Both come at the real nodule's size with the same soft edge into the same patches. Areas under the
ROC curve on the source's validation part; differences are paired, intervals over test patches and draws of the real
ones. Patients of the patches are not recorded: training and test may share some, which favours real patches.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.picture import read_picture
from nodule_plugin.data.transforms import nodule_transform, resized
from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.files import write_text_atomically
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.parallel import fit_threads

COUNTS = (25, 50, 100)
"""Real patches of each class."""
SPACING_MM = 0.7
"""Of the patches, which do not say it: LIDC-IDRI's median."""
PATCH = 50
"""Their side in pixels."""
EDGE = 0.25
"""Fraction of a region's half side over which it gives way to its host."""


def main() -> None:
    """Read, draw, learn, write."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--datalist", type=Path, required=True, help="of the nodules that the generator learnt from")
    parser.add_argument("--generated", type=Path, required=True, help="for its training split, at one guidance scale")
    parser.add_argument("--added", type=int, default=200, help="patches with a nodule put in")
    parser.add_argument("--draws", type=int, default=10, help="of the few real patches")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    fit_threads()
    result = study(given)
    write_text_atomically(given.output, json.dumps(result, indent=4) + "\n")
    print(json.dumps(result, indent=4))


def study(given: argparse.Namespace) -> dict[str, Any]:
    """Areas and paired differences by number of real patches."""
    parts = read_candidates(given.candidates)
    draw = np.random.default_rng(0)
    nodules, hosts = (shuffled(parts["training", nodule], draw) for nodule in (1, 0))
    few, at_most = given.draws * max(COUNTS), min(len(nodules), len(hosts) - given.added)
    if few > at_most:
        raise InputError(f"--draws: {given.draws} of {max(COUNTS)} patches are more than the {at_most} that there are")
    test = [*parts["validation", 1], *parts["validation", 0]]
    pairs = nodule_pairs(given.datalist, given.generated, given.added)
    put_in = {
        name: [paste(read_patch(host), pair[name], pair["side"]) for host, pair in zip(hosts[few:], pairs)]
        for name in ("generated", "copy and paste")
    }
    features = {
        "test": encode([read_patch(path) for path in test], "test"),
        "nodules": encode([read_patch(path) for path in nodules[:few]], "nodules"),
        "hosts": encode([read_patch(path) for path in hosts[:few]], "hosts"),
        **{name: encode(patches, name) for name, patches in put_in.items()},
    }
    truth = np.repeat([1, 0], [len(parts["validation", nodule]) for nodule in (1, 0)])
    scores = {count: scores_of(features, count, given.draws) for count in COUNTS}
    return {
        "test_patches": len(test),
        "added": len(pairs),
        "areas": {str(count): intervals(arms, truth, given.resamples) for count, arms in scores.items()},
    }


def shuffled(paths: Sequence[Path], draw: np.random.Generator) -> list[Path]:
    """All of them, in a random order."""
    return [paths[index] for index in draw.permutation(len(paths))]


def read_candidates(folder: Path) -> dict[tuple[str, int], list[Path]]:
    """Files of the patches by part and whether they show a nodule."""
    parts: dict[tuple[str, int], list[Path]] = {}
    with (folder / "candidates.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            parts.setdefault((row["part"], int(row["nodule"])), []).append(folder / row["image"])
    return parts


def read_patch(path: Path) -> np.ndarray:
    """(H, W) in [-1, 1] of the default window."""
    return np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 127.5 - 1


def nodule_pairs(datalist: Path, generated: Path, count: int) -> list[dict[str, Any]]:
    """A generated image and the real one whose findings it was asked for, and the side of both in pixels of a patch.

    Regions larger than a patch are left out.
    """
    listed = load_datalist(datalist, "training", drop_padded=True)
    items = {item["id"]: item for item in listed if item["roi_mm"] <= PATCH * SPACING_MM}
    made = {item["source_id"]: item for item in load_generated(generated).items if item["source_id"] in items}
    if len(made) < count:
        raise InputError(f"{generated}: images for {len(made)} training nodules, and {count} are needed")
    transform = nodule_transform(64)
    chosen = np.random.default_rng(1).permutation(sorted(made))[:count]
    return [
        {
            "generated": read_picture(made[name]["image"]) / 127.5 - 1,
            "copy and paste": np.asarray(transform(items[name])["image"][0]),
            "side": round(items[name]["roi_mm"] / SPACING_MM),
        }
        for name in chosen
    ]


def paste(host: np.ndarray, region: np.ndarray, side: int) -> np.ndarray:
    """A region of interest in the middle of a patch, at its size, giving way to the patch towards its edge."""
    small = resized(np.asarray(region, dtype=np.float32), (side, side))
    across = np.abs(np.linspace(-1, 1, side))
    weight = np.clip((1 - np.hypot(across[:, None], across)) / EDGE, 0, 1)
    top, left = ((length - side) // 2 for length in host.shape)
    patch = host.copy()
    place = patch[top : top + side, left : left + side]
    place += weight * (small - place)
    return patch


def encode(patches: Sequence[np.ndarray], name: str) -> np.ndarray:
    """(N, F) features of patches."""
    encoder = ImageNetFeatures()
    batches = range(0, len(patches), 8)
    stacked = (
        torch.from_numpy(np.stack(patches[start : start + 8]))[:, None].expand(-1, 3, -1, -1) for start in batches
    )
    return np.concatenate([encoder(batch).numpy() for batch in tqdm(stacked, name, total=len(batches), leave=False)])


def scores_of(features: Mapping[str, np.ndarray], count: int, draws: int) -> dict[str, np.ndarray]:
    """(draws, test patches) of each choice of training patches."""
    arms: dict[str, list[np.ndarray]] = {"real": [], "real and generated": [], "real and copy and paste": []}
    for draw in range(draws):
        drawn = slice(draw * max(COUNTS), draw * max(COUNTS) + count)
        for name, rows in arms.items():
            added = features.get(name.removeprefix("real and "), features["test"][:0])
            x = np.concatenate([features["nodules"][drawn], features["hosts"][drawn], added])
            y = np.repeat([1, 0, 1], [count, count, len(added)])
            rows.append(probe(x, y).decision_function(features["test"]))
    return {name: np.stack(rows) for name, rows in arms.items()}


def probe(x: np.ndarray, y: np.ndarray) -> Any:
    """A logistic regression whose penalty is chosen among its own training patches."""
    regression = LogisticRegressionCV(
        Cs=np.logspace(-5, 0, 6), cv=5, scoring="roc_auc", class_weight="balanced", max_iter=500
    )
    return make_pipeline(StandardScaler(), regression).fit(x, y)


def intervals(arms: Mapping[str, np.ndarray], truth: np.ndarray, resamples: int) -> dict[str, Any]:
    """Mean areas over the draws, and paired differences to real patches, with 95 % intervals."""
    generator = np.random.default_rng(2)
    draws = len(arms["real"])
    areas: dict[str, list[float]] = {name: [] for name in arms}
    for resample in range(resamples + 1):  # the first one is what was measured
        every = resample == 0
        patches = np.arange(len(truth)) if every else generator.integers(len(truth), size=len(truth))
        drawn = np.arange(draws) if every else generator.integers(draws, size=draws)
        for name, scores in arms.items():
            areas[name].append(float(np.mean([roc_auc_score(truth[patches], scores[row][patches]) for row in drawn])))
    rows = {name: np.array(values) for name, values in areas.items()}
    return {
        name: {"area": estimate(values), "difference": None if name == "real" else estimate(values - rows["real"])}
        for name, values in rows.items()
    }


def estimate(values: np.ndarray) -> list[float]:
    """The first value, and the 95 % interval of the others."""
    return [round(float(value), 4) for value in (values[0], *np.percentile(values[1:], [2.5, 97.5]))]


if __name__ == "__main__":
    main()
