"""Latent diffusion: base models, the U-Net as a MONAI network, training and guided sampling."""

from __future__ import annotations
