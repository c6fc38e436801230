"""Train the bundle's small models from the data, all of them, from scratch.

    python scripts/train_small_model.py --crops lidc_nodule_crops --work WORK --output bundle/models

Makes the data list, the autoencoder, the text encoder that conditions, the scorer that judges, the U-Net, the one of
few steps that learns from it and the model that paints nodules into CT series; the U-Net and the last with the bundle's
own training (configs/train.json with configs/from_scratch.json or configs/train_insertion.json). Every stage that WORK
already holds is left out and the U-Nets' trainings resume, so the same command goes on after an interruption; one with
other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from small_models.autoencoder import COMPRESSION, train_autoencoder
from small_models.base_model import build_unet, save_base_model
from small_models.conditioner import train_text_encoder
from small_models.examples import CONDITIONING, IMAGE_SIZE, JUDGING, load_examples
from small_models.few_steps import distil
from small_models.inpainting import build_inpainting_unet, save_inpainting_model
from small_models.neighbours import enlarge_training
from small_models.patches import crop_patches
from small_models.scorer import save_scorer, train_scorer
from small_models.scorer_card import evaluate_scorer, model_card
from transformers import CLIPTextModel

from nodule_plugin.data.datalist import datalist_kernel, load_datalist, write_datalist
from nodule_plugin.diffusion.components import freeze
from nodule_plugin.diffusion.fine_tuned import load_weights
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.files import replacing, write_json
from nodule_plugin.handlers.recipe import differences
from nodule_plugin.insertion.network import InpaintingUNet
from nodule_plugin.weights import save_tensors

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
SETTINGS = (
    *("patches", "autoencoder_steps", "text_steps", "scorer_steps", "trajectories", "few_steps_steps"),
    *("precision", "seed"),
)
"""Options that shape what WORK keeps; the U-Net's training looks after its own."""


