"""From nodules to tensors: the data list and its transforms."""

from __future__ import annotations
