"""Python commands in processes that need not import PyTorch and MONAI anew: that takes longer than most commands do.

A server (``multiprocessing``'s fork server, one for each process of the tests) imports them once; every command is a
child of it: a process of its own, with its own arguments, environment, folder and streams. Tests that are about the
start itself (launchers, a clean environment) start Python as users do.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

IMPORTED = [
    "monai.bundle",
    "monai.engines",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "nodule_plugin.diffusion.sampling",
    "nodule_plugin.handlers.generation",
    "nodule_plugin.handlers.validation",
    "nodule_plugin.handlers.evaluation",
]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(IMPORTED)


def run_python(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)`` gives.

    Args:
        command: ``[sys.executable, "-m", module, ...]`` or ``[sys.executable, script, ...]``.
        cwd: folder that it runs in.
        environment: all variables; the tests' own by default. Those that only the start of Python reads have no effect.
        timeout: in seconds.

    Raises:
        subprocess.TimeoutExpired: if it took longer; it is then killed.
    """
    return WarmProcess(command, cwd, environment).finish(timeout)


def run_ranks(
    count: int, command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 600
) -> list[subprocess.CompletedProcess[str]]:
    """A command in as many processes as torchrun starts of it on one machine, with the variables that it gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    given = dict(os.environ if environment is None else environment) | shared
    own = [given | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(count)]
    processes = [WarmProcess(command, cwd, variables) for variables in own]
    return [process.finish(timeout) for process in processes]


class WarmProcess:
    """A command that has been started, see :func:`run_python`."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None) -> None:
        assert command[0] == sys.executable, command
        self.command = list(command)
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [str(Path(self._folder.name) / name) for name in ("stdout", "stderr")]
        variables = dict(os.environ if environment is None else environment)
        self._child = _FORKS.Process(target=_main, args=(self.command[1:], str(cwd), variables, self._streams))
        self._child.start()

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._child.exitcode

    def children(self) -> list[int]:
        """The processes that it has started and that run, the first one first."""
        own = self._child.pid
        return sorted(map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()))

    def send_signal(self, number: int) -> None:
        """To a process that runs."""
        assert self._child.pid is not None
        os.kill(self._child.pid, number)

    def finish(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for its end; see :func:`run_python`."""
        self._child.join(timeout)
        if late := self._child.is_alive():
            self._child.kill()
            self._child.join()
        with self._folder:
            texts = [Path(stream).read_text(encoding="utf-8") for stream in self._streams]
        if late:
            raise subprocess.TimeoutExpired(self.command, timeout, *texts)
        return subprocess.CompletedProcess(self.command, self._child.exitcode or 0, *texts)


def _main(words: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Be ``python WORDS`` in a child of the fork server."""
    gc.freeze()  # what was imported is never garbage
    multiprocessing.set_start_method(None, force=True)  # the interpreter's own, not how this process came to be
    for descriptor, stream in enumerate(streams, start=1):
        with Path(stream).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background are told to ignore
    sys.path[0:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, cwd)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:  # as the interpreter does, by whatever hook the program has set
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
