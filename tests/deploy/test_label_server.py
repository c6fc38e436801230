"""The real server of MONAI Label on loopback, cut off from the internet: ``bash scripts/label_smoke.sh`` runs it."""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ct_hosts import FINDINGS, write_host
from tiny_inpainter import make_tiny_inpainter

if importlib.util.find_spec("monailabel") is None:
    pytest.skip("MONAI Label is not installed here; run scripts/label_smoke.sh", allow_module_level=True)

from nodule_plugin.data.datalist import build_datalist, write_datalist
from nodule_plugin.data.sources import load_nodules
from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.host import read_host

PROMPT = "The nodule is oval in shape, solid internally, with well-defined margins."
QUICK = {"prompt": PROMPT, "guidance_scale": 3, "seed": 7, "steps": 3}
NODULE = {"position": [30, 12, 2], "diameter_mm": 5, "findings": FINDINGS, "steps": 2, "seed": 7}
PATIENCE = 900
"""Seconds; a start takes half a minute where nothing else runs."""


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: Any
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Requests as curl would make them."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(
        self, path: str, content: bytes | None = None, kind: str = "application/json", method: str | None = None
    ) -> Answer:
        head = {"Content-Type": kind} if content else {}
        request = urllib.request.Request(self.url + path, content, head, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def infer(
        self, output: str | None = None, model: str = "text_to_image", source: str = "image=none", **params: Any
    ) -> Answer:
        form = urllib.parse.urlencode({"params": json.dumps(params)}).encode()
        query = source + (f"&output={output}" if output else "")
        return self.call(f"/infer/{model}?{query}", form, "application/x-www-form-urlencoded")

    def upload(self, archive: Path) -> str:
        """A session with what is in an archive; its id."""
        head = f'Content-Disposition: form-data; name="files"; filename="{archive.name}"'
        content = b"".join([b"--part\r\n", head.encode(), b"\r\n\r\n", archive.read_bytes(), b"\r\n--part--\r\n"])
        answer = self.call("/session/?uncompress=true", content, "multipart/form-data; boundary=part", "PUT")
        return str(answer.json()["session_id"])

    def train(self, query: str = "", **params: Any) -> Answer:
        return self.call(f"/train/text_to_image{query}", json.dumps(params).encode())


@contextmanager
def serving(folder: Path, app: Path, *conf: str, **environment: str) -> Iterator[Client]:
    """``monailabel start_server`` until it answers; every proxy leads nowhere, so that it cannot reach the internet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "tmp").mkdir()
    command = [sys.executable, "-c", "from monailabel.main import Main; Main().run()", "start_server", "--app", app]
    command += ["--studies", folder / "studies", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in zip(conf[::2], conf[1::2]):
        command += ["--conf", name, value]
    nowhere = {f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")}
    local = {
        "NO_PROXY": "127.0.0.1",
        "TMPDIR": str(folder / "tmp"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **nowhere, **local, **environment}
        )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        until = time.monotonic() + PATIENCE
        while not _answers(client):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.5)
        yield client
    finally:
        process.terminate()
        process.wait(60)


def _answers(client: Client) -> bool:
    try:
        return client.call("/info/").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app, as a user copies it, and a studies' folder."""
    folder = tmp_path_factory.mktemp("label")
    found = importlib.util.find_spec("nodule_plugin.deploy.label_app")
    assert found is not None
    assert found.origin is not None
    shutil.copytree(Path(found.origin).parent, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    nodules = load_nodules("phantom", phantom_dir=folder / "studies" / "phantom", phantom_nodules=16)
    write_datalist(build_datalist(nodules), folder / "studies" / "datalist.json")
    write_host(folder / "studies" / "chest")
    return folder


@pytest.fixture(scope="module")
def bundle(repository: Path) -> Path:
    return repository / "bundle"


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_inpainter(tmp_path_factory.mktemp("inpainter"), Grid((2.0, 1.0, 1.0), (8, 16, 16), (-1024, 976)))


@pytest.fixture(scope="module")
def client(folder: Path, bundle: Path, inpainter: Path) -> Iterator[Client]:
    with serving(folder, folder / "app", "bundle", str(bundle), "inpainter", str(inpainter)) as client:
        yield client


def test_info_lists_the_settings(client: Client, bundle: Path) -> None:
    info = client.call("/info/").json()
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert (info["name"], info["version"]) == (metadata["name"], metadata["version"])
    assert list(info["models"]) == ["text_to_image", "insert_nodule"]
    assert list(info["trainers"]) == ["text_to_image"]
    config = info["models"]["text_to_image"]["config"]
    assert {name: type(config[name]) for name in ("prompt", "guidance_scale", "seed", "steps")} == {
        "prompt": str,
        "guidance_scale": float,
        "seed": int,
        "steps": int,
    }
    assert info["models"]["text_to_image"]["type"] == "others"
    assert info["trainers"]["text_to_image"]["config"]["max_epochs"] > 0
    assert info["models"]["insert_nodule"]["config"]["result"] == ["volume", "mask"]


def test_infer_returns_a_nodule_in_hounsfield_units(client: Client, tmp_path: Path) -> None:
    answer = client.infer("image", **QUICK)
    assert answer.status == 200, answer.content
    path = tmp_path / "nodule.nii.gz"
    path.write_bytes(answer.content)
    image: Any = nibabel.load(path)
    assert image.get_data_dtype() == np.int16
    assert image.shape == (64, 64, 1)
    assert image.header.get_zooms()[:2] == pytest.approx((20 / 64, 20 / 64))
    hu = np.asarray(image.dataobj)
    assert -1000 <= hu.min() < -300  # there is lung
    assert 400 >= hu.max() > -300  # and something denser than that
    assert b"SYNTHETIC" in image.header["descrip"].item()
    origin = json.loads(image.header.extensions[0].get_content())
    assert origin["request"]["prompt"] == PROMPT
    assert client.infer("image", **QUICK).content == answer.content
    assert client.infer("image", **{**QUICK, "seed": 8}).content != answer.content
    assert client.infer("image", **{**QUICK, "guidance_scale": 1}).content != answer.content


def test_infer_says_what_made_the_image(client: Client, bundle: Path) -> None:
    said = client.infer("json", **QUICK).json()
    assert said["synthetic"] is True
    assert said["model"]["weights_sha256"] == hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert said["num_inference_steps"] == 3
    assert (said["image"]["prompt"], said["image"]["guidance_scale"], said["image"]["seed"]) == (PROMPT, 3, 7)


def test_infer_can_return_both_and_leaves_no_files(client: Client, folder: Path) -> None:
    answer = client.infer(**QUICK)
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + answer.content)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    assert json.loads(parts["params"].get_payload(decode=True))["synthetic"] is True
    assert parts["image"].get_payload(decode=True) == client.infer("image", **QUICK).content
    until = time.monotonic() + 30
    while (left := [path.name for path in (folder / "tmp").glob("*nodule*")]) and time.monotonic() < until:
        time.sleep(0.2)  # they are removed once they are sent
    assert left == []


def test_the_client_of_monai_label_takes_it(client: Client, tmp_path: Path) -> None:
    from monailabel.client import MONAILabelClient

    file, said = MONAILabelClient(client.url, str(tmp_path)).infer("text_to_image", "none", QUICK)
    assert Path(file).read_bytes() == client.infer("image", **QUICK).content
    assert said["image"]["prompt"] == PROMPT


def test_what_is_not_given_is_as_info_says(client: Client) -> None:
    config = client.call("/info/").json()["models"]["text_to_image"]["config"]
    image = client.infer("json", steps=1).json()["image"]
    assert {name: image[name] for name in ("prompt", "guidance_scale", "seed")} == {
        name: config[name] for name in ("prompt", "guidance_scale", "seed")
    }
    assert client.infer("json", **{**config, "steps": 1}).status == 200  # lists of choices too, as a viewer sends them


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prompt": ""}, "prompt: a text that is not empty"),
        ({"prompt": "nodule " * 99}, "tokens, and the text encoder takes 77; shorten it"),
        ({"prompt": "a\nb"}, "prompt: one line makes one image"),
        ({"guidance_scale": -1}, "guidance_scale: a number of 0 or above is needed, not -1"),
        ({"guidance_scale": "high"}, "guidance_scale: 'high' is not a number"),
        ({"seed": 1.5}, "seed: a whole number"),
        ({"steps": 100000}, "steps: a whole number from 1 to 1000"),
        ({"weights": "../../secret"}, "weights: there are none of the name '../../secret'; choose one of bundle, base"),
        ({"device": "$1 / 0"}, "device: cpu, cuda"),
        ({"save_label": True}, "save_label: what is synthetic is no label"),
    ],
)
def test_what_cannot_be_used_is_named(client: Client, params: dict[str, Any], message: str) -> None:
    answer = client.infer("json", **{**QUICK, **params})
    assert answer.status == 422
    assert message in answer.json()["detail"]


