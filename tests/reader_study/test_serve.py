"""The server as a process: several readers at once over HTTP, and a power cut in the middle."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from study_material import SMALL, form, links_of

pytest.importorskip("fastapi", reason="the web application needs the extra reader-study")

from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.design import DesignedStudy
from nodule_plugin.reader_study.study import load_study

STEPS = SMALL.cases * 3 + SMALL.repeats + SMALL.practice


def start(designed: DesignedStudy, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "nodule_plugin.reader_study", "serve", str(designed.study), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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
    assert AnswerStore(study.answers_file, study.content["id"]).verify() == 3 * STEPS


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
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 1
        return result.stderr

    assert errors(str(tmp_path)).startswith("error: study: ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen at 127.0.0.1:{port}" in errors(str(designed.study), "--port", port)
