"""What the design of the small model rests on: one change at a time, its held-out loss and its kernel distance.

    python scripts/ablation.py --work WORK --output output/ablation.md

WORK is the folder of scripts/train_small_model.py, whose data list, autoencoder, text encoder and scorer are used. Each
variant of the training is trained from scratch for a fraction of the full epochs, on the same samples and
noise; the variants of sampling all start from the finished model. A variant that WORK already holds is not trained
again. Distances are kernel distances to the validation split in ImageNet features, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from monai.bundle import ConfigParser
from small_models.autoencoder import COMPRESSION, train_autoencoder
from small_models.base_model import build_unet, save_base_model
from small_models.examples import IMAGE_SIZE, load_examples
from small_models.patches import crop_patches
from transformers import CLIPTextModel

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.window import DEFAULT_WINDOW_HU
from nodule_plugin.diffusion.components import freeze
from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.files import write_json, write_text_atomically
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.grey_values import GreyValueFeatures, histogram_distance
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.metrics.kernel import kernel_error, squared_mmd
from nodule_plugin.metrics.noise_power import NoisePowerFeatures, noise_power_distance

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
AUTOENCODERS: Mapping[str, str | dict[str, Any]] = {
    "the small model's": "vae",
    **{f"{channels} latent channels": {"latent_channels": channels} for channels in (2, 4)},
    "no weight on fine detail": {"detail_weight": 0.0},
    "300 steps": {"steps": 300},
}
"""Variant -> a folder of WORK, or arguments of :func:`train_autoencoder`."""
TRAINING: Mapping[str, dict[str, Any]] = {
    "as from_scratch.json has it": {},
    "predicts noise, terminal SNR not zero": {
        "scheduler": {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
    },
    "terminal SNR not zero": {"scheduler": {"rescale_betas_zero_snr": False}},
    "Stable Diffusion's betas": {"scheduler": {"beta_start": 0.00085, "beta_end": 0.012}},
    "cosine noise schedule": {"scheduler": {"beta_schedule": "squaredcos_cap_v2"}},
    "min-SNR 5": {"settings": {"snr_gamma": 5.0}},
    "min-SNR off": {"settings": {"snr_gamma": None}},
    "caption dropout 0": {"settings": {"caption_dropout": 0.0}},
    "no moving average of the weights": {"settings": {"ema_decay": None}},
    "centre slices only": {"settings": {"datalist": "crops.json"}},
    **{name: {"autoencoder": change} for name, change in AUTOENCODERS.items() if isinstance(change, dict)},
}
"""Variant -> what it changes: the scheduler's configuration, settings of train.json, the autoencoder."""
SAMPLING: Mapping[str, dict[str, Any]] = {
    "DPM-Solver++, 15 steps, guidance 1.5": {},
    **{f"guidance {scale}": {"val_guidance_scale": float(scale)} for scale in (1, 2, 3, 5, 10)},
    **{f"{steps} steps": {"val_steps": steps} for steps in (8, 25, 50)},
    "DDIM, 50 steps": {"val_steps": 50, "validate#inferer#scheduler_class": "DDIMScheduler"},
    "guidance 3 in the middle 60 % of steps": {
        "val_guidance_scale": 3.0,
        "validate#inferer#guidance_interval": [0.2, 0.8],
    },
    "guidance 3, rescaled by 0.7": {"val_guidance_scale": 3.0, "validate#inferer#guidance_rescale": 0.7},
}
"""Variant -> settings of train.json's validation."""
SCORES = ["held-out loss", "KD (ImageNet EfficientNet-Lite0)", ""]
RECONSTRUCTION = ["mean absolute error, [-1, 1]", "histogram, HU", "noise power, dB", "KD (ImageNet) ± standard error"]


