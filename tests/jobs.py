"""Functions that other processes can import, for tests of who works."""

from __future__ import annotations

import os
import time

from nodule_plugin.errors import InputError


def slow(number: int) -> tuple[int, int]:
    """The number and the process; later jobs are often done earlier."""
    time.sleep(0.02 if number % 3 else 0.06)
    return number, os.getpid()


def fails_at_3(number: int) -> int:
    """An error that a user can mend."""
    if number == 3:
        raise InputError("3.xml: not well-formed")
    return number
