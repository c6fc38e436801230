"""What inserted nodules add where real ones are few: nodule or none, on patches around LUNA16's candidates.

    python scripts/benchmarks/low_data.py --candidates DIR --datalist work/datalist.json \
        --inpainter bundle/models/inpainter --output low_data.json

``--candidates`` is a folder with ``candidates.csv`` (image, candidate_index, nodule) and 50 x 50 patches: slices at the
scan's own pixels. A classifier (a logistic regression on features of a published network, EfficientNet-Lite0) learns
from patches without a nodule and 25, 50, 100 or all real ones with one; and from these and --added further patches of
lung into which one was put. Either the inpainting model painted it, or the real one was pasted: the same training
nodules, masks and places, the same soft edge, the same JPEG.

As LUNA16 does, scans are divided into parts; each part is scored by a classifier that learnt from the others, and the
scores are judged together. Scans are not named, but LUNA16 lists candidates scan by scan, so a part is a stretch of the
list. Nodules that the crops of --datalist hold are not tested: whoever painted or pasted has seen them.

"Per scan": the patches without a nodule are about 1 % of those that LUNA16 lists for 888 scans; they count as the
false positives of as many scans as have so many. Intervals: stretches of the list as long as a mean scan are resampled,
and the draws of real nodules; differences are paired.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from froc import RATES, froc_curve, sensitivities
from insertion import GUIDANCE_SCALE, STEPS
from luna16 import PARTS, SHOWN_HU, Candidates, middle_place, patch_host, read_candidates
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.window import hu_to_unit, unit_to_hu
from nodule_plugin.errors import show_input_errors
from nodule_plugin.files import write_json
from nodule_plugin.insertion.blending import insert
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.items import GridDataset
from nodule_plugin.insertion.place import Lesion
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.parallel import fit_threads

COUNTS: tuple[int | None, ...] = (25, 50, 100, None)
"""Real nodules; None for all."""
ARMS = ("real", "painted", "pasted")
LUNG_HU = -600
"""Where the median of a host's 20 x 20 pixels in the middle lies below, it is lung."""
SAME = 0.97
"""Correlation of 20 x 20 pixels from which two pictures show the same nodule: of a crop's best match 443 of 587 lie
above 0.99, 11 from here to there; those of other nodules lie around 0.9."""


