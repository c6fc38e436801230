"""What the mark survives, and that nothing real carries it: the tables of docs/provenance.md.

python scripts/benchmarks/marks.py survive --generated DIR    # a set that inference wrote, as NIfTI too
python scripts/benchmarks/marks.py false_alarms --real FOLDER_OR_DATALIST ...
python scripts/benchmarks/marks.py distances --generated DIR --unmarked DIR --datalist FILE    # both to real ones
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate
from tqdm import tqdm

from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.nifti import read_voxels
from nodule_plugin.data.window import hu_to_unit, unit_to_hu
from nodule_plugin.files import write_json
from nodule_plugin.provenance.codebook import PUBLIC, MarkKey
from nodule_plugin.provenance.detection import THRESHOLD, Detection, detect, detect_all
from nodule_plugin.provenance.inversion import bundled_inversion

MODELS = Path(__file__).resolve().parents[2] / "bundle" / "models"
Use = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(rows, columns) in [-1, 1] as they were generated -> what a detector is given, in [-1, 1] or as 8 bits."""


def grey(unit: np.ndarray) -> np.ndarray:
    """As PNG stores it, uint8."""
    return np.rint((np.clip(unit, -1, 1) + 1) * 127.5).astype(np.uint8)


def jpeg(unit: np.ndarray, quality: int = 75) -> np.ndarray:
    """Through a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(grey(unit)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def scaled(unit: np.ndarray, factor: float, kernel: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """The 8-bit picture at another size."""
    size = tuple(round(side * factor) for side in unit.shape[::-1])
    return np.asarray(Image.fromarray(grey(unit)).resize(size, kernel))


def window(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    """The 8-bit picture in another window, rounded to 8 bits again."""
    hu = unit_to_hu(grey(unit) / np.float32(127.5) - 1)
    return grey(hu_to_unit(hu, (low, high)))


def cut(unit: np.ndarray, draw: np.random.Generator, fraction: float = 0.8) -> np.ndarray:
    """A square of a fraction of the side, anywhere."""
    side = int(fraction * unit.shape[0])
    top, left = draw.integers(0, unit.shape[0] - side + 1, 2)
    return unit[top : top + side, left : left + side]


def noise(unit: np.ndarray, draw: np.random.Generator, hu: float) -> np.ndarray:
    """White noise of that many HU."""
    return grey(unit + draw.normal(0, hu / 700, unit.shape).astype(np.float32))


def enlarged(unit: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Cut to 80 % and brought back to the size it had."""
    return np.asarray(Image.fromarray(grey(cut(unit, draw))).resize(unit.shape[::-1], Image.Resampling.BICUBIC))


USES: dict[str, Use] = {
    "as NIfTI and DICOM, whole HU": lambda unit, _: hu_to_unit(np.rint(unit_to_hu(unit))),
    "as PNG, 8 bits": lambda unit, _: grey(unit),
    "JPEG 75": lambda unit, _: jpeg(unit),
    "scaled by 0.5, bicubic": lambda unit, _: scaled(unit, 0.5),
    "scaled by 0.5, bilinear": lambda unit, _: scaled(unit, 0.5, Image.Resampling.BILINEAR),
    "scaled by 0.75": lambda unit, _: scaled(unit, 0.75),
    "scaled by 1.5": lambda unit, _: scaled(unit, 1.5),
    "scaled by 2": lambda unit, _: scaled(unit, 2),
    "cut to 80 %, anywhere": lambda unit, draw: grey(cut(unit, draw)),
    "turned by 90 degrees": lambda unit, _: np.rot90(grey(unit)),
    "flipped": lambda unit, _: np.fliplr(grey(unit)),
    "turned by 270 degrees, flipped, cut to 80 %": lambda unit, draw: np.flipud(np.rot90(grey(cut(unit, draw)), 3)),
    "window -1350 to 150 HU": lambda unit, _: window(unit, -1350, 150),
    "window -1200 to 600 HU": lambda unit, _: window(unit, -1200, 600),
    "window -1000 to 1000 HU": lambda unit, _: window(unit, -1000, 1000),
    "window -160 to 240 HU, soft tissue": lambda unit, _: window(unit, -160, 240),
    "JPEG 50": lambda unit, _: jpeg(unit, 50),
    "cut to 80 %, then JPEG 75": lambda unit, draw: jpeg(cut(unit, draw)),
    "scaled by 0.5, then JPEG 75": lambda unit, _: jpeg(scaled(unit, 0.5) / np.float32(127.5) - 1),
    "white noise of 10 HU": lambda unit, draw: noise(unit, draw, 10),
    "blurred, sigma 1 pixel": lambda unit, _: grey(gaussian_filter(unit, 1)),
    "turned by 5 degrees": lambda unit, _: grey(rotate(unit, 5, reshape=False, mode="nearest")),
    "cut to 80 %, enlarged to the old size": enlarged,
}


