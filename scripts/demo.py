"""The steps of scripts/demo.sh: from findings to judged images, each the bundle's own configuration.

They run in one process, so that PyTorch and MONAI are imported once; every step prints the command that does the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from monai.bundle import run

from nodule_plugin.cli.tools import contact_sheet
from nodule_plugin.errors import show_input_errors

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
GUIDANCE_SCALES = "1.5,3,5,10,20,40,60"
NO_TEST_SPLIT = """\
NOTE: the test split is empty (too few patients). Prompts and real images are taken from the training split instead;
      what follows shows that the steps run and judges nothing."""


def main() -> None:
    """Parse the command line and run the steps."""
    show_input_errors()
    parser = argparse.ArgumentParser(prog="demo.sh", description=__doc__)
    parser.add_argument("--dataset-dir", default="phantom", help="LIDC-IDRI's DICOM, or NIfTI crops with nodules.csv")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=32, help="at each guidance scale")
    options = parser.parse_args()
    demo(options.dataset_dir, options.output, options.epochs, options.images)


def demo(dataset_dir: str, output: Path, epochs: int, images: int) -> None:
    """Prepare, train, generate, evaluate."""
    datalist, training, generated = output / "datalist.json", output / "training", output / "generated"
    pictures, weights = output / "pictures", training / "models" / "model.pt"
    step(
        "1/4 prepare: findings to prompts, nodules to a data list",
        "prepare",
        dataset_dir=dataset_dir,
        datalist=datalist,
        phantom_dir=output / "phantom",
        num_workers=-1,
    )
    print(f"What there is to learn from: {datalist.with_suffix('.html')}")
    step(
        f"2/4 train: fine-tune the small base model for {epochs} epochs, choose weights and guidance on validation",
        "train",
        datalist=datalist,
        output_dir=training,
        epochs=epochs,
        resume=False,
        val_interval=4,
        val_images=32,
        val_guidance_scales="1,2,4",
    )
    print(f"Loss and distance over the epochs: {training / 'curves.png'}")
    samples = sorted((training / "samples").glob("*.png"))
    print(f"Samples of the last validation:    {samples[-1] if samples else 'none: there was nothing to validate on'}")
    split = "test" if json.loads(datalist.read_text())["numTest"] else "training"
    if split == "training":
        print(NO_TEST_SPLIT)
    step(
        f"3/4 inference: the {split} split's prompts at guidance scales {GUIDANCE_SCALES}, 16 images a call",
        "inference",
        datalist=datalist,
        split=split,
        weights=weights,
        limit=images,
        guidance_scales=GUIDANCE_SCALES,
        steps=15,
        batch_size=16,
        images_per_call=16,
        formats="png",
        output_dir=generated,
        overwrite=True,
    )
    drawn = {"--generated": generated, "--datalist": datalist, "--split": split, "--limit": 12, "--output": pictures}
    contact_sheet([str(word) for option in drawn.items() for word in option])
    print(f"One nodule at every guidance scale: {pictures / 'guidance.png'}")
    print(f"Generated beside the originals:     {pictures / 'beside_real.png'}")
    step(
        f"4/4 evaluate: against the real images of the {split} split",
        "evaluate",
        datalist=datalist,
        split=split,
        generated_dir=generated,
        output_dir=output / "evaluation",
        noise_images=16,
        error_repeats=20,
    )
    print(f"Pictures: {pictures}")
    print(f"Data:     {datalist.with_suffix('.html')}")


def step(title: str, config: str, **settings: Any) -> None:
    """One of the bundle's configurations with settings, as on a command line."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    print(f"\n== {title}\n   nodule {config} {shlex.join(words)}", flush=True)
    run(config_file=str(BUNDLE / "configs" / f"{config}.json"), bundle_root=str(BUNDLE), **settings)


if __name__ == "__main__":
    main()
