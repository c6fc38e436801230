"""How a configuration's handler list takes handlers that are defined elsewhere in it, or that stand together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine


class AttachHandlers:
    """Attach handlers in order; together they can be switched off in one place.

    MONAI's ``check_properties`` takes every member of a training workflow's handler list for a dictionary with
    ``_target_``, and fails on a reference such as ``"@ema"``: in here references may stand.

    Args:
        handlers: each with a method ``attach``; None, as a disabled component is, for nothing.
    """

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = [handler for handler in handlers if handler is not None]

    def attach(self, engine: Engine) -> None:
        """Attach them to ``engine``."""
        for handler in self.handlers:
            handler.attach(engine)
