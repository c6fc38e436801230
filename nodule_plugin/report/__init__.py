"""Tables, figures and one self-contained page."""

from __future__ import annotations
