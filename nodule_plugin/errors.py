"""Errors that a user can mend, and how a command shows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class InputError(ValueError):
    """Something the user gave (a path, a file, a field, a setting) cannot be used.

    The message names the file, the field and the value, and says what to do.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """The first :class:`InputError` in a chain of causes, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def unwrapped_input_errors() -> Iterator[None]:
    """Raise the :class:`InputError` itself where MONAI's config parser has wrapped it in errors of its own."""
    try:
        yield
    except Exception as error:
        input_error = find_input_error(error)
        if input_error is None or input_error is error:
            raise
        raise input_error from error


def show_input_errors() -> None:
    """Let an uncaught :class:`InputError` end the process with one line instead of a chain of tracebacks.

    MONAI's config parser wraps whatever a component raises in errors of its own; the line that helps the user is then
    the innermost of several tracebacks. Commands and the bundle's configs (``initialize``) call this; importing the
    package does not. An interruption (Ctrl-C) is no error and shows one word. Every other exception keeps its
    traceback. The exit status stays 1, or the signal's.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        input_error = find_input_error(error)
        if input_error is not None:
            print(f"error: {input_error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook
