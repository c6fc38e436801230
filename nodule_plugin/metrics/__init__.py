"""How good generated images are: the maths, with no engine in sight."""

from __future__ import annotations
