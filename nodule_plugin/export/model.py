"""What every export says, and whether it computes the same as its origin."""

from __future__ import annotations

import torch
from torch import Tensor

from nodule_plugin.diffusion.model import FineTunedModel
from nodule_plugin.diffusion.sampling import decode_latents
from nodule_plugin.errors import InputError

NOTICE = "What this model generates is SYNTHETIC. For research only; not a medical device, not for diagnosis."
TOLERANCE = 1e-4
"""The largest difference between what an export and what its origin compute that is accepted, absolute."""


def refuse_difference(model: FineTunedModel, copied: FineTunedModel) -> float:
    """Compare what the networks of an export, as it is read back, compute with what those of the model do.

    Returns:
        The largest absolute difference of U-Net, decoder and text encoder on random inputs.

    Raises:
        InputError: if it is more than :data:`TOLERANCE`.
    """
    inputs = _inputs(model)
    both = zip(_outputs(model, *inputs), _outputs(copied, *inputs))
    difference = max(float((one - other).abs().max()) for one, other in both)
    if not difference <= TOLERANCE:
        raise InputError(f"export: what was written computes other values, by {difference:.2g} (> {TOLERANCE})")
    return difference


def _inputs(model: FineTunedModel) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 1000, (1, model.tokenizer.model_max_length), generator=generator)
    return torch.randn(1, *model.latent_shape, generator=generator), tokens


@torch.no_grad()
def _outputs(model: FineTunedModel, latents: Tensor, tokens: Tensor) -> list[Tensor]:
    context = model.text_encoder(tokens).last_hidden_state
    prediction = model.network(latents, torch.tensor([500]), context)
    return [context, prediction, decode_latents(model.vae, latents)]
