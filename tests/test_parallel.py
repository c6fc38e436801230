from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import joblib
import jobs
import pytest
import torch
from jobs import fails_at_3, slow
from threadpoolctl import threadpool_info, threadpool_limits

from nodule_plugin import parallel as module
from nodule_plugin.errors import InputError
from nodule_plugin.parallel import BACKENDS, fit_threads, in_order, wait_passively, workers


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that are started find ``jobs``."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(jobs.__file__).parent), os.environ.get("PYTHONPATH", "")])
    )


def requires(backend: str) -> None:
    """Skip where the extra is not installed."""
    package = {"dask": "distributed", "ray": "ray"}.get(backend)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra {backend!r})")


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_come_in_order_whoever_works(backend: str) -> None:
    requires(backend)
    with workers(2, backend):
        results = list(in_order(slow, range(20)))
    assert [number for number, _ in results] == list(range(20))
    processes = {process for _, process in results}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_one_worker_is_this_process() -> None:
    with workers():
        assert {process for _, process in in_order(slow, range(3))} == {os.getpid()}


def test_joblibs_own_configuration_counts() -> None:
    with joblib.parallel_config(n_jobs=2):
        assert os.getpid() not in {process for _, process in in_order(slow, range(4))}
    assert {process for _, process in in_order(slow, range(4))} == {os.getpid()}


def test_a_running_dask_cluster_is_used_and_left_running() -> None:
    requires("dask")
    from dask.distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        for _ in range(2):
            with workers(1, "dask", cluster.scheduler_address):
                processes = {process for _, process in in_order(slow, range(12))}
            with Client(cluster) as client:
                assert processes == set(client.run(os.getpid).values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_comes_through_as_it_is(backend: str) -> None:
    requires(backend)
    with pytest.raises(InputError, match=r"3\.xml: not well-formed"), workers(2, backend):
        list(in_order(fails_at_3, range(5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "threads"), "parallel: there is no 'threads'; choose one of processes, dask, ray"),
        ((0,), "num_workers: 1 or more is needed, or -1 for one for each processor; not 0"),
        (("2",), "num_workers: .* not '2'"),
        ((1, "processes", "tcp://host:8786"), "cluster_address: tcp://host:8786 is of no use to parallel 'processes'"),
    ],
)
def test_settings_that_are_none(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message), workers(*arguments):
        pass


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_what_to_install(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package}: not installed; run pip install 'nodule-plugin\[{backend}\]'"
    with pytest.raises(InputError, match=message), workers(1, backend):
        pass


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    requires(backend)
    monkeypatch.setattr(module, "_ANSWER_S", 0.5)
    address = {"dask": "tcp://127.0.0.1:9", "ray": "127.0.0.1:9"}[backend]
    message = rf"cluster_address: no \w+ cluster .*{address} \("
    with pytest.raises(InputError, match=message), workers(1, backend, address):
        pass


def threads_of(monkeypatch: pytest.MonkeyPatch, cores: int, busy: int, **environment: str) -> int:
    """How many threads are taken where the process may use ``cores`` of eight."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(module.joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(module, "_busy_cores", lambda: busy)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        return fit_threads()
    finally:
        torch.set_num_threads(before)


def test_threads_follow_the_cores_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(monkeypatch, 4, 0) == 4
    assert threads_of(monkeypatch, 4, 3) == 4
    assert threads_of(monkeypatch, 4, 6) == 2
    assert threads_of(monkeypatch, 4, 20) == 1
    assert threads_of(monkeypatch, 4, 20, OMP_WAIT_POLICY="passive") == 4, "threads that sleep cost others nothing"
    assert threads_of(monkeypatch, 4, 20, OMP_NUM_THREADS="8") == 8, "who says so decides"


@pytest.mark.parametrize(("said", "threads"), [(None, {1}), ("2", {2})])
def test_openblas_does_not_spin(monkeypatch: pytest.MonkeyPatch, said: str | None, threads: set[int]) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", said)
    with threadpool_limits(2, user_api="blas"):
        threads_of(monkeypatch, 2, 0)
        found = {library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"}
    assert found == threads


def test_what_runs_beside_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_LOAD", tmp_path / "loadavg")
    assert module._busy_cores() == 0
    (tmp_path / "loadavg").write_text("0.24 0.63 1.34 4/212 4711\n")
    assert module._busy_cores() == 3


def test_waiting_is_left_to_who_has_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