def main() -> None:
    """Parse the command line and run the stages."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", required=True, type=Path, help="folder of crops, as prepare reads it")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is kept between runs")
    parser.add_argument("--output", required=True, type=Path, help="the bundle's models folder")
    parser.add_argument("--patches", type=int, default=9000, help="that the autoencoder is trained on")
    parser.add_argument("--autoencoder-steps", type=int, default=1000)
    parser.add_argument("--text-steps", type=int, default=800)
    parser.add_argument("--scorer-steps", type=int, default=800)
    parser.add_argument("--trajectories", type=int, default=7200, help="that the U-Net of few steps is trained on")
    parser.add_argument("--few-steps-steps", type=int, default=2400)
    parser.add_argument("--overlay", type=Path, help="further configuration of both trainings")
    parser.add_argument("--precision", default="float32", help="bfloat16 where the processor has it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes started from here
    options.work.mkdir(parents=True, exist_ok=True)
    check_settings(options)
    datalist = prepare(options)
    judge(options, datalist)
    base = untrained_base(options, datalist)
    train(options, base)
    export(options, datalist, base)
    train_few_steps(options, datalist)
    train_inpainter(options, datalist)
    print(f"wrote {options.output}")


def check_settings(options: argparse.Namespace) -> None:
    """Note in WORK what its stages are made with.

    Raises:
        InputError: if WORK holds stages made with other settings.
    """
    settings = {name: getattr(options, name) for name in SETTINGS} | {"crops": str(options.crops.resolve())}
    file = options.work / "settings.json"
    if not file.is_file():
        write_json(file, settings)
    elif changed := differences(json.loads(file.read_text()), settings):
        raise InputError(f"{options.work}: made with {'; '.join(changed)}; give these, or another folder as --work")


def prepare(options: argparse.Namespace) -> Path:
    """The data list, and beside it the one whose training split is enlarged."""
    datalist = options.work / "crops.json"
    if not datalist.is_file():
        settings = {"dataset_dir": options.crops.resolve(), "datalist": datalist.resolve()}
        bundle_run([BUNDLE / "configs" / "prepare.json"], settings)
    content = enlarge_training(json.loads(datalist.read_text()), template="detailed")
    write_datalist(content, options.work / "enlarged.json")
    return datalist


def judge(options: argparse.Namespace, datalist: Path) -> None:
    """The scorer, from WORK or trained."""
    folder = options.work / "tiny_scorer"
    if not folder.is_dir():
        examples = load_examples(datalist, "training", JUDGING)
        model = train_scorer(examples, steps=options.scorer_steps, precision=options.precision, seed=options.seed)
        scratch = options.work / "unfinished_scorer"
        save_scorer(model, scratch, card="")
        held_out = {f"real, {split}": load_examples(datalist, split) for split in ("validation", "test")}
        results = {split: evaluate_scorer(scratch, pairs.images, pairs.prompts) for split, pairs in held_out.items()}
        save_scorer(model, scratch, model_card(results, {examples.source: len(examples.prompts)}, options.scorer_steps))
        scratch.rename(folder)


def untrained_base(options: argparse.Namespace, datalist: Path) -> Path:
    """Folder of a base model whose U-Net knows nothing yet."""
    folder = options.work / "untrained"
    if not folder.is_dir():
        vae, text_encoder = autoencoder(options, datalist), conditioner(options, datalist)
        torch.manual_seed(options.seed)
        unet = build_unet(IMAGE_SIZE // COMPRESSION, vae.config.latent_channels)
        save_base_model(folder, {"vae": vae, "text_encoder": text_encoder, "unet": unet}, card="")
    return folder


def autoencoder(options: argparse.Namespace, datalist: Path) -> AutoencoderKL:
    """The autoencoder, from WORK or trained."""
    folder = options.work / "vae"
    if not folder.is_dir():
        items = load_datalist(datalist, "training", drop_padded=True)
        patches = crop_patches(items, options.patches, IMAGE_SIZE, options.seed, datalist_kernel(datalist))
        vae = train_autoencoder(patches, options.autoencoder_steps, precision=options.precision, seed=options.seed)
        vae.save_pretrained(folder)
    return freeze(AutoencoderKL.from_pretrained(folder))


def conditioner(options: argparse.Namespace, datalist: Path) -> CLIPTextModel:
    """The text encoder, from WORK or trained."""
    folder = options.work / "text_encoder"
    if not folder.is_dir():
        examples = load_examples(datalist, "training", CONDITIONING, templates=["detailed"])
        settings = {"steps": options.text_steps, "precision": options.precision, "seed": options.seed}
        train_text_encoder(examples, **settings).save_pretrained(folder)
    return freeze(CLIPTextModel.from_pretrained(folder))


def train(options: argparse.Namespace, base: Path) -> None:
    """The U-Net, with the bundle's training."""
    settings = {
        "datalist": (options.work / "enlarged.json").resolve(),
        "base_model": base.resolve(),
        "scorer": (options.work / "tiny_scorer").resolve(),
        "output_dir": (options.work / "training").resolve(),
        "precision": options.precision,
        "seed": options.seed,
    }
    bundle_run(training_files(options, "from_scratch.json"), settings)


def training_files(options: argparse.Namespace, overlay: str) -> list[Path]:
    """The configurations of a training: the bundle's with one of its overlays, and the user's."""
    files = [BUNDLE / "configs" / "train.json", BUNDLE / "configs" / overlay]
    return files if options.overlay is None else [*files, options.overlay.resolve()]


def export(options: argparse.Namespace, datalist: Path, base: Path) -> None:
    """The base model with the trained U-Net, ``model.pt``, the scorer, and whose images made them."""
    weights = options.work / "training" / "models" / "model.pt"
    network = DiffusionUNet.from_base(str(base))
    load_weights(weights, network)
    parts = {
        "vae": AutoencoderKL.from_pretrained(base / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(base / "text_encoder"),
        "unet": network.unet,
    }
    for folder in (options.work / "trained", options.output / "tiny"):
        save_base_model(folder, parts, CARD)
    shutil.copytree(options.work / "tiny_scorer", options.output / "tiny_scorer", dirs_exist_ok=True)
    write_json(options.output / "training_patients.json", {"description": PATIENTS, **patients_of(datalist)})
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}  # as the base model's folder has
    save_tensors(halves, options.output / weights.name)
    with replacing(options.output / "model.json") as temporary:
        shutil.copyfile(weights.with_suffix(".json"), temporary)


