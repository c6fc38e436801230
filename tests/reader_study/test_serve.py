"""The server as a process: several readers at once over HTTP, and a power cut in the middle."""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from study_material import SMALL, form, links_of
from warm import run_python

pytest.importorskip("fastapi", reason="the web application needs the extra reader-study")

import uvicorn

from nodule_plugin.reader_study import serve as serving
from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.design import DesignedStudy
from nodule_plugin.reader_study.seal import open_key
from nodule_plugin.reader_study.study import load_study
from nodule_plugin.reader_study.web import HEADERS

STEPS = SMALL.cases * 3 + SMALL.repeats + SMALL.practice


def start(designed: DesignedStudy, port: int = 0, **settings: Any) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "nodule_plugin.reader_study", "serve", str(designed.study), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings)
    assert process.stdout is not None
    return process, process.stdout.readline().split(" at ")[1].strip()


def send(address: str, fields: dict[str, str]) -> dict[str, str]:
    data = urllib.parse.urlencode(fields).encode()
    request = urllib.request.Request(address, data, {"Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return dict(json.load(answer))


def read(url: str, link: str, confirmed: dict[int, int]) -> None:
    """Answer one image after the other until all are done or the server is gone; note what it confirmed."""
    for number in range(len(confirmed) + 1, STEPS + 1):
        realism = 1 + number % 5
        try:
            send(f"{url}{link}/{number}", form(realism) | {"submission": str(number)})
        except (OSError, http.client.HTTPException):
            return
        confirmed[number] = realism


def test_nothing_confirmed_is_lost_when_the_server_is_killed(designed: DesignedStudy) -> None:
    links = links_of(designed)
    confirmed: list[dict[int, int]] = [{} for _ in links]
    process, url = start(designed)
    try:
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(read, url, *pair) for pair in zip(links, confirmed)]
            while sum(map(len, confirmed)) < STEPS and not all(job.done() for job in running):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        process.wait()
        before = [dict(found) for found in confirmed]
        assert STEPS <= sum(map(len, before)) < 3 * STEPS
        assert_stored(designed, before)

        process, url = start(designed)
        # What was sent when the power went may have been stored unconfirmed: sending it again makes no second row.
        for pair in zip(links, confirmed):
            read(url, *pair)
    finally:
        process.kill()
        process.wait()
    assert [len(found) for found in confirmed] == [STEPS] * 3
    assert_stored(designed, confirmed)
    study = load_study(designed.study)
    key = open_key(designed.key, study).answers_key
    assert AnswerStore(study.answers_file, study.content["id"]).verify(key).rows == 3 * STEPS


def assert_stored(designed: DesignedStudy, confirmed: list[dict[int, int]]) -> None:
    study = load_study(designed.study)
    store = AnswerStore(study.answers_file, study.content["id"], create=False)
    store.verify()
    for reader, found in zip(study.readers, confirmed):
        rows = store.of_reader(reader)
        for number, realism in found.items():
            (row,) = rows[study.sequences[reader][number - 1].image]
            assert row.answer["realism"] == realism


def test_wrong_folders_and_taken_ports_are_named(designed: DesignedStudy, tmp_path: Path) -> None:
    def errors(*arguments: str) -> str:
        command = [sys.executable, "-m", "nodule_plugin.reader_study", "serve", *arguments]
        result = run_python(command, tmp_path)
        assert result.returncode == 1
        return result.stderr

    assert errors(str(tmp_path)).startswith(f"error: {tmp_path / 'study.json'}: cannot be read")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen at 127.0.0.1:{port}" in errors(str(designed.study), "--port", port)


HALF = b"GET /r/x HTTP/1.1\r\nHost: x\r\nX: "


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


def test_half_sent_requests_keep_nobody_out(designed: DesignedStudy) -> None:
    """More of them than the server may open files; readers are served meanwhile, and nothing fills the log."""
    process, url = start(designed, stderr=subprocess.PIPE, preexec_fn=few_files)
    host, port = urllib.parse.urlsplit(url).hostname, urllib.parse.urlsplit(url).port
    assert host is not None
    assert port is not None
    half: list[socket.socket] = []
    try:
        for _ in range(130):
            half.append(socket.create_connection((host, port), timeout=5))
            half[-1].sendall(HALF)
        link = links_of(designed)[0]
        with urllib.request.urlopen(f"{url}{link}/1", timeout=10) as answer:
            assert answer.status == 200
        assert send(f"{url}{link}/1", form()) == {"next": f"{link}/2"}
        assert sum(is_open(connection) for connection in half) < 100 // 4
    finally:
        for connection in half:
            connection.close()
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert log == ""


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(1000):
            continue
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@pytest.fixture
def server(designed: DesignedStudy, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server in this process, which gives a client half a second; its address."""
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.5)
    running: list[uvicorn.Server] = []
    listening: list[tuple[str, int]] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        running.append(server)
        listening.append(sockets[0].getsockname())
        asyncio.run(server.serve(sockets))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(uvicorn.Server, "capture_signals", lambda server: nullcontext())
    thread = Thread(target=serving.serve, args=(designed.study, "127.0.0.1", 0), daemon=True)
    thread.start()
    while not (running and running[0].started):
        time.sleep(0.01)
    yield listening[0]
    running[0].should_exit = True
    thread.join()


@pytest.mark.parametrize(
    "sent", [b"", HALF, b"POST /r/x/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx="], ids=["none", "head", "body"]
)
def test_a_request_that_does_not_come_is_not_waited_for(server: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(server, timeout=10) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        for _ in range(20):  # a byte now and then gives no more time
            with suppress(OSError):
                connection.sendall(b"x" if sent else b"")
            if not is_open(connection):
                break
            time.sleep(0.25)
        assert 0.3 < time.monotonic() - started < 4


def test_what_is_no_request_gets_the_policy_too(server: tuple[str, int]) -> None:
    with socket.create_connection(server, timeout=10) as connection:
        connection.sendall(b"rubbish\r\n\r\n")
        answer = connection.makefile("rb").read().decode().lower()
    assert answer.startswith("http/1.1 400 ")
    assert all(f"{name.lower()}: {value.lower()}" in answer for name, value in HEADERS.items())


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(server: tuple[str, int]) -> None:
    """Head and body are sent apart: with Nagle's algorithm every answer on a kept connection takes 40 ms more."""
    connection = http.client.HTTPConnection(*server, timeout=10)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        connection.request("GET", "/static/icon.png")
        connection.getresponse().read()
        times.append(time.perf_counter() - started)
    connection.close()
    assert min(times) < 0.03