def row(found: Sequence[Detection], payload: str) -> dict[str, float]:
    """Fractions of images in which the mark is found, and is read right; the p-value's tenth from above."""
    logarithms = np.array([one.log10_p for one in found])
    marked = logarithms < THRESHOLD
    read = np.array([one.payload == payload for one in found])
    wrong = np.array([one.payload not in (payload, None) for one in found])
    return {
        "found": float(np.mean(marked)),
        "payload_read": float(np.mean(marked & read)),
        "payload_wrong": float(np.mean(marked & wrong)),
        "log10_p_median": float(np.median(logarithms)),
        "log10_p_largest": float(logarithms.max()),
    }


def units_of(folder: Path, limit: int | None) -> tuple[list[np.ndarray], str | None]:
    """Images of a generated set in [-1, 1], and the payload of their mark; None for unmarked ones."""
    generated = load_generated(folder)
    mark = (generated.manifest or {}).get("mark")
    units = []
    for item in generated.items[:limit]:
        hu = np.asarray(read_voxels(Path(item["nifti"])), np.float32)[:, :, 0].T
        units.append(hu_to_unit(hu, generated.window_hu))
    return units, mark and mark["payload"]


def looked_at(image: np.ndarray, key: MarkKey = PUBLIC, parts: bool = True) -> Detection:
    """The detector with the bundle's model on an image in [-1, 1] or of 8 bits."""
    unit = image / np.float32(127.5) - 1 if image.dtype == np.uint8 else image
    return detect(unit, bundled_inversion(MODELS), key, parts)


def survive(given: argparse.Namespace) -> dict[str, object]:
    """Put marked images to each use and look for the mark; and with keys that are not its own."""
    units, payload = units_of(given.generated, given.limit)
    if payload is None:
        raise SystemExit(f"{given.generated}: give a set that inference wrote with its mark")
    started = time.process_time()
    rows = {}
    for name, use in USES.items():
        draw = np.random.default_rng(0)
        rows[name] = row([looked_at(use(one, draw)) for one in units], payload)
        print(
            "|",
            name,
            *(f"| {rows[name][part]:.1%}" for part in ("found", "payload_read", "payload_wrong")),
            "|",
            flush=True,
        )
    seconds = (time.process_time() - started) / len(units) / len(USES)
    others = [MarkKey(f"other {number}", bytes([number]) * 16) for number in range(given.other_keys)]
    foreign = [looked_at(grey(one), key, parts=False).log10_p for key in others for one in units]
    return {
        "images": len(units),
        "size": list(units[0].shape),
        "seconds_a_look": seconds,
        "uses": rows,
        "other_keys": {"looks": len(foreign), "found": int(np.sum(np.array(foreign) < THRESHOLD)), **_least(foreign)},
    }


def _least(logarithms: Sequence[float]) -> dict[str, float]:
    return {"smallest_p": 10 ** min(logarithms)}


