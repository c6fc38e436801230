"""From LIDC-IDRI to nodules: annotations, their consensus, and where their slices lie."""

from __future__ import annotations
