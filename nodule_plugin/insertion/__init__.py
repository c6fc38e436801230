"""A nodule into a patient's CT."""

from __future__ import annotations
