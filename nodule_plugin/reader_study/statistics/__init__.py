"""The statistics of a reader study: arrays in, numbers out. Readers and cases are random samples throughout."""

from __future__ import annotations
