"""How a configuration's handler list takes a handler that is defined elsewhere in it."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine


class AttachHandler:
    """Attach a handler that the configuration defines elsewhere.

    MONAI's ``check_properties`` takes every member of a training workflow's handler list for a dictionary with
    ``_target_``, and fails on a reference such as ``"@ema"``.

    Args:
        handler: with a method ``attach``.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Attach it to ``engine``."""
        self.handler.attach(engine)
