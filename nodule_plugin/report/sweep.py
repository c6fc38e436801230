"""The guidance sweep: fidelity against alignment against diversity, and which scales no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.report.numbers import value_of

# The first of each that has numbers stands for its aspect: published metrics before stand-ins.
FIDELITY = ("kid", "fid", "kd_imagenet", "kd_tiny", "fd_tiny")
ALIGNMENT = ("bioclip_score", "clip_score", "clip_score_tiny")
DIVERSITY = ("lpips_diversity", "diversity_tiny", "coverage_tiny")
PAPER = {
    "source": "Urata et al., Generation of Chest CT pulmonary Nodule Images by Latent Diffusion Models using the "
    "LIDC-IDRI Dataset, Table 1, best rows",
    "columns": ["FID", "KID", "LPIPS", "CLIPScore", "BioCLIPScore"],
    "rows": [
        {"model": "real images", "guidance_scale": None, "values": [None, None, None, 0.617, 0.840]},
        {"model": "Stable Diffusion 2.0", "guidance_scale": 5.0, "values": [96.34, 0.038, 0.441, 0.663, 0.870]},
        {"model": "Stable Diffusion 1.5", "guidance_scale": 5.0, "values": [114.04, 0.063, 0.449, 0.657, 0.835]},
    ],
}
"""The reference method's numbers, for the eye only: other images, other networks, 208 test images."""


def guidance_sweep(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Three aspects of every generated row with a guidance scale.

    Args:
        results: with "measures" and "rows".

    Returns:
        ``fidelity``, ``alignment``, ``diversity`` (keys of measures), ``points`` (rows with those three numbers, and
        ``pareto``: whether no other point is as good in all of them and better in one), ``paper``; None where fewer
        than two rows have all three. Diversity is best at the real images' value, where that is known.
    """
    rows = [row for row in results["rows"] if row["kind"] == GENERATED and row["guidance_scale"] is not None]
    keys = [_first(rows, choice) for choice in (FIDELITY, ALIGNMENT, DIVERSITY)]
    if None in keys:
        return None
    fidelity, alignment, diversity = (str(key) for key in keys)
    complete = [row for row in rows if all(value_of(row, str(key)) is not None for key in keys)]
    if len(complete) < 2:
        return None
    real = next((value_of(row, diversity) for row in results["rows"] if row["kind"] == REAL), None)
    costs = [
        (_number(row, fidelity), -_number(row, alignment), _far(_number(row, diversity), real)) for row in complete
    ]
    points = [
        {
            "model": row["model"],
            "guidance_scale": row["guidance_scale"],
            **{
                name: {field: row["values"][key][field] for field in ("value", "ci95")}
                for name, key in (("fidelity", fidelity), ("alignment", alignment), ("diversity", diversity))
            },
            "pareto": not any(_beats(other, cost) for other in costs),
        }
        for row, cost in zip(complete, costs)
    ]
    return {"fidelity": fidelity, "alignment": alignment, "diversity": diversity, "points": points, "paper": PAPER}


def _first(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if any(value_of(row, key) is not None for row in rows)), None)


def _number(row: Mapping[str, Any], key: str) -> float:
    return float(row["values"][key]["value"])


def _far(diversity: float, real: float | None) -> float:
    return -diversity if real is None else abs(diversity - real)


def _beats(other: Sequence[float], one: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(other, one)) and any(a < b for a, b in zip(other, one))
