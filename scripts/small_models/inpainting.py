"""The small inpainting model: Stable Diffusion's classes, several slices at once, at a scanner's own pixels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.network import PATCH, PixelAutoencoder
from small_models.base_model import TEXT_WIDTH, save_base_model

GRID = Grid(spacing_mm=(2.0, 0.7, 0.7), shape=(10, 40, 40), window_hu=(-1024, 976))
"""20 x 28 x 28 mm. LIDC-IDRI's median pixel has 0.7 mm; its slices lie 1.25 or 2.5 mm apart in most series, and 2 mm
is between. The window leaves lung's noise below and calcification above: nothing need be saved for the eye."""
SKETCH, SHIFT, SCALING = -0.05, 0.0, 4.6
"""What a nodule is sketched with (-74 HU); shift and scaling of the latents, so that they are about standard normal."""

PREDICTION_TYPE = "sample"
"""What the U-Net predicts is smooth. Velocity holds the noise of every pixel, which a short training does not learn to
pass on: after 350 steps what it painted was grain."""


def save_inpainting_model(folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, card: str) -> None:
    """Write a model that :class:`nodule_plugin.insertion.inpainter.NoduleInpainter` reads.

    Args:
        folder: replaced as a whole.
        unet, text_encoder: trained or not.
        card: text of its README.md.
    """
    vae = PixelAutoencoder(GRID.shape[0], SHIFT, SCALING, SKETCH)
    parts = {"vae": vae, "text_encoder": text_encoder, "unet": unet}
    save_base_model(folder, parts, card, {"grid.json": asdict(GRID)}, PREDICTION_TYPE)


def build_inpainting_unet() -> UNet2DConditionModel:
    """An untrained U-Net of 5 million parameters whose channels are slices, told the nodule's diameter beside."""
    slices, latents, widths = GRID.shape[0], GRID.shape[0] * PATCH**2, (64, 96, 128)
    return UNet2DConditionModel(
        sample_size=[side // PATCH for side in GRID.shape[1:]],
        in_channels=2 * latents + slices,
        out_channels=latents,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=tuple(width // 32 for width in widths),
        cross_attention_dim=TEXT_WIDTH,
        class_embed_type="timestep",
        use_linear_projection=True,
    )
