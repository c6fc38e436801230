"""Where many small independent jobs run: in this process, in several of this machine, or on a cluster.

The jobs themselves go through joblib, so that ``joblib.parallel_config`` decides for whoever calls the package from
Python. :func:`workers` is that decision made from three settings, for configurations and command lines.
:func:`wait_passively` and :func:`fit_threads` say on how many threads each of them computes.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import joblib
from joblib import Parallel, delayed
from threadpoolctl import ThreadpoolController, threadpool_limits

from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed

Job = TypeVar("Job")
Result = TypeVar("Result")

_ANSWER_S = 10
"""Seconds that a cluster has to answer."""
_LOAD = Path("/proc/loadavg")
_LOAD_SAMPLES, _LOAD_PAUSE_S = 5, 0.02
_ROUND = 32
"""Jobs for each worker between two reports of a backend that reports only when all are done (Ray)."""


@contextmanager
def workers(num_workers: int = 1, backend: str = "processes", cluster_address: str | None = None) -> Iterator[None]:
    """Let joblib's ``Parallel`` use these workers within the block.

    Args:
        num_workers: how many to start on this machine, -1 for one for each processor. A cluster that is running already
            has its own.
        backend: a name in :data:`BACKENDS`: "processes" (joblib's own), "dask" or "ray".
        cluster_address: address of a running cluster: Dask's scheduler ("tcp://host:8786") or Ray's head
            ("host:6379", "ray://host:10001", "auto"). None starts a cluster on this machine for the time of the block.
            A cluster's workers need this package and see the dataset under the same path.

    Raises:
        InputError: if a setting is not one, the backend is not installed, or the cluster does not answer.
    """
    if backend not in BACKENDS:
        raise InputError(f"parallel: there is no {backend!r}; choose one of {', '.join(BACKENDS)}")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or (num_workers < 1 and num_workers != -1):
        raise InputError(f"num_workers: 1 or more is needed, or -1 for one for each processor; not {num_workers!r}")
    if cluster_address is not None and backend == "processes":
        raise InputError(
            f"cluster_address: {cluster_address} is of no use to parallel 'processes'; choose 'dask' or 'ray'"
        )
    count = joblib.cpu_count() if num_workers == -1 else num_workers
    with BACKENDS[backend](count, cluster_address):
        yield


def _processes(count: int, _address: str | None) -> AbstractContextManager[Any]:
    return joblib.parallel_config(backend="loky", n_jobs=count)


@contextmanager
def _dask(count: int, address: str | None) -> Iterator[None]:
    check_installed("distributed", "dask")
    distributed = importlib.import_module("distributed")
    with ExitStack() as stack:
        if address is None:
            # No dashboard: it would take a port, and ask for a package that nothing else here needs.
            local = distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)
            client = stack.enter_context(distributed.Client(stack.enter_context(local)))
        else:
            try:
                client = stack.enter_context(distributed.Client(address, timeout=_ANSWER_S))
                client.wait_for_workers(1, timeout=_ANSWER_S)
            except (OSError, ValueError) as error:  # TimeoutError is an OSError
                reason = " ".join(str(error).split())
                raise InputError(f"cluster_address: no Dask cluster with workers at {address} ({reason})") from error
        with joblib.parallel_config(backend="dask", client=client):
            yield


@contextmanager
def _ray(count: int, address: str | None) -> Iterator[None]:
    check_installed("ray", "ray")
    ray = importlib.import_module("ray")
    with ExitStack() as stack:
        if not ray.is_initialized():
            where = {"num_cpus": count, "include_dashboard": False} if address is None else {"address": address}
            try:
                if address is not None:
                    _check_port(address.removeprefix("ray://"))
                ray.init(log_to_driver=False, logging_level="ERROR", **where)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"cluster_address: no Ray cluster at {address} ({reason})") from error
            stack.callback(ray.shutdown)
        importlib.import_module("ray.util.joblib").register_ray()
        with joblib.parallel_config(backend="ray", n_jobs=int(ray.cluster_resources()["CPU"])):
            yield


def _check_port(address: str) -> None:
    """Whether anything listens at "host:port"; Ray would ask again for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), _ANSWER_S).close()


BACKENDS: dict[str, Callable[[int, str | None], AbstractContextManager[Any]]] = {
    "processes": _processes,
    "dask": _dask,
    "ray": _ray,
}
"""Who can do the work."""


def in_order(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int | None = None
) -> Generator[Result, None, None]:
    """``function`` of each job, in the order of ``jobs``, each as soon as it and those before it are done.

    NumPy computes on one thread meanwhile, here as in joblib's processes: the jobs' arrays are small, and beside other
    work a BLAS of two threads takes tens of times as long for them, since one spins while the other has no core.

    Args:
        function: must be importable by name, as processes and clusters need it.
        jobs: what it is called with.
        num_workers: processes; None leaves it to ``joblib.parallel_config``, and to this process where that is silent.
    """
    with threadpool_limits(1, user_api="blas"):
        try:
            results = Parallel(n_jobs=num_workers, return_as="generator")
        except ValueError:  # Ray's backend returns only lists
            yield from _in_rounds(function, iter(jobs))
        else:
            yield from results(delayed(function)(job) for job in jobs)


def _in_rounds(function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
    with Parallel() as parallel:
        size = _ROUND * parallel.n_jobs
        while round_ := list(islice(jobs, size)):
            try:
                yield from parallel(delayed(function)(job) for job in round_)
            except InputError as error:  # Ray's stand-in for it has a whole traceback for a message
                raise getattr(error, "cause", error) from None


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other. Call it before PyTorch is imported: it has no effect
    afterwards.

    By default they spin. Beside other work that costs many times the time of the computation itself: whenever one
    thread has no core, the others burn theirs until it has done its part.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def fit_threads() -> int:
    """Let PyTorch compute on as many threads as there are cores for this process, and return how many these are.

    Cores count that its affinity and its container's quota allow. Where its threads spin while they wait (see
    :func:`wait_passively`), only those of them that are free now. ``OMP_NUM_THREADS`` takes precedence.

    NumPy and SciPy get one: OpenBLAS's threads spin whatever OpenMP is told, and for matrices as small as an
    evaluation's they gain nothing (beside other work it took 240 s of processor time, and 71 s with one thread).
    ``OPENBLAS_NUM_THREADS`` takes precedence.
    """
    import scipy.linalg  # noqa: F401  # has an OpenBLAS of its own, which must be there to be told
    import torch  # only here: it must not be imported before wait_passively

    if "OPENBLAS_NUM_THREADS" not in os.environ:
        ThreadpoolController().select(internal_api="openblas").limit(limits=1)

    if "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), joblib.cpu_count())
        if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
            threads = min(threads, max(1, (os.cpu_count() or 1) - _busy_cores()))
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _busy_cores() -> int:
    """How many threads of the machine run beside the one that asks, in the middle of a few looks; 0 if not known."""
    running = []
    for _ in range(_LOAD_SAMPLES if _LOAD.is_file() else 0):
        running.append(int(_LOAD.read_text().split()[3].partition("/")[0]) - 1)
        time.sleep(_LOAD_PAUSE_S)
    return sorted(running)[len(running) // 2] if running else 0
