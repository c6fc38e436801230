"""Can a painted nodule be told from the real one, and does it follow its findings? Numbers, and a picture for yourself.

    python scripts/benchmarks/inpainting.py --datalist work/datalist.json --inpainter work/models/inpainter \
        --output inpainting.json [--picture inpainting.png] [--limit 40]

The nodules of patients that no model has seen (validation and test) are painted again on the model's own grid: with
their own mask, size and prompt, into their own surroundings. Beside it, in the same surroundings: the training nodule
nearest in size, pasted with what is within the painted region; and the sketch alone, from which the model paints the
difference. These end in a hard edge; with a *soft edge* they are blended as an insertion is, in full up to 1 mm around
the nodule and in part up to 2.5 mm. What shows through there is next to the real nodule, where an insertion has healthy
lung. Judge: ImageNet EfficientNet-Lite0 on the slice in which the nodule is largest.

- Can it be told: a logistic regression on the features, real against painted, learnt and tried on different patients
  (five folds); area under the ROC curve, interval by patient. Real against real is the halves of the patients.
- Distance: squared MMD with the cubic kernel (KID's) to training nodules.
- Findings: mean grey value in the mask's core by the texture asked for, and its correlation with the real nodule's.

The picture shows real patients' pixels: keep it where the crops may be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.window import hu_to_unit, unit_to_hu
from nodule_plugin.errors import show_input_errors
from nodule_plugin.files import write_json
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.items import GridDataset
from nodule_plugin.insertion.place import sample_weight
from nodule_plugin.insertion.sketch import sketch_nodule
from nodule_plugin.insertion.sources import Asked
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.metrics.kernel import kernel_error, squared_mmd
from nodule_plugin.parallel import fit_threads

SHOWN_HU = (-1000, 400)
CORE = 0.9
"""Fraction of a voxel from which it lies in the nodule's core."""
Sample = dict[str, Any]


def main() -> None:
    """Paint, judge, write."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="of crops with masks")
    parser.add_argument("--inpainter", type=Path, required=True)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--split", nargs="+", default=["validation", "test"], help="whose nodules are painted again")
    parser.add_argument("--limit", type=int, help="nodules at most")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    fit_threads()
    inpainter = NoduleInpainter.from_folder(given.inpainter)
    window_hu = inpainter.grid.window_hu
    learnt = GridDataset(load_datalist(given.datalist, "training"), inpainter.grid, augment=False)
    training = [learnt[index] for index in range(len(learnt))]
    items = [item for split in given.split for item in load_datalist(given.datalist, split)]
    unseen = GridDataset(items, inpainter.grid, augment=False)
    chosen = range(len(unseen))[: given.limit]
    samples = [unseen[index] for index in chosen]
    patients = np.array([unseen.data[index].item["patient_id"] for index in chosen])
    findings = [unseen.data[index].item["findings"] for index in chosen]

    def paint(index: int) -> Tensor:
        sample = samples[index]
        asked = Asked(sample["prompt"], sample["diameter_mm"], given.guidance_scale, given.steps, index)
        return inpainter(hounsfield(sample, window_hu), sample["nodule"], asked)

    volumes: dict[str, list[Tensor]] = {
        "real": [hounsfield(sample, window_hu) for sample in samples],
        "painted": [paint(index) for index in tqdm(range(len(samples)), desc="painting")],
        "copy-paste": [pasted(sample, training, window_hu) for sample in samples],
        "sketch": [sketched(sample, window_hu, inpainter.vae.config.sketch) for sample in samples],
    }
    for name in ("painted", "copy-paste"):
        volumes[f"{name}, soft edge"] = [
            softened(hu, real, sample, inpainter.grid.spacing_mm)
            for hu, real, sample in zip(volumes[name], volumes["real"], samples)
        ]
    judge = ImageNetFeatures()
    features = {name: judge(slices(hu, samples)).double().numpy() for name, hu in volumes.items()}
    known = judge(slices([hounsfield(sample, window_hu) for sample in training], training)).double().numpy()
    result = {
        "nodules": len(samples),
        "patients": len(set(patients)),
        "guidance_scale": given.guidance_scale,
        "steps": given.steps,
        "told_apart": {
            "real against real": told_halves(features["real"], patients),
            **{name: told_apart(features["real"], rows, patients) for name, rows in features.items() if name != "real"},
        },
        "distance_to_training": {name: distance(known, rows) for name, rows in features.items()},
        "findings": {name: follows(hu, volumes["real"], samples, findings) for name, hu in volumes.items()},
    }
    write_json(given.output, result, indent=1)
    print(json.dumps(result, indent=1))
    if given.picture:
        draw(volumes, samples, given.picture)


def hounsfield(sample: Sample, window_hu: tuple[float, float]) -> Tensor:
    """(D, H, W) of a sample."""
    return torch.from_numpy(unit_to_hu(sample["image"].numpy(), window_hu)).float()


def pasted(sample: Sample, training: Sequence[Sample], window_hu: tuple[float, float]) -> Tensor:
    """The surroundings with the training nodule that is nearest in size, and what is within its region."""
    nearest = min(training, key=lambda other: abs(other["diameter_mm"] - sample["diameter_mm"]))
    hu, region = hounsfield(sample, window_hu), nearest["region"] & sample["known"]
    hu[region] = hounsfield(nearest, window_hu)[region]
    return hu


def softened(made: Tensor, real: Tensor, sample: Sample, spacing_mm: tuple[float, float, float]) -> Tensor:
    """What was made, brought into its surroundings with the soft edge of an insertion."""
    return real + torch.from_numpy(sample_weight(sample["nodule"].numpy(), spacing_mm)) * (made - real)


def sketched(sample: Sample, window_hu: tuple[float, float], inside: float) -> Tensor:
    """The surroundings with what the model sketches a nodule with."""
    image, nodule, region, known = (sample[name][None] for name in ("image", "nodule", "region", "known"))
    sketch = sketch_nodule(image * (known & ~region), nodule, region & known, known, inside)
    return torch.from_numpy(unit_to_hu(torch.where(region, sketch, image)[0].numpy(), window_hu)).float()


def largest(sample: Sample) -> int:
    """The slice that holds most of the nodule."""
    return int(sample["nodule"].sum((1, 2)).argmax())


def slices(volumes: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    """(N, 3, H, W) in [-1, 1], the nodules' largest slices."""
    planes = [hu_to_unit(hu[largest(sample)].numpy(), SHOWN_HU) for hu, sample in zip(volumes, samples)]
    return torch.from_numpy(np.stack(planes))[:, None].expand(-1, 3, -1, -1)


