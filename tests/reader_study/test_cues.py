from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.cues import FAMILIES, compare_arms, image_cues, refuse_telling
from nodule_plugin.reader_study.design import encode_image

SIZE = 24


def plain(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(128, 12, (SIZE, SIZE)).clip(0, 255).astype(np.uint8)


def repeat_border(grey: np.ndarray) -> np.ndarray:
    return np.pad(grey[1:-1, 1:-1], 1, mode="edge")


def blur(grey: np.ndarray) -> np.ndarray:
    soft = gaussian_filter(grey.astype(float), 0.7)
    return ((soft - soft.mean()) * grey.std() / soft.std() + grey.mean()).clip(0, 255).astype(np.uint8)


def halve_levels(grey: np.ndarray) -> np.ndarray:
    return grey // 2 * 2


def block(grey: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=10)
    return np.asarray(Image.open(file))


def compress(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def compared(
    change: Callable[[np.ndarray], np.ndarray], encode: Callable[[np.ndarray], bytes] = encode_image, count: int = 30
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    real = [plain(rng) for _ in range(count)]
    made = [change(plain(rng)) for _ in range(count)]
    cues = {"real": [image_cues(grey, encode_image(grey)) for grey in real]}
    return compare_arms(cues | {"model": [image_cues(grey, encode(grey)) for grey in made]})


def told_by(blinding: dict[str, Any]) -> set[tuple[str, str]]:
    return {(line["family"], line["cue"]) for line in blinding["lines"] if line["telling"]}


@pytest.mark.parametrize(
    ("change", "encode", "cue"),
    [
        (repeat_border, encode_image, ("edge", "step")),
        (repeat_border, encode_image, ("edge", "jump")),
        (blur, encode_image, ("spectrum", "corner")),
        (halve_levels, encode_image, ("histogram", "gaps")),
        (block, encode_image, ("spectrum", "grid of eight")),
        (np.asarray, compress, ("file", "bytes")),
        (np.asarray, compress, ("file", "compression")),
    ],
)
def test_what_tells_the_arms_apart_is_found(change: Any, encode: Any, cue: tuple[str, str]) -> None:
    blinding = compared(change, encode)
    assert cue in told_by(blinding)
    with pytest.raises(InputError, match=f"{cue[0]}: .*--accept-cues .*{cue[0]}"):
        refuse_telling(blinding, [family for family in FAMILIES if family != cue[0]])
    assert refuse_telling(blinding, FAMILIES)["accepted"] == list(FAMILIES)


def test_the_repeated_border_gives_away_nothing_but_the_edge() -> None:
    assert {family for family, _ in told_by(compared(repeat_border))} == {"edge"}


def test_an_area_is_the_area_of_its_numbers() -> None:
    values = np.random.default_rng(1).normal(size=(2, 25))
    values[1] -= 1
    cues = {arm: [{"edge: x": value} for value in own] for arm, own in zip(("real", "model"), values)}
    direct, spread = compare_arms(cues)["lines"]
    labels = np.repeat([0, 1], 25)
    assert direct["area"] == pytest.approx(1 - roc_auc_score(labels, values.ravel()))
    distance = np.abs(values.ravel() - np.median(values))
    area = roc_auc_score(labels, distance)
    assert (spread["cue"], spread["area"]) == ("x, spread", pytest.approx(max(area, 1 - area)))
    assert direct["low"] < direct["area"] < direct["high"] <= 1


def test_alike_values_of_one_arm_are_found_by_their_spread() -> None:
    values = np.random.default_rng(1).normal(size=40)
    cues = {"real": [{"edge: x": value} for value in values], "model": [{"edge: x": 0.01 * x} for x in values]}
    assert told_by(compare_arms(cues)) == {("edge", "x, spread")}


def test_arms_that_are_alike_pass_in_nineteen_of_twenty_designs() -> None:
    """Twenty images of each arm: an area above 0.6 alone would refuse nearly all of them."""
    rng = np.random.default_rng(0)
    images = [image_cues(grey, encode_image(grey)) for grey in (plain(rng) for _ in range(200))]
    refused, above = 0, 0
    for _ in range(60):
        drawn = [images[index] for index in rng.permutation(200)[:60]]
        lines = compare_arms({"real": drawn[:20], "one": drawn[20:40], "two": drawn[40:]})["lines"]
        refused += any(line["telling"] for line in lines)
        above += any(line["area"] > 0.6 for line in lines)
    assert above > 50
    assert refused <= 8  # 3 expected


@pytest.mark.parametrize(("count", "ends"), [(20, (0.7, 0.85)), (200, (0.5, 0.62))])
def test_what_chance_reaches_shrinks_with_the_images(count: int, ends: tuple[float, float]) -> None:
    assert ends[0] < compared(np.asarray, count=count)["chance"] < ends[1]


def test_unknown_families_are_named() -> None:
    with pytest.raises(InputError, match="no family 'smell'; choose among edge, spectrum, histogram, file"):
        refuse_telling({"lines": []}, ["smell"])
