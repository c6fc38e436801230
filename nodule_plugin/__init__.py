"""From radiologists' findings to chest CT nodule images, as components for MONAI Bundles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import findings_to_prompt

if TYPE_CHECKING:
    from nodule_plugin.metrics.alignment import BiomedCLIPScorer

__version__ = "0.1.0"
__all__ = ["BiomedCLIPScorer", "Findings", "InputError", "findings_to_prompt"]

# Which peft imports, and which complains on some processors of a kernel for 4-bit weights that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Imported on demand: findings and prompts must not cost the seconds that torch and open_clip take to import.
    if name == "BiomedCLIPScorer":
        from nodule_plugin.metrics.alignment import BiomedCLIPScorer

        return BiomedCLIPScorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
