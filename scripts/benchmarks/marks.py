"""What the mark survives, and that nothing real carries it: the tables of docs/provenance.md.

python scripts/benchmarks/marks.py survive --generated DIR    # a set that inference wrote, as NIfTI too
python scripts/benchmarks/marks.py false_alarms --real FOLDER_OR_DATALIST ...
python scripts/benchmarks/marks.py distances --generated DIR --unmarked DIR --datalist FILE    # both to real ones
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
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
from nodule_plugin.provenance.detection import THRESHOLD, Detection, detect_all
from nodule_plugin.provenance.files import detect_file
from nodule_plugin.provenance.inversion import bundled_inversion
from nodule_plugin.provenance.parity_mark import GENERATED, detect_parity

HU = (("NIfTI", "nifti"), ("DICOM", "dicom"))
"""Formats, and their fields of a manifest."""
MODELS = Path(__file__).resolve().parents[2] / "bundle" / "models"
Use = Callable[[Image.Image, np.random.Generator], Image.Image]
"""A picture as inference wrote it -> what somebody made of it, in eight bits."""
QUALITY = {"JPEG 75": 75, "JPEG 50": 50}
"""Of the uses that end with a JPEG file; others end with PNG."""


def from_unit(unit: np.ndarray) -> Image.Image:
    """A picture of values in [-1, 1]."""
    return Image.fromarray(np.rint((np.clip(unit, -1, 1) + 1) * 127.5).astype(np.uint8))


def to_unit(picture: Image.Image) -> np.ndarray:
    """(rows, columns) in [-1, 1]."""
    return np.asarray(picture) / np.float32(127.5) - 1


def scaled(picture: Image.Image, factor: float, kernel: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """At another size."""
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), kernel)


def window(picture: Image.Image, low: float, high: float) -> Image.Image:
    """In another window, rounded to 8 bits again."""
    return from_unit(hu_to_unit(unit_to_hu(to_unit(picture)), (low, high)))


def cut(picture: Image.Image, draw: np.random.Generator, fraction: float = 0.8) -> Image.Image:
    """A square of a fraction of the side, anywhere."""
    side = int(fraction * picture.height)
    top, left = (int(at) for at in draw.integers(0, picture.height - side + 1, 2))
    return picture.crop((left, top, left + side, top + side))


def noise(picture: Image.Image, draw: np.random.Generator, hu: float) -> Image.Image:
    """White noise of that many HU."""
    unit = to_unit(picture)
    return from_unit(unit + draw.normal(0, hu / 700, unit.shape).astype(np.float32))


def turned(picture: Image.Image, degrees: float) -> Image.Image:
    """By an angle that no grid has."""
    return from_unit(rotate(to_unit(picture), degrees, reshape=False, mode="nearest"))


TURN = Image.Transpose
USES: dict[str, Use] = {
    "as PNG, 8 bits": lambda picture, _: picture,
    "JPEG 75": lambda picture, _: picture,
    "scaled by 0.5, bicubic": lambda picture, _: scaled(picture, 0.5),
    "scaled by 0.5, bilinear": lambda picture, _: scaled(picture, 0.5, Image.Resampling.BILINEAR),
    "scaled by 0.75": lambda picture, _: scaled(picture, 0.75),
    "scaled by 1.5": lambda picture, _: scaled(picture, 1.5),
    "scaled by 2": lambda picture, _: scaled(picture, 2),
    "cut to 80 %, anywhere": cut,
    "turned by 90 degrees": lambda picture, _: picture.transpose(TURN.ROTATE_90),
    "flipped": lambda picture, _: picture.transpose(TURN.FLIP_LEFT_RIGHT),
    "cut to 80 %, turned by 270 degrees and flipped": lambda picture, draw: (
        cut(picture, draw).transpose(TURN.ROTATE_270).transpose(TURN.FLIP_TOP_BOTTOM)
    ),
    "window -1350 to 150 HU": lambda picture, _: window(picture, -1350, 150),
    "window -1200 to 600 HU": lambda picture, _: window(picture, -1200, 600),
    "window -1000 to 1000 HU": lambda picture, _: window(picture, -1000, 1000),
    "window -160 to 240 HU, soft tissue": lambda picture, _: window(picture, -160, 240),
    "JPEG 50": lambda picture, _: picture,
    "cut to 80 %, then JPEG 75": cut,
    "scaled by 0.5, then JPEG 75": lambda picture, _: scaled(picture, 0.5),
    "white noise of 10 HU": lambda picture, draw: noise(picture, draw, 10),
    "blurred, sigma 1 pixel": lambda picture, _: from_unit(gaussian_filter(to_unit(picture), 1)),
    "turned by 5 degrees": lambda picture, _: turned(picture, 5),
    "cut to 80 %, enlarged to the old size": lambda picture, draw: cut(picture, draw).resize(
        picture.size, Image.Resampling.BICUBIC
    ),
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


def units_of(folder: Path, limit: int | None) -> list[np.ndarray]:
    """Images of a generated set in [-1, 1]."""
    generated = load_generated(folder)
    voxels = [np.asarray(read_voxels(Path(item["nifti"])), np.float32)[:, :, 0].T for item in generated.items[:limit]]
    return [hu_to_unit(hu, generated.window_hu) for hu in voxels]


def looked_at(path: Path, key: MarkKey = PUBLIC, parts: bool = True) -> Detection:
    """What ``nodule detect-mark`` says of a file."""
    return detect_file(path, bundled_inversion(MODELS), key, parts)


def used(picture: Image.Image, name: str, draw: np.random.Generator, folder: Path) -> Path:
    """The file that a use ends with."""
    quality = next((number for end, number in QUALITY.items() if name.endswith(end)), None)
    path = folder / ("used.png" if quality is None else "used.jpg")
    USES[name](picture, draw).save(path, quality=quality or 100)  # PNG asks for none
    return path


def formats_of(items: Sequence[Mapping[str, object]]) -> dict[str, list[Path]]:
    """The files with Hounsfield units that a set holds."""
    return {f"as {name}, whole HU": [Path(str(item[field])) for item in items if item.get(field)] for name, field in HU}


def survive(given: argparse.Namespace) -> dict[str, object]:
    """Put marked images to each use and look for the mark; and with keys that are not its own."""
    generated = load_generated(given.generated)
    if not (mark := (generated.manifest or {}).get("mark")):
        raise SystemExit(f"{given.generated}: give a set that inference wrote with its mark")
    items, payload = generated.items[: given.limit], mark["payload"]
    started = time.process_time()
    rows: dict[str, dict[str, float]] = {}
    for name, paths in formats_of(items).items():
        if paths:
            show(name, rows.setdefault(name, row([looked_at(path) for path in paths], payload)))
    with tempfile.TemporaryDirectory() as folder:
        for name in USES:
            draw = np.random.default_rng(0)
            files = (used(Image.open(item["image"]), name, draw, Path(folder)) for item in items)
            show(name, rows.setdefault(name, row([looked_at(file) for file in files], payload)))
    seconds = (time.process_time() - started) / len(items) / len(rows)
    others = [MarkKey(f"other {number}", bytes([number]) * 16) for number in range(given.other_keys)]
    foreign = [looked_at(Path(item["image"]), key, parts=False).log10_p for key in others for item in items]
    return {
        "images": len(items),
        "seconds_a_look": seconds,
        "uses": rows,
        "other_keys": {"looks": len(foreign), "found": int(np.sum(np.array(foreign) < THRESHOLD)), **_least(foreign)},
    }


def show(name: str, result: Mapping[str, float]) -> None:
    """A row of the table."""
    cells = (f"{result[part]:.1%}" for part in ("found", "payload_read", "payload_wrong"))
    print("|", name, "|", " | ".join(cells), "|", flush=True)


def _least(logarithms: Sequence[float]) -> dict[str, float]:
    return {"smallest_p": 10 ** min(logarithms)} if logarithms else {}


def false_alarms(given: argparse.Namespace) -> dict[str, object]:
    """Look for the public marks in real images: folders of pictures, or data lists cut by the project's chain."""
    results: dict[str, object] = {}
    for source in given.real:
        listed = source.suffix == ".json"
        splits = ["training", "validation", "test"]
        items = real_items(datalist=source, split=splits, drop_padded=False) if listed else real_items(source)
        load, items = LoadSetImaged((64, 64)), items[: given.limit]
        images = [load(item)["image"][0].numpy() for item in tqdm(items, desc="reading")]
        batches = [images[start : start + 64] for start in range(0, len(images), 64)]
        inversion = bundled_inversion(MODELS)
        noise = [one.log10_p for some in tqdm(batches, desc=source.name) for one in detect_all(some, inversion)]
        greys = [np.asarray(from_unit(image), np.float64)[None] for image in images]
        numbers = [detect_parity(grey, GENERATED, turned=True).log10_p for grey in tqdm(greys, desc="numbers")]
        logarithms = list(np.minimum(np.minimum(noise, numbers) + math.log10(2), 0))
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

    pictures = [np.asarray(Image.open(item["image"])) for item in load_generated(given.generated).items[: given.limit]]
    folders = {"marked": given.generated, "unmarked": given.unmarked}
    sets = {name: units_of(folder, given.limit) for name, folder in folders.items()}
    load = LoadSetImaged((64, 64))
    items = real_items(datalist=given.datalist, split=given.split)
    sets["real"] = [load(item)["image"][0].numpy() for item in items]
    sets = {name: [np.asarray(from_unit(unit)) for unit in units] for name, units in sets.items()}
    sets["marked, as PNG"] = pictures
    results: dict[str, object] = {"images": {name: len(images) for name, images in sets.items()}}
    for encoder in (ImageNetFeatures(), RadiomicFeatures()):
        features = {name: _features(encoder, images) for name, images in sets.items()}
        centre, spread = features["real"].mean(0), features["real"].std(0) + 1e-6
        if isinstance(encoder, RadiomicFeatures):
            features = {name: (values - centre) / spread for name, values in features.items()}
        pairs = [("real", name) for name in ("unmarked", "marked", "marked, as PNG")]
        pairs += [("unmarked", "marked"), ("marked", "marked, as PNG")]
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
