"""The bundle's models on the held-out test split, as the metadata's ``eval_metrics``.

    python scripts/record_eval_metrics.py --crops lidc_nodule_crops --work WORK --guidance-scale 2
    python scripts/record_eval_metrics.py --crops lidc_nodule_crops --work WORK --check all

One image for each test nodule's prompt, seed 0, the sampler's defaults, then ``evaluate``; and the same of the first
twelve prompts alone, for the tests (``--check few``): what changes the one changes the other. With --check nothing is
written: the command fails where a value differs from what is recorded by more than a hundredth of itself, which leaves
room for another processor's rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from monai.bundle import ConfigParser, run

from nodule_plugin.data.image_set import GENERATED, REAL, TRAINING
from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.files import write_json

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
METADATA = BUNDLE / "configs" / "metadata.json"
FEW = Path(__file__).with_name("eval_metrics_of_few.json")
"""The metrics of the first images, beside those of all that were recorded with them."""
RECORDED = (
    *("kd_imagenet", "fd_tiny", "kd_tiny", "cmmd_tiny", "frd", "krd", "hu_histogram", "noise_power", "clip_score_tiny"),
    *("diversity_tiny", "precision_tiny", "recall_tiny", "density_tiny", "coverage_tiny", "copies"),
)
"""Measures that need no network but the bundle's own."""
UNRECORDED = {
    "control_items": [],
    "error_repeats": 3,
    "measures#tables#findings": [],
    "evaluator#val_handlers": ["@collector"],
}
"""Of the evaluation: what leaves out, or makes cheap, what is not recorded: other sets, intervals, findings, report."""


def main() -> None:
    """Parse the command line, measure, write or compare."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", required=True, type=Path, help="folder of crops, as prepare reads it")
    parser.add_argument(
        "--work", required=True, type=Path, help="folder for images and evaluation; goes on where it was"
    )
    parser.add_argument("--guidance-scale", type=float, help="by default the metadata's")
    parser.add_argument(
        "--check",
        choices=("all", "few"),
        help="compare with what is recorded, of all images or the first few, write nothing",
    )
    options = parser.parse_args()
    metadata = json.loads(METADATA.read_text())
    recorded = metadata["eval_metrics"]
    scale = recorded.get("guidance_scale") if options.guidance_scale is None else options.guidance_scale
    if scale is None:
        raise InputError("guidance-scale: the metadata has none yet; give one")
    if options.check is None:
        recorded = {
            "all": measure(options.crops, options.work, scale),
            "few": measure(options.crops, options.work, scale, 12),
        }
        write_json(METADATA, {**metadata, "eval_metrics": recorded["all"]})
        write_json(FEW, recorded)
        print(json.dumps(recorded["all"], indent=4))
        return
    few = json.loads(FEW.read_text())
    if wrong := differences(few["all"], recorded):
        sys.exit("\n".join([f"eval_metrics of the metadata are not those that {FEW.name} was recorded with:", *wrong]))
    limit = few["few"]["images"] if options.check == "few" else None
    found = measure(options.crops, options.work, scale, limit)
    if wrong := differences(few[options.check], found):
        sys.exit("\n".join(["what is recorded is not what evaluate prints:", *wrong]))
    print(f"all {len(found)} values agree")


def measure(crops: Path, work: Path, scale: float, limit: int | None = None) -> dict[str, float]:
    """The recorded measures of the test split at one guidance scale, of one image for each prompt or the first few."""
    datalist, generated = work / "datalist.json", work / f"test_{scale:g}{'' if limit is None else f'_first_{limit}'}"
    if not datalist.is_file():
        bundle_run("prepare", dataset_dir=str(crops.resolve()), datalist=str(datalist.resolve()), page=False)
    shared = {"datalist": str(datalist.resolve()), "split": "test"}
    images = {"guidance_scales": scale, "output_dir": str(generated.resolve()), "images_per_call": 8, "batch_size": 8}
    images |= {} if limit is None else {"limit": limit}
    bundle_run("inference", **shared, **images)
    evaluation = ConfigParser()
    evaluation.read_config(str(BUNDLE / "configs" / "evaluate.json"))
    results = {"generated_dir": str(generated.resolve()), "output_dir": str((work / "evaluation").resolve())}
    evaluation.update({"bundle_root": str(BUNDLE), **shared, **results, **UNRECORDED})
    evaluation.get_parsed_content("initialize")
    evaluation.get_parsed_content("evaluator").run()
    sets = {images.key.kind: images for images in evaluation.get_parsed_content("collector").image_sets}
    columns = {measure.key: measure for measure in evaluation.get_parsed_content("measures")}
    values = {key: columns[key].measure(sets[GENERATED], sets[REAL], sets[TRAINING]).value for key in RECORDED}
    return {
        "guidance_scale": scale,
        "images": len(sets[GENERATED]),
        **{key: float(f"{values[key]:.4g}") for key in values},
    }


def bundle_run(config: str, **settings: object) -> None:
    """One of the bundle's configurations, with settings."""
    run(config_file=str(BUNDLE / "configs" / f"{config}.json"), bundle_root=str(BUNDLE), **settings)


def differences(recorded: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """A line for each value that differs or is missing."""
    names = dict.fromkeys([*recorded, *found])
    return [
        f"  {name}: {recorded.get(name)} recorded, {found.get(name)} found"
        for name in names
        if name not in recorded
        or name not in found
        or not math.isclose(recorded[name], found[name], rel_tol=0.01, abs_tol=1e-3)
    ]


if __name__ == "__main__":
    main()
