"""Processes within limits of time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TAIL = 4000


class NotFinished(Exception):
    """A process failed or was cut; the text's first line says how."""


class Clock:
    """The time that all processes together may take, and who is running.

    Args:
        seconds: from now; infinite for no limit.
    """

    def __init__(self, seconds: float = float("inf")) -> None:
        self.started = time.monotonic()
        self._end = self.started + seconds
        self._running: set[subprocess.Popen] = set()

    @property
    def left(self) -> float:
        """Seconds; 0 where there are none."""
        return max(0.0, self._end - time.monotonic())

    def stop(self, *_: Any) -> None:
        """End what is running and let nothing else begin; a handler of signals."""
        self._end = time.monotonic()
        for process in list(self._running):
            _kill(process)

    def run(
        self,
        command: Sequence[str],
        seconds: float = float("inf"),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Run a program to its end, or end it, with all that it has started, when its time is over.

        Args:
            command: program and arguments.
            seconds: its time, if so much is left.
            environment: of the program; by default this process's own.
            folder: where it runs.

        Raises:
            NotFinished: if it was cut, or ended with an error; with the end of what it printed.
        """
        limit = min(seconds, self.left)
        if limit <= 0:
            raise NotFinished("no time was left")
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
            )
            self._running.add(process)
            try:
                code = process.wait(None if limit == float("inf") else limit)
            except subprocess.TimeoutExpired:
                raise NotFinished(f"cut after {limit:.0f} s") from None
            finally:
                self._running.discard(process)
                _kill(process)
                process.wait()
            if code == 0:
                return
            if self.left == 0:
                raise NotFinished("cut: the whole time was over")
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - _TAIL))
            tail = output.read().strip()
            last = tail.rpartition("\n")[2]
            raise NotFinished(f"failed with status {code}: {last}\n{' '.join(command)}\n{tail}")


def _kill(process: subprocess.Popen) -> None:
    """End a process's session: compilers and data loaders too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
