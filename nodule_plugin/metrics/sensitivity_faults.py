"""Known ways of making a set of images worse, step by step: what a measure can see is found by trying.

A fault acts on single images (blur, another cut) or on a set (findings exchanged, modes dropped). Every image has its
own random numbers, the same at all steps: a step more is the same fault, stronger.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate
from scipy.signal import wiener

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.data.orientation import SHOWN
from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.transforms import NoduleROId, read_slice, resample_roi
from nodule_plugin.data.window import hu_to_unit, unit_to_hu

DISTANCE, FINDINGS, COPIES, DIVERSITY, NOISE = "distance", "findings", "copies", "diversity", "noise"
"""What a user asks of a generated set: is it near real images, does it follow its findings, are there copies in it, is
it as varied, has it the noise of CT?"""
ROI_DIAMETERS = 2.0
"""Side of a region of interest as the data list has it, in diameters of its nodule."""
KERNELS = {1.0: Image.Resampling.BILINEAR, 0.0: Image.Resampling.NEAREST}
"""By the order of their polynomials; the chain's own cubic one has 3."""
ROTATION_MARGIN = 0.1
"""Of a side, cut around what is turned: 10 degrees need 0.08."""


@dataclass(frozen=True)
class Bench:
    """What the faults of one image need besides it.

    Attributes:
        item: of the data list, or the file that the image came from.
        draw: the image's own random numbers.
        chain: that cut the image.
        vae: the autoencoder whose reconstruction is a fault; None: there is none.
    """

    item: Mapping[str, Any]
    draw: np.random.Generator
    chain: NoduleROId
    vae: AutoencoderKL | None = None


OnImage = Callable[[np.ndarray, float, Bench], np.ndarray]
"""(H, W) in [-1, 1], step -> (H, W), which may leave [-1, 1]."""
OnSet = Callable[[ImageSet, float, ImageSet | None, np.random.Generator], ImageSet]
"""Images, step, training images -> worse images; at step 0 what they are compared with."""


@dataclass(frozen=True)
class Fault:
    """One way of making images worse.

    Attributes:
        key: stable name for machines.
        name: for readers.
        question: which of a user's questions it bears on.
        unit: of the steps.
        steps: from mild to strong.
        on_image, on_set: what it does; one of the two.
        needs: what it cannot do without: "datalist" (the image is cut anew), "vae", "prompts", "malignancy" or
            "training" images.
    """

    key: str
    name: str
    question: str
    unit: str
    steps: tuple[float, ...]
    on_image: OnImage | None = None
    on_set: OnSet | None = None
    needs: str | None = None

    def describe(self) -> dict[str, Any]:
        """As sensitivity.json holds it."""
        return {name: getattr(self, name) for name in ("key", "name", "question", "unit")} | {"steps": list(self.steps)}