def false_alarms(given: argparse.Namespace) -> dict[str, object]:
    """Look for the public mark in real images: folders of pictures, or data lists cut by the project's chain."""
    results: dict[str, object] = {}
    for source in given.real:
        listed = source.suffix == ".json"
        splits = ["training", "validation", "test"]
        items = real_items(datalist=source, split=splits, drop_padded=False) if listed else real_items(source)
        load, items = LoadSetImaged((64, 64)), items[: given.limit]
        images = [load(item)["image"][0].numpy() for item in tqdm(items, desc="reading")]
        batches = [images[start : start + 64] for start in range(0, len(images), 64)]
        inversion = bundled_inversion(MODELS)
        logarithms = [one.log10_p for some in tqdm(batches, desc=source.name) for one in detect_all(some, inversion)]
        alarms = int(np.sum(np.array(logarithms) < THRESHOLD))
        below = {f"p below {level}": int(np.sum(np.array(logarithms) < math.log10(level))) for level in (0.05, 0.001)}
        results[source.name] = {"images": len(logarithms), "found": alarms, **below, **_least(logarithms)}
        print(json.dumps(results[source.name]), flush=True)
    return results


def distances(given: argparse.Namespace) -> dict[str, object]:
    """Kernel distances of marked and unmarked images to real ones, and to each other, with standard errors."""
    from nodule_plugin.metrics.imagenet import ImageNetFeatures
    from nodule_plugin.metrics.kernel import kernel_error, squared_mmd
    from nodule_plugin.metrics.radiomics import RadiomicFeatures

    sets = {
        name: units_of(folder, given.limit)[0]
        for name, folder in (("marked", given.generated), ("unmarked", given.unmarked))
    }
    load = LoadSetImaged((64, 64))
    items = real_items(datalist=given.datalist, split=given.split)
    sets["real"] = [load(item)["image"][0].numpy() for item in items]
    sets = {name: [grey(unit) for unit in units] for name, units in sets.items()}
    results: dict[str, object] = {"images": {name: len(images) for name, images in sets.items()}}
    for encoder in (ImageNetFeatures(), RadiomicFeatures()):
        features = {name: _features(encoder, images) for name, images in sets.items()}
        centre, spread = features["real"].mean(0), features["real"].std(0) + 1e-6
        if isinstance(encoder, RadiomicFeatures):
            features = {name: (values - centre) / spread for name, values in features.items()}
        pairs = (("real", "unmarked"), ("real", "marked"), ("unmarked", "marked"))
        results[encoder.id] = {
            f"{a} and {b}": {
                "squared_mmd": squared_mmd(features[a], features[b]),
                "standard_error": kernel_error(features[a], features[b]),
            }
            for a, b in pairs
        }
    return results


def _features(encoder: Callable[[torch.Tensor], torch.Tensor], images: Sequence[np.ndarray]) -> np.ndarray:
    batches = [images[at : at + 32] for at in range(0, len(images), 32)]
    stacked = [torch.from_numpy(np.stack(batch) / np.float32(127.5) - 1)[:, None] for batch in batches]
    return torch.cat([encoder(batch.expand(-1, 3, -1, -1).contiguous()).cpu() for batch in stacked]).double().numpy()


COMMANDS: Mapping[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "survive": survive,
    "false_alarms": false_alarms,
    "distances": distances,
}


def main() -> None:
    """Run one of the commands and write its results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--generated", type=Path, metavar="DIR")
    parser.add_argument("--real", type=Path, nargs="+", metavar="FOLDER_OR_DATALIST")
    parser.add_argument("--datalist", type=Path, metavar="FILE")
    parser.add_argument("--split", nargs="+", default=["validation", "test"], help="of the datalist's real images")
    parser.add_argument("--limit", type=int, help="images of each set")
    parser.add_argument("--unmarked", type=Path, metavar="DIR", help="the same requests without the mark")
    parser.add_argument("--other-keys", type=int, default=40)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = COMMANDS[given.command](given)
    write_json(given.output, results)


if __name__ == "__main__":
    main()
