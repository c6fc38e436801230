"""Ignite handlers: the wiring of training, generation and evaluation. No maths."""

from __future__ import annotations