def test_insert_returns_the_series_with_a_nodule(client: Client, folder: Path, tmp_path: Path) -> None:
    files = {}
    for result in ("volume", "mask"):
        answer = client.infer("image", "insert_nodule", "image=chest", **NODULE, result=result)
        assert answer.status == 200, answer.content
        (tmp_path / f"{result}.nii.gz").write_bytes(answer.content)
        image: Any = nibabel.load(tmp_path / f"{result}.nii.gz")
        assert b"SYNTHETIC" in image.header["descrip"].item()
        files[result] = np.asarray(image.dataobj).transpose(2, 1, 0)
    host = read_host(folder / "studies" / "chest")
    voxel = tuple(np.rint(host.geometry.to_voxel((30, 12, 2))).astype(int))
    assert files["mask"][voxel] == 1
    changed = files["volume"] != host.hu
    assert changed[files["mask"] > 0].mean() > 0.9
    said = client.infer("json", "insert_nodule", "image=chest", **NODULE).json()
    assert (said["synthetic"], said["changed_voxels"]) == (True, changed.sum())
    assert said["nodules"][0]["findings"]["texture"] == FINDINGS["texture"]
    archive = shutil.make_archive(str(tmp_path / "chest"), "zip", folder / "studies" / "chest")
    source = f"session_id={client.upload(Path(archive))}"
    again = client.infer("image", "insert_nodule", source, **NODULE)
    assert again.content == (tmp_path / "volume.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("image", "params", "message"),
    [
        ("none", {}, "image: a CT series as DICOM is needed, not 'none'"),
        ("/etc", {}, "image: a CT series as DICOM is needed, not '/etc'"),
        ("chest", {"image": "/etc", "session": {"image": "/etc"}}, "image: a CT series as DICOM is needed, not '/etc'"),
        ("phantom", {}, "series: "),
        ("chest", {"position": "$1 / 0"}, "is not a number"),
        ("chest", {"position": [0, 0, 400]}, "is outside the series"),
        ("chest", {"result": "both"}, "result: choose one of volume, mask"),
    ],
)
def test_what_cannot_be_inserted_is_named(client: Client, image: str, params: dict[str, Any], message: str) -> None:
    answer = client.infer("json", "insert_nodule", f"image={image}", **{**NODULE, **params})
    assert answer.status == 422, answer.content
    assert message in answer.json()["detail"]