def train_few_steps(options: argparse.Namespace, datalist: Path) -> None:
    """The U-Net of few steps, taught by the model that was exported, from WORK or trained."""
    folder, scratch = options.work / "few_steps", options.work / "unfinished_few_steps"
    if not folder.is_dir():
        distil(options.output, datalist, scratch, scratch / "made", options.trajectories, options.few_steps_steps)
        (scratch / "made").rename(folder)
    shutil.copytree(folder, options.output / "few_steps", dirs_exist_ok=True)


def train_inpainter(options: argparse.Namespace, datalist: Path) -> None:
    """The model that paints nodules into CT series, with the bundle's training, from WORK or trained."""
    folder, text_encoder = options.work / "inpainter", conditioner(options, datalist)
    if not folder.is_dir():
        base, run = options.work / "untrained_inpainter", options.work / "inpainter_training"
        if not base.is_dir():
            torch.manual_seed(options.seed)
            save_inpainting_model(base, build_inpainting_unet(), text_encoder, card="")
        settings = {"datalist": datalist, "base_model": base, "output_dir": run}
        settings = {name: path.resolve() for name, path in settings.items()}
        settings |= {"precision": options.precision, "seed": options.seed}
        bundle_run(training_files(options, "train_insertion.json"), settings)
        network = InpaintingUNet.from_base(str(base))
        load_weights(run / "models" / "model.pt", network)
        save_inpainting_model(folder, network.unet, text_encoder, INPAINTER_CARD)
    shutil.copytree(folder, options.output / "inpainter", dirs_exist_ok=True)


def patients_of(datalist: Path) -> dict[str, list[str]]:
    """The patients of the splits that a model was made with."""
    content = json.loads(datalist.read_text())
    return {split: sorted({item["patient_id"] for item in content[split]}) for split in ("training", "validation")}


def bundle_run(files: list[Path], settings: dict) -> None:
    """``python -m monai.bundle run`` on configurations, with settings."""
    config = str([str(file) for file in files])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, "--bundle_root", str(BUNDLE)]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command)
    if done.returncode != 0:
        sys.exit(done.returncode)


PATIENTS = (
    "Patients whose nodules the small models (tiny, model.pt, few_steps, tiny_scorer) were trained on, and those that "
    "chose the checkpoint. Images of these patients cannot judge the small models."
)
SOURCE = """\
- Data: LIDC-IDRI, CC BY 3.0. Armato SG III et al. (2015), doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato SG III et al.
  (2011), Med Phys 38:915-931; Clark K et al. (2013), J Digit Imaging 26:1045-1057.
- Vocabulary: CLIP's, as open_clip carries it (MIT licence).
"""
INPAINTER_CARD = f"""\
---
license: apache-2.0
---
# Small inpainting model for chest CT nodules

Stable Diffusion's classes, ten slices of 40 x 40 pixels of 0.7 mm at once, trained from scratch as
`scripts/train_small_model.py` trains it, on real nodules of LIDC-IDRI with their masks; `docs/insertion.md` of the
project says for how long, and what it does wrong. It paints a nodule of given findings, diameter and mask into what it
is shown; everything it paints is synthetic. For research only; not for diagnosis, and
never into a clinical archive.

{SOURCE}"""
CARD = f"""\
---
license: apache-2.0
---
# Small base model for chest CT nodule images

Stable Diffusion's classes and folder layout at a hundredth of its size, for 64 x 64 regions of interest, trained from
scratch by `scripts/train_small_model.py` on real nodules of LIDC-IDRI. The model card is `docs/model_card.md` of the
project. It is no substitute for Stable Diffusion. For research only; not for diagnosis.

{SOURCE}"""


if __name__ == "__main__":
    main()