def main() -> None:
    """Parse the command line, run what is missing, write the table."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of train_small_model.py")
    parser.add_argument("--output", required=True, type=Path, help="Markdown file")
    parser.add_argument("--epochs", type=int, default=6, help="of each variant of the training")
    parser.add_argument("--overlay", type=Path, help="further configuration of every variant's training")
    parser.add_argument("--precision", default="float32", help="bfloat16 where the processor has it")
    parser.add_argument("--only", default="", help="only variants whose name holds this text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sections: list[tuple[str, list[str], Mapping[str, Any], Callable[..., list[str]]]] = [
        ("autoencoder", RECONSTRUCTION, AUTOENCODERS, reconstructed),
        (f"training, {options.epochs} epochs", SCORES, TRAINING, trained),
        ("sampling of the finished model", SCORES, SAMPLING, sampled),
    ]
    if not any(options.only in name for _, _, variants, _ in sections for name in variants):
        raise InputError(f"only: no variant's name holds {options.only!r}; see the tables at the head of {__file__}")
    rows: list[str] = []
    for heading, columns, variants, measure in sections:
        chosen = [name for name in variants if options.only in name]
        rows += ["", row(heading, columns), "|---" * (len(columns) + 1) + "|"] if chosen else []
        for name in chosen:
            rows.append(row(name, measure(options, name, variants[name])))
            write_text_atomically(options.output, "\n".join(rows).lstrip() + "\n")
    print(options.output.read_text())


def reconstructed(options: argparse.Namespace, name: str, change: str | Mapping[str, Any]) -> list[str]:
    """What an autoencoder makes of validation images, from drawn latents as in training.

    Their kernel distance is to the real images of other patients, those of training: to their own originals they would
    be near whatever they lack.
    """
    vae = autoencoder(options, name, change)
    images, others = (load_examples(options.work / "crops.json", split).images for split in ("validation", "training"))
    generator = torch.Generator().manual_seed(options.seed)
    decoded = [vae.decode(vae.encode(batch).latent_dist.sample(generator)).sample for batch in images.split(64)]
    # As pictures are written: the three channels' small differences are colour to a network of photographs.
    output = torch.cat(decoded).clamp(-1, 1).mean(1, keepdim=True).expand(-1, 3, -1, -1)

    def features(of: torch.Tensor, extractor: FeatureExtractor) -> torch.Tensor:
        return torch.cat([extractor(batch) for batch in of.split(64)]).double()

    real, made = (features(pixels, GreyValueFeatures()).mean(dim=0).numpy() for pixels in (images, output))
    spectra = [FeatureRows(features(pixels, NoisePowerFeatures())) for pixels in (images, output)]
    judged = [features(pixels, ImageNetFeatures()) for pixels in (others, output)]
    return [
        f"{(output - images).abs().mean().item():.4f}",
        f"{histogram_distance(real, made, DEFAULT_WINDOW_HU):.1f}",
        f"{noise_power_distance(*spectra):.1f}",
        f"{squared_mmd(*judged):.4f} ± {kernel_error(*judged):.4f}",
    ]


def trained(options: argparse.Namespace, name: str, change: Mapping[str, Any]) -> list[str]:
    """The last validation of a variant of the training."""
    folder = folder_of(options, name)
    settings: dict[str, Any] = {
        "datalist": "enlarged.json",
        "epochs": options.epochs,
        "val_interval": options.epochs,
        "val_guidance_scales": None,
        "precision": options.precision,
        "seed": options.seed,
        **change.get("settings", {}),
    }
    if settings["datalist"] != "enlarged.json":
        settings |= same_steps(options, settings)
    settings |= {
        "datalist": str((options.work / settings["datalist"]).resolve()),
        "base_model": str(base_model(options, name, change).resolve()),
        "scorer": str((options.work / "tiny_scorer").resolve()),
        "output_dir": str((folder / "training").resolve()),
        "bundle_root": str(BUNDLE),
    }
    overlay = folder / "overlay.json"
    write_json(overlay, settings)
    files = [*(str(BUNDLE / "configs" / config) for config in ("train.json", "from_scratch.json"))]
    files += [str(file) for file in (options.overlay, overlay) if file is not None]
    done = subprocess.run([sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)])
    if done.returncode != 0:  # the run has said why
        sys.exit(done.returncode)
    with (folder / "training" / "curves.csv").open() as file:
        return scores(list(csv.DictReader(file))[-1])


def same_steps(options: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, int]:
    """Epochs of a smaller data list that make as many steps."""
    counts = [
        len(load_datalist(options.work / name, "training", drop_padded=True))
        for name in ("enlarged.json", settings["datalist"])
    ]
    epochs = round(options.epochs * counts[0] / counts[1])
    return {"epochs": epochs, "val_interval": epochs}


def base_model(options: argparse.Namespace, name: str, change: Mapping[str, Any]) -> Path:
    """The untrained base model of a variant."""
    target = folder_of(options, name) / "base"
    if not target.is_dir():
        if "autoencoder" in change:
            vae = autoencoder(options, name, change["autoencoder"])
            torch.manual_seed(options.seed)
            parts = {
                "vae": vae,
                "text_encoder": CLIPTextModel.from_pretrained(options.work / "text_encoder"),
                "unet": build_unet(IMAGE_SIZE // COMPRESSION, vae.config.latent_channels),
            }
            save_base_model(target, parts, card="")
        else:
            shutil.copytree(options.work / "untrained", target)
        scheduler = target / "scheduler" / "scheduler_config.json"
        scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | change.get("scheduler", {}), indent=2))
    return target


def autoencoder(options: argparse.Namespace, name: str, change: str | Mapping[str, Any]) -> AutoencoderKL:
    """WORK's autoencoder; for a variant one that is trained, unless WORK holds it."""
    folder = options.work / change if isinstance(change, str) else folder_of(options, name) / "vae"
    if not isinstance(change, str) and not folder.is_dir():
        items = load_datalist(options.work / "crops.json", "training", drop_padded=True)
        patches = crop_patches(items, 9000, IMAGE_SIZE, options.seed)
        settings = {"steps": 1000, "precision": options.precision, "seed": options.seed, **change}
        train_autoencoder(patches, **settings).save_pretrained(folder)
    return freeze(AutoencoderKL.from_pretrained(folder))


def folder_of(options: argparse.Namespace, name: str) -> Path:
    """What WORK holds of a variant."""
    return options.work / "ablation" / name.replace(" ", "_").replace(",", "")


def sampled(options: argparse.Namespace, name: str, change: Mapping[str, Any]) -> list[str]:
    """The validation of the finished model with other settings of the sampler."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "from_scratch.json")])
    settings = {
        "bundle_root": str(BUNDLE),
        "datalist": str(options.work / "crops.json"),
        "base_model": str(options.work / "trained"),
        "scorer": str(options.work / "tiny_scorer"),
        "output_dir": str(folder_of(options, name)),
        "precision": options.precision,
        "latent_cache": None,
        "ema_decay": None,
    }
    for name, value in (settings | dict(change)).items():
        parser[name] = value
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    return scores(evaluator.state.metrics)


def scores(metrics: Mapping[str, Any]) -> list[str]:
    """What the table shows of a validation."""
    loss = f"{float(metrics['held_out_loss']):.4f}" if metrics.get("held_out_loss") else ""
    distance, low, high = (float(metrics[f"kd_imagenet{end}"]) for end in ("", "_low", "_high"))
    return [loss, f"{distance:.3f}", f"[{low:.3f}, {high:.3f}]"]


def row(name: str, cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join([name, *cells])} |"


if __name__ == "__main__":
    main()