def test_a_model_that_is_not_there(client: Client) -> None:
    answer = client.infer("json", model="segmentation")
    assert answer.status == 404
    assert "segmentation" in answer.json()["detail"]


def test_a_prompt_is_not_evaluated(client: Client) -> None:
    assert client.infer("json", **{**QUICK, "prompt": "$1 / 0"}).json()["image"]["prompt"] == "$1 / 0"


def train_to_the_end(client: Client, **params: Any) -> dict[str, Any]:
    """What the status says once it neither waits nor runs."""
    assert client.train(**params).json()["status"] == "SUBMITTED"
    until = time.monotonic() + PATIENCE
    while (task := client.call("/train/").json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < until, task
        time.sleep(1)
    return dict(task)


def test_the_status_of_a_training_says_what_cannot_be_used(client: Client) -> None:
    task = train_to_the_end(client, max_epochs=0)
    assert task["status"] == "ERROR"
    assert "422: max_epochs: a whole number from 1" in task["details"][-1]


def test_train_fine_tunes_and_its_model_generates(client: Client) -> None:
    task = train_to_the_end(client, run="first", max_epochs=1, batch_size=8)
    assert task["status"] == "DONE", task
    [result] = [json.loads(line.split("Result: ")[1]) for line in task["details"] if "Result: " in line]
    assert client.call("/info/").json()["train_stats"]["text_to_image"] == {"first": result}
    weights = Path(result["model"]).read_bytes()
    assert hashlib.sha256(weights).hexdigest() == result["weights_sha256"]
    assert torch.load(result["model"], weights_only=True)
    tuned = client.infer("json", **QUICK, weights="first").json()
    assert tuned["model"]["weights_sha256"] == result["weights_sha256"]
    assert client.infer("image", **QUICK, weights="first").content != client.infer("image", **QUICK).content


def test_a_training_without_data_is_refused_where_one_waits_for_it(client: Client, folder: Path) -> None:
    (folder / "studies" / "datalist.json").unlink()
    answer = client.train("?run_sync=true", max_epochs=1)
    assert answer.status == 422
    assert answer.json()["detail"].startswith(f"datalist: there is no file {folder}/studies/datalist.json; write it")


NO_ZOO = """
import json, requests
def send(self, request, **options):
    # The zoo's list, empty; there is nothing else to be had.
    assert request.url.endswith("/model-zoo/dev/models/model_info.json"), request.url
    answer = requests.Response()
    answer.status_code, answer._content, answer.url = 200, b"{}", request.url
    return answer
requests.adapters.HTTPAdapter.send = send
"""


@pytest.mark.parametrize("source", ["ngc", "monaihosting"])
def test_the_stock_app_loads_the_bundle(bundle: Path, tmp_path: Path, source: str) -> None:
    """From its own folder, without asking the zoo (ngc), and with an empty answer from the zoo (its default)."""
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", tmp_path / "app")
    ignored = shutil.ignore_patterns("output", "__pycache__")
    shutil.copytree(bundle, tmp_path / "app" / "model" / "nodule_text_to_image", ignore=ignored)
    environment = {}
    if source == "monaihosting":
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(NO_ZOO)
        environment["PYTHONPATH"] = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    conf = ["models", "nodule_text_to_image", "zoo_source", source, "sam2", "false"]
    with serving(tmp_path, tmp_path / "app", *conf, **environment) as client:
        info = client.call("/info/").json()
    assert list(info["models"]) == list(info["trainers"]) == ["nodule_text_to_image"]
    displayed = json.loads((bundle / "configs" / "inference.json").read_text())["displayable_configs"]
    config = info["models"]["nodule_text_to_image"]["config"]
    assert {name: config[name] for name in displayed} == displayed


def test_this_is_the_environment_that_the_extra_promises() -> None:
    versions = {name: importlib.metadata.version(name) for name in ("monailabel", "numpy", "pydicom")}
    assert versions["monailabel"].startswith("0.8.5")
    assert versions["numpy"].startswith("1.")
    assert versions["pydicom"].startswith("2.")