def in_hu(change: Callable[[np.ndarray, float, Bench], np.ndarray]) -> OnImage:
    """A fault of Hounsfield units as one of grey values."""

    def on_image(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
        window = bench.chain.window_hu
        return hu_to_unit(change(unit_to_hu(image, window).astype(np.float64), step, bench), window)

    return on_image


def _sharpen(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    return image + step * (image - gaussian_filter(image, 1.0))


def _jpeg(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    grey = Image.fromarray(np.uint8(np.rint((image.clip(-1, 1) + 1) * 127.5)))
    file = io.BytesIO()
    grey.save(file, "JPEG", quality=int(step))
    return np.asarray(Image.open(file), np.float32) / 127.5 - 1


def _occlude(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    """A square of air, its middle the same at all steps."""
    worse, half = image.copy(), step * np.array(image.shape) / 2
    middle = bench.draw.uniform(0.25, 0.75, 2) * image.shape
    (top, left), (bottom, right) = (np.rint(middle + sign * half).astype(int).clip(0) for sign in (-1, 1))
    worse[top:bottom, left:right] = -1
    return worse


def _region(bench: Bench) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The item's slice, and where its region lies in it."""
    item = bench.item
    hu = read_slice(Path(item["image"]), item["slice_index"], item.get("axes", SHOWN))
    return hu, roi_bounds(tuple(item["centre"]), tuple(item["spacing"]), item["roi_mm"])


def _other_kernel(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    hu, bounds = _region(bench)
    return resample_roi(hu, bounds, bench.chain.image_size, bench.chain.window_hu, KERNELS[step])


def _smaller_roi(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    narrow = dict(bench.item) | {"roi_mm": bench.item["roi_mm"] * step / ROI_DIAMETERS}
    return np.asarray(bench.chain(narrow)["image"][0])


def _rotate(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    """Cut with a margin, turned, the margin cut off: nothing is invented at the border.

    Where the slice does not reach that far the image stays as it is.
    """
    hu, (top, bottom, left, right) = _region(bench)
    (rows, columns), margin = image.shape, int(np.ceil(ROTATION_MARGIN * max(image.shape)))
    down, across = margin * (bottom - top) / rows, margin * (right - left) / columns
    wide = top - down, bottom + down, left - across, right + across
    if min(wide[0], wide[2], hu.shape[0] - wide[1], hu.shape[1] - wide[3]) < 0:
        return image
    size = rows + 2 * margin, columns + 2 * margin
    cut = resample_roi(hu, wide, size, bench.chain.window_hu, bench.chain.kernel)
    turned = rotate(cut, step * bench.draw.choice([-1, 1]), reshape=False)
    return np.asarray(turned[margin:-margin, margin:-margin])


@torch.no_grad()
def _reconstruct(image: np.ndarray, step: float, bench: Bench) -> np.ndarray:
    assert bench.vae is not None
    pixels = torch.from_numpy(image).float().expand(1, 3, -1, -1)
    for _ in range(int(step)):
        pixels = bench.vae.decode(bench.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    return pixels[0].mean(0).numpy()


def _exchange_findings(images: ImageSet, step: float, training: ImageSet | None, draw: np.random.Generator) -> ImageSet:
    """Prompts and ratings handed round among a random fraction of the images."""
    chosen = draw.permutation(len(images))[: round(step * len(images))]
    records = list(images.records)
    for place, other in zip(chosen, np.roll(chosen, 1)):
        given = images.records[other]
        records[place] = replace(records[place], prompt=given.prompt, ratings=given.ratings)
    return ImageSet(images.key, records, images.images, images.features)


def _mix_in_copies(images: ImageSet, step: float, training: ImageSet | None, draw: np.random.Generator) -> ImageSet:
    """Training images, of the same prompt where there is one, in the place of a random fraction of the images."""
    assert training is not None
    chosen = draw.permutation(len(images))[: round(step * len(images))]
    spare = draw.integers(len(training), size=len(images))
    with_prompt = {record.prompt: index for index, record in enumerate(training.records)}
    sources = {int(place): with_prompt.get(images.records[place].prompt, int(spare[place])) for place in chosen}
    return _with_images_of(images, training, sources)


def _repeat_prompts(images: ImageSet, step: float, training: ImageSet | None, draw: np.random.Generator) -> ImageSet:
    """One picture a prompt: a random fraction of the images becomes the first image of its prompt."""
    chosen = draw.permutation(len(images))[: round(step * len(images))]
    first = {record.prompt: index for index, record in reversed(list(enumerate(images.records)))}
    return _with_images_of(images, images, {int(place): first[images.records[place].prompt] for place in chosen})


def _drop_modes(images: ImageSet, step: float, training: ImageSet | None, draw: np.random.Generator) -> ImageSet:
    """A growing fraction of the nodules that look benign (malignancy 1 or 2) dropped; as many images at each step.

    As many as there are others, so that a smaller set is not taken for a poorer one.
    """
    benign = np.array([record.ratings.get("malignancy", 0) in (1, 2) for record in images.records])
    order = draw.permutation(len(images))
    dropped, kept = order[benign[order]], order[~benign[order]]
    few = round((1 - step) * len(dropped) * len(kept) / len(images))
    return images.take(sorted([*dropped[:few].tolist(), *kept[: len(kept) - few].tolist()]))


def _with_images_of(images: ImageSet, others: ImageSet, sources: Mapping[int, int]) -> ImageSet:
    """The same records with other images in some places; ``sources``: place -> index into ``others``."""
    places, indices = list(sources), list(sources.values())
    features: dict[str, FeatureRows | torch.Tensor] = {}
    for encoder in images.features:
        rows = images.features_of(encoder).read()
        if places:
            rows[places] = others.features_of(encoder)[np.array(indices)]
        features[encoder] = FeatureRows(rows)
    mixed = [others.images[sources[at]] if at in sources else images.images[at] for at in range(len(images))]
    return ImageSet(images.key, images.records, mixed, features)


FAULTS: Sequence[Fault] = (
    Fault("blur", "Blur", DISTANCE, "pixels (sigma)", (0.3, 0.5, 0.8, 1.2),
          lambda image, step, bench: gaussian_filter(image, step)),
    Fault("sharpen", "Sharpening", DISTANCE, "times what blur of 1 pixel takes away", (0.25, 0.5, 1), _sharpen),
    Fault("noise_removed", "Noise removed", NOISE, "HU (adaptive Wiener filter, 5 x 5)", (20, 40, 80),
          in_hu(lambda hu, step, bench: wiener(hu, 5, step**2))),
    Fault("noise_added", "Noise added", NOISE, "HU (white)", (10, 20, 40),
          in_hu(lambda hu, step, bench: hu + step * bench.draw.standard_normal(hu.shape))),
    Fault("autoencoder", "Through the autoencoder", NOISE, "times", (1, 2), _reconstruct, needs="vae"),
    Fault("kernel", "Resampling kernel", DISTANCE, "order (clean: 3)", (1, 0), _other_kernel, needs="datalist"),
    Fault("jpeg", "JPEG", DISTANCE, "quality", (75, 40, 15), _jpeg),
    Fault("contrast", "Contrast", DISTANCE, "times", (1.1, 1.2, 1.4),
          in_hu(lambda hu, step, bench: hu.mean() + step * (hu - hu.mean()))),
    Fault("hu_shift", "HU shift", DISTANCE, "HU", (20, 50, 100), in_hu(lambda hu, step, bench: hu + step)),
    Fault("rotation", "Rotation", DISTANCE, "degrees", (2, 5, 10), _rotate, needs="datalist"),
    Fault("occlusion", "Occlusion", DISTANCE, "side (fraction of the image's)", (0.1, 0.2, 0.4), _occlude),
    Fault("roi", "Another ROI", DISTANCE, "diameters (clean: 2)", (1.8, 1.5, 1.2), _smaller_roi,
          needs="datalist"),
    Fault("modes", "Modes dropped", DIVERSITY, "fraction of malignancy 1 and 2", (0.25, 0.5, 0.75, 1),
          on_set=_drop_modes, needs="malignancy"),
    Fault("repeats", "One picture a prompt", DIVERSITY, "fraction of images", (0.25, 0.5, 0.75, 1),
          on_set=_repeat_prompts, needs="prompts"),
    Fault("findings", "Findings exchanged", FINDINGS, "fraction of images", (0.1, 0.25, 0.5, 1),
          on_set=_exchange_findings, needs="prompts"),
    Fault("copies", "Copies of training images", COPIES, "fraction of images", (0.02, 0.05, 0.1, 0.25),
          on_set=_mix_in_copies, needs="training"),
)  # fmt: skip
"""From mild to strong, all that are tried."""
