"""A blinded study in which readers score real and generated images: sealed design, web pages, statistics, planning."""

from __future__ import annotations
