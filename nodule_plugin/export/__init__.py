"""The ways out: a fine-tuned model, and the pairs it learnt from, in the forms that other programs read."""

from __future__ import annotations
