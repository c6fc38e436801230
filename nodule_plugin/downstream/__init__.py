"""What generated images are good for: classifiers of findings that learn from them, tested on real images."""

from __future__ import annotations
