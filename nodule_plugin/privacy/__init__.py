"""The audit of a trained generator: reference models, attacks, a control that must be heard, extraction."""

from __future__ import annotations