def main() -> None:
    """Read, put in, learn, write."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--datalist", type=Path, required=True, help="of crops with masks; its training split is used")
    parser.add_argument("--inpainter", type=Path, required=True)
    parser.add_argument("--added", type=int, default=400, help="patches with a nodule put in, at most")
    parser.add_argument("--none", type=int, default=1600, help="patches without a nodule that a classifier sees")
    parser.add_argument("--repeats", type=int, default=3, help="draws of real nodules")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    fit_threads()
    result = study(given)
    write_json(given.output, result, indent=1)
    print(json.dumps(result, indent=1))


def study(given: argparse.Namespace) -> dict[str, Any]:
    """Areas, sensitivities and paired differences by number of real nodules."""
    candidates = read_candidates(given.candidates)
    inpainter = NoduleInpainter.from_folder(given.inpainter)
    learnt = GridDataset(load_datalist(given.datalist, "training"), inpainter.grid, augment=False)
    tested = ~candidates.nodule
    tested[candidates.nodule] = ~shown(learnt, candidates.pixels[candidates.nodule])
    hosts, put_in = inserted(candidates, learnt, inpainter, given.added)
    inputs = {name: encode(patches) for name, patches in {"candidates": candidates.pixels, **put_in}.items()}
    result: dict[str, Any] = {
        "nodules_tested": int((tested & candidates.nodule).sum()),
        "none_tested": int((~candidates.nodule).sum()),
        "worth_scans": candidates.worth_scans,
        "put_in": len(hosts),
        "real_nodules": {},
    }
    for count in COUNTS:
        repeats = 1 if count is None else given.repeats
        scores = scores_of(candidates, inputs, hosts, count, repeats, given.none)
        found = intervals(scores, candidates, tested, given.resamples)
        result["real_nodules"][str(count or "all")] = found
        print(count or "all", json.dumps(found), flush=True)
    return result


def shown(learnt: GridDataset, pixels: np.ndarray, side: int = 20, off: int = 10) -> np.ndarray:
    """(N,) bool: patches that show a crop's nodule, by the correlation of native pixels around it."""
    middle = slice(off // 2, pixels.shape[1] - off // 2)
    patches = torch.from_numpy(pixels[:, None, middle, middle])
    mean = torch.conv2d(patches, torch.full((1, 1, side, side), side**-2.0))
    square = torch.conv2d(patches**2, torch.full((1, 1, side, side), side**-2.0))
    deviation = (square - mean**2).clamp(min=1e-6).sqrt()
    best = torch.zeros(len(patches))
    for crop in tqdm(learnt.data, desc="same nodules"):
        z, y, x = (round(centre) for centre in crop.centre)
        top, left = y - side // 2, x - side // 2
        slices = unit_to_hu(crop.unit[max(z - 3, 0) : z + 4], learnt.grid.window_hu)
        small = np.clip(hu_to_unit(slices, SHOWN_HU), -1, 1)[
            :, None, max(top, 0) : top + side, max(left, 0) : left + side
        ]
        if small.shape[2:] != (side, side):
            continue
        kernels = torch.from_numpy(small - small.mean((2, 3), keepdims=True)).float()
        kernels /= kernels.pow(2).mean((2, 3), keepdim=True).sqrt().clamp(min=1e-3)
        found = torch.conv2d(patches, kernels) / side**2 / deviation
        best = torch.maximum(best, found.flatten(1).max(1).values)
    return (best >= SAME).numpy()


def inserted(
    candidates: Candidates, learnt: GridDataset, inpainter: NoduleInpainter, count: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Indices of the hosts, patches without a nodule, and (count, 50, 50) for each way to put one in."""
    draw = np.random.default_rng(1)
    chosen = draw.permutation(len(learnt))[:count]
    centre = candidates.pixels.shape[1] // 2
    middle = candidates.pixels[:, centre - 10 : centre + 10, centre - 10 : centre + 10]
    lung = np.median(middle, axis=(1, 2)) < hu_to_unit(np.array(LUNG_HU), SHOWN_HU)
    hosts = draw.choice(np.flatnonzero(~candidates.nodule & lung), len(chosen), replace=False)
    put_in: dict[str, list[np.ndarray]] = {"painted": [], "pasted": []}
    for index, at in zip(tqdm(chosen, desc="inserting"), hosts):
        sample = learnt[int(index)]
        for name in put_in:
            source = inpainter if name == "painted" else paste(sample, inpainter)
            put_in[name].append(as_jpeg(put(candidates.pixels[at], sample, source, inpainter), candidates.tables))
    return hosts, {name: np.stack(patches) for name, patches in put_in.items()}


def put(patch: np.ndarray, sample: Mapping[str, Any], source: Any, inpainter: NoduleInpainter) -> np.ndarray:
    """A patch with a training nodule's mask painted or pasted in its middle, its largest slice."""
    host = patch_host(unit_to_hu(patch, SHOWN_HU))
    lesion = Lesion(sample["id"], None, sample["diameter_mm"], sample["prompt"], None)
    place = middle_place(host, lesion, sample["seed"], inpainter, lambda _: sample["nodule"].numpy())
    hu = host.hu.copy()
    insert(hu, place, host, source, GUIDANCE_SCALE, STEPS)
    return hu_to_unit(hu[place.box[0].start + int(place.mask.sum((1, 2)).argmax())], SHOWN_HU)


def paste(sample: Mapping[str, Any], inpainter: NoduleInpainter) -> Any:
    """A source that lays a training nodule, and what is within its region, over the host."""
    nodule = torch.from_numpy(unit_to_hu(sample["image"].numpy(), inpainter.grid.window_hu)).float()
    return lambda host_hu, *_: torch.where(sample["region"], nodule, host_hu)


def as_jpeg(patch: np.ndarray, tables: Any) -> np.ndarray:
    """What is left of a patch after the compression that the real ones went through."""
    stored = io.BytesIO()
    picture = Image.fromarray(np.rint((np.clip(patch, -1, 1) + 1) * 127.5).astype(np.uint8))
    picture.save(stored, "jpeg", qtables=tables)
    return np.asarray(Image.open(stored), dtype=np.float32) / 127.5 - 1


def encode(patches: np.ndarray) -> np.ndarray:
    """(N, F) features of patches."""
    encoder = ImageNetFeatures()
    batches = torch.from_numpy(patches)[:, None].expand(-1, 3, -1, -1).split(16)
    return np.concatenate([encoder(batch).numpy() for batch in tqdm(batches, "features", leave=False)])


def probe(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of a logistic regression whose penalty is chosen among its own training patches."""
    as_of_1_10 = {"l1_ratios": (0.0,), "use_legacy_attributes": False}  # scikit-learn's defaults then, said now
    regression = LogisticRegressionCV(
        Cs=[1e-5, 1e-4, 1e-3, 1e-2], cv=3, scoring="roc_auc", class_weight="balanced", max_iter=200, **as_of_1_10
    )
    return make_pipeline(StandardScaler(), regression).fit(x, y).decision_function(test)


def scores_of(
    candidates: Candidates,
    inputs: Mapping[str, np.ndarray],
    hosts: np.ndarray,
    count: int | None,
    repeats: int,
    none: int,
) -> dict[str, np.ndarray]:
    """(repeats, N) of each choice of training patches, each part's by a classifier that saw none of it."""
    scores = {name: np.zeros((repeats, len(candidates.nodule))) for name in ARMS}
    for part in tqdm(range(PARTS), desc=f"{count or 'all'} real nodules"):
        test, draw = candidates.part == part, np.random.default_rng(part)
        without = draw.permutation(np.flatnonzero(~candidates.nodule & ~test))[:none]
        usable = candidates.part[hosts] != part
        for repeat in range(repeats):
            few = draw.permutation(np.flatnonzero(candidates.nodule & ~test))[:count]
            for name in ARMS:
                more = inputs["painted"][:0] if name == "real" else inputs[name][usable]
                x = np.concatenate([inputs["candidates"][few], more, inputs["candidates"][without]])
                y = np.repeat([1, 0], [len(few) + len(more), len(without)])
                scores[name][repeat, test] = probe(x, y, inputs["candidates"][test])
    return scores


def intervals(
    arms: Mapping[str, np.ndarray], candidates: Candidates, tested: np.ndarray, resamples: int
) -> dict[str, Any]:
    """Means over the draws, and paired differences to real patches, with 95 % intervals."""
    generator = np.random.default_rng(2)
    stretch = candidates.stretch[tested]
    members = [np.flatnonzero(stretch == one) for one in np.unique(stretch)]
    truth, scans = candidates.nodule[tested], candidates.worth_scans
    rows: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for resample in range(resamples + 1):  # the first one is what was measured
        chosen = generator.integers(len(members), size=len(members)) if resample else range(len(members))
        patches = np.concatenate([members[index] for index in chosen])
        repeats = len(arms["real"])
        drawn = generator.integers(repeats, size=repeats) if resample else range(repeats)
        for name, scores in arms.items():
            judged = [judge(truth[patches], scores[repeat, tested][patches], scans) for repeat in drawn]
            rows[name].append(np.mean(judged, axis=0))
    values = {name: np.stack(many) for name, many in rows.items()}
    return {
        name: {"value": estimate(many), "difference": None if name == "real" else estimate(many - values["real"])}
        for name, many in values.items()
    }


def judge(truth: np.ndarray, scores: np.ndarray, scans: float) -> np.ndarray:
    """The area under the ROC curve, the sensitivities at :data:`RATES`, and their mean (CPM)."""
    found = sensitivities(froc_curve(truth, scores, scans))
    return np.array([roc_auc_score(truth, scores), *found, found.mean()])


def estimate(values: np.ndarray) -> dict[str, list[float]]:
    """The first row, and the 95 % interval of the others, by name."""
    names = ["area", *(f"sensitivity at {rate:g}" for rate in RATES), "CPM"]
    rows = np.stack([values[0], *np.percentile(values[1:], [2.5, 97.5], axis=0)], axis=1).round(4)
    return dict(zip(names, rows.tolist()))


if __name__ == "__main__":
    main()
