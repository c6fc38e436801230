from __future__ import annotations

import subprocess
import sys

import pytest

from nodule_plugin.errors import InputError, find_input_error, unwrapped_input_errors

SCRIPT = """
from nodule_plugin.errors import InputError, show_input_errors
show_input_errors()
try:
    {raising}
except ValueError as error:
    raise RuntimeError("a component failed") from error
"""


def run(raising: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT.format(raising=raising)], capture_output=True, text=True)


def test_an_input_error_ends_the_process_with_one_line() -> None:
    done = run("raise InputError('file a, field b: 7 is no rating')")
    assert done.returncode == 1
    assert done.stderr == "error: file a, field b: 7 is no rating\n"


def test_other_errors_keep_their_traceback() -> None:
    done = run("raise ValueError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a bug" in done.stderr


def test_an_interruption_is_no_error() -> None:
    done = run("raise KeyboardInterrupt")
    assert done.returncode != 0
    assert done.stderr == "interrupted\n"


def test_the_first_input_error_of_a_chain_is_found() -> None:
    inner = InputError("inner")
    with pytest.raises(RuntimeError) as caught:
        try:
            raise inner
        except InputError as error:
            raise RuntimeError("outer") from error
    assert find_input_error(caught.value) is inner
    assert find_input_error(ValueError()) is None
    assert find_input_error(None) is None


@pytest.mark.parametrize(("raised", "expected"), [(InputError("a"), InputError), (ValueError("a"), RuntimeError)])
def test_an_input_error_is_raised_without_its_wrapping(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, unwrapped_input_errors():
        try:
            raise raised
        except ValueError as error:
            raise RuntimeError("a component failed") from error
    assert (caught.value is raised) == (expected is InputError)
