"""The small stand-in models that the project trains itself, for machines without a GPU or a network."""

from __future__ import annotations
