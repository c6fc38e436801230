"""Train the small base model from scratch: autoencoder, then U-Net and text encoder together.

    python scripts/train_tiny_base.py --datalist crops.json --work WORK --output bundle/models/tiny

Uses the training part of the data list, and phantoms. Goes on from what it finds in WORK.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.diffusion.components import freeze
from nodule_plugin.errors import show_input_errors
from nodule_plugin.tiny.autoencoder import train_autoencoder
from nodule_plugin.tiny.base_model import JointTrainer, LatentPool, encode_pool, save_base_model
from nodule_plugin.tiny.patches import crop_patches
from nodule_plugin.tiny.pool import load_pool, phantom_pool, real_pool, save_pool

SIZE = 64


def main() -> None:
    """Parse the command line and run the stages that WORK does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", required=True, help="of real crops; only its training part is read")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is kept between runs")
    parser.add_argument("--output", required=True, type=Path, help="folder of the finished model")
    parser.add_argument("--patches", type=int, default=9000, help="that the autoencoder is trained on")
    parser.add_argument("--autoencoder-minutes", type=float, default=20)
    parser.add_argument("--phantoms", type=int, default=6000)
    parser.add_argument("--phantom-share", type=float, default=0.4, help="of each batch of the diffusion stage")
    parser.add_argument("--minutes", type=float, default=60, help="of the diffusion stage")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    items = load_datalist(arguments.datalist, "training", drop_padded=True)
    vae = autoencoder_stage(arguments, items)
    pools = [pool_stage(arguments, vae, "real", items), pool_stage(arguments, vae, "phantom", items)]
    trainer = JointTrainer(vae.config.latent_channels, SIZE // 4, seed=arguments.seed)
    checkpoint = arguments.work / "diffusion.pt"
    if checkpoint.is_file():
        trainer.load(checkpoint)
    shares = [1 - arguments.phantom_share, arguments.phantom_share]
    trainer.train(pools, shares, arguments.minutes, checkpoint, arguments.batch_size)
    save_base_model(arguments.output, trainer, vae, card(arguments, len(items), trainer.step))
    print(f"wrote {arguments.output} after {trainer.step} steps")


def autoencoder_stage(arguments: argparse.Namespace, items: list) -> AutoencoderKL:
    """The autoencoder, from WORK or trained."""
    folder = arguments.work / "vae"
    if not folder.is_dir():
        patches = crop_patches(items, arguments.patches, SIZE, arguments.seed)
        train_autoencoder(patches, arguments.autoencoder_minutes, seed=arguments.seed).save_pretrained(folder)
    return freeze(AutoencoderKL.from_pretrained(folder))


def pool_stage(arguments: argparse.Namespace, vae: AutoencoderKL, kind: str, items: list) -> LatentPool:
    """Encoded images of one kind; the phantoms are kept in WORK, drawing them takes minutes."""
    if kind == "real":
        pool = real_pool(items, SIZE)
    else:
        file = arguments.work / f"phantoms_{arguments.phantoms}.pt"
        if not file.is_file():
            save_pool(phantom_pool(arguments.phantoms, SIZE, arguments.seed), file)
        pool = load_pool(file)
    return encode_pool(vae, *pool)


def card(arguments: argparse.Namespace, nodules: int, steps: int) -> str:
    """The model's README."""
    return CARD.format(nodules=nodules, steps=steps, **vars(arguments))


CARD = """\
---
license: apache-2.0
---
# Small base model for chest CT nodule images

Stable Diffusion's classes and folder layout at a hundredth of its size, for 64 x 64 regions of interest, trained from
scratch by `scripts/train_tiny_base.py`. A first version: it shows that the pipeline works from end to end and gives
nodule-like pictures; it is not a substitute for Stable Diffusion. For research only; not for diagnosis.

- Autoencoder: trained on {patches} patches of the training volumes.
- U-Net (v-prediction, zero terminal SNR), text encoder: {steps} steps of batch {batch_size} on {nodules} real nodules
  (the training part of a patient-disjoint 7:2:1 split) and {phantoms} phantoms ({phantom_share:.0%} of each batch).
- Data: LIDC-IDRI, CC BY 3.0. Armato SG III et al. (2015), doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato SG III et al.
  (2011), Med Phys 38:915-931; Clark K et al. (2013), J Digit Imaging 26:1045-1057.
- Vocabulary: CLIP's, as open_clip carries it (MIT licence).
"""


if __name__ == "__main__":
    show_input_errors()
    main()