def told_apart(real: np.ndarray, made: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """The area under the ROC curve of a classifier that never saw the patient."""
    return area(np.concatenate([real, made]), np.repeat([0, 1], [len(real), len(made)]), np.tile(patients, 2))


def told_halves(real: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """The same for real nodules alone: two random halves of the patients."""
    names = np.random.default_rng(0).permutation(np.unique(patients))
    return area(real, np.isin(patients, names[: len(names) // 2]).astype(int), patients)


def area(rows: np.ndarray, labels: np.ndarray, patients: np.ndarray, resamples: int = 1000) -> dict[str, Any]:
    """Out-of-fold area with the 95 % interval of resampled patients."""
    scores = np.zeros(len(rows))
    for learn, test in GroupKFold(5).split(rows, labels, patients):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=2000))
        classifier.fit(rows[learn], labels[learn])
        scores[test] = classifier.decision_function(rows[test])
    members = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    generator = np.random.default_rng(0)

    def resampled() -> float:
        drawn = np.concatenate([members[index] for index in generator.integers(len(members), size=len(members))])
        return roc_auc_score(labels[drawn], scores[drawn]) if len(set(labels[drawn])) == 2 else float("nan")

    interval = np.nanpercentile([resampled() for _ in range(resamples)], [2.5, 97.5])
    return {"area": float(roc_auc_score(labels, scores)), "interval": interval.tolist()}


def distance(known: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """To training nodules, with its standard error."""
    return {"value": squared_mmd(known, rows), "error": kernel_error(known, rows)}


def follows(
    volumes: Sequence[Tensor], real: Sequence[Tensor], samples: Sequence[Sample], findings: Sequence[dict[str, int]]
) -> dict[str, Any]:
    """Grey values in the nodules' cores, by texture and beside the real nodules'."""
    values, own = (
        np.array([float(hu[sample["nodule"] > CORE].mean()) for hu, sample in zip(them, samples)])
        for them in (volumes, real)
    )
    has_core, textures = np.isfinite(values) & np.isfinite(own), np.array([one["texture"] for one in findings])
    return {
        "mean_hu_by_texture": {
            int(texture): float(values[has_core & (textures == texture)].mean())
            for texture in np.unique(textures[has_core])
        },
        "rank_correlation_with_texture": float(spearmanr(textures[has_core], values[has_core]).statistic),
        "correlation_with_real": float(np.corrcoef(values[has_core], own[has_core])[0, 1]),
        "mean_difference_hu": float((values - own)[has_core].mean()),
        "mean_absolute_difference_hu": float(np.abs(values - own)[has_core].mean()),
    }


def draw(volumes: dict[str, list[Tensor]], samples: Sequence[Sample], file: Path, shown: int = 24) -> None:
    """Rows of the largest slice and the next: real, painted, copy-paste, sketch; two nodules a row."""

    def tile(hu: Tensor, sample: Sample) -> np.ndarray:
        middle = largest(sample)
        planes = [hu[at].numpy() for at in (middle, min(middle + 1, len(hu) - 1))]
        return np.concatenate([np.pad((hu_to_unit(plane, SHOWN_HU) + 1) / 2, 1) for plane in planes], 1)

    rows = [
        np.concatenate([tile(hu[index], samples[index]) for hu in volumes.values()], 1)
        for index in range(min(shown, len(samples)))
    ]
    half = len(rows) // 2
    picture = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half : 2 * half])], 1)
    image = Image.fromarray((picture * 255).astype(np.uint8))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC).save(file)


if __name__ == "__main__":
    main()
