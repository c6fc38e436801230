from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch


class Pixels:
    """Images as their own features."""

    name = "pixels"
    unavailable = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_every_kind_of_case_is_sampled_and_compared(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    sampling = script("sampling")
    base = script("base_models").build_base_model("tiny", tmp_path / "tiny")
    bench = sampling.Bench(str(base), size=64, images=4, guidance_scale=2.0, device="cpu")
    kinds = [
        sampling.Case(sampling.PNDM, 3),
        sampling.Case(sampling.PNDM, 3, 2),
        sampling.Case(sampling.DPM, 2, 2, "bfloat16", channels_last=True),
        sampling.Case(sampling.DPM, 2, 2, "bfloat16", peer=True),
        sampling.Case(sampling.PNDM, 3, 2, peer=True),
    ]
    rows = sampling.measure(bench, kinds, 1, Pixels())
    assert len(rows) == len(kinds) + 1
    differences = [row["pixel_difference"] for row in rows]
    assert differences[0] == 0
    assert differences[1] < 1e-3 < differences[2]
    assert differences[4] < 1e-3  # the pipeline, given the same seeds and settings, makes the same images
    assert differences[5] > 10 * differences[2] or rows[5]["seconds"] == []
    report = {
        "machine": {},
        "settings": {},
        "device": "cpu",
        "features": "pixels",
        "cases": rows,
        "left_out": ["torch.compile"],
    }
    text = sampling.render(report)
    assert "kernel distance (pixels)" in text
    assert "ratio to diffusers' pipeline, PNDMScheduler 3, 2 a call" in text
    assert "left out: torch.compile" in text


def test_cases_start_from_the_reference(script: Callable[[str], ModuleType]) -> None:
    sampling = script("sampling")
    cases = sampling.cases_of(8)
    assert cases[0] == sampling.Case("PNDMScheduler", 50)
    assert len(set(map(str, cases))) == len(cases)
