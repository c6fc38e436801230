from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodule_plugin.diffusion.model import FineTunedModel, Source
from nodule_plugin.errors import InputError
from nodule_plugin.export.networks import traced_networks
from nodule_plugin.playground import static
from nodule_plugin.playground.static import OWN_FILES, PACKAGES, vendor, write_static_page


@pytest.fixture
def tarballs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with packages of the pinned names and files, whose content is their name; they are pinned instead."""
    folder, pinned = tmp_path / "npm", []
    folder.mkdir()
    for package in PACKAGES:
        with tarfile.open(folder / package.tarball, "w:gz") as archive:
            for name in filter(None, (*package.files, package.licence)):
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(name)
                archive.addfile(member, io.BytesIO(name.encode()))
        digest = hashlib.sha512((folder / package.tarball).read_bytes()).digest()
        pinned.append(replace(package, integrity=base64.b64encode(digest).decode()))
    monkeypatch.setattr(static, "PACKAGES", tuple(pinned))
    return folder


def test_a_page_is_whole(quick_source: Source, tarballs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx, the extra of that name, is not installed")

    def save_network(network: Any, path: Path, *_: Any) -> None:  # which tests/export tries
        value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3])
        path.parent.mkdir(exist_ok=True)
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "same", [value], [value])), path)

    def write_onnx(model: FineTunedModel, folder: Path) -> None:
        for name in traced_networks(model):
            save_network(None, folder / f"{name}.onnx")

    monkeypatch.setattr(static, "write_onnx", write_onnx)
    monkeypatch.setattr(static, "save_network", save_network)
    page = tmp_path / "page"
    size = write_static_page(quick_source, page, npm_packages=tarballs)
    files = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    networks = {f"networks/{name}.onnx.packed" for name in ("unet", "quick", "decoder", "text_encoder")}
    vendored = {
        "vendor/onnxruntime-web/ort.wasm.bundle.min.mjs",
        "vendor/onnxruntime-web/ort-wasm-simd-threaded.wasm.packed",
        "vendor/tokenizers/tokenizers.min.mjs",
    }
    others = {"tokenizer.json.packed", "mark.bin.packed", "quick_mark.bin.packed", "model.json", "LICENSES.txt"}
    assert files == networks | vendored | others | set(OWN_FILES)
    assert size == sum((page / name).stat().st_size for name in files)
    network = onnx.load_model_from_string(gzip.decompress((page / "networks/unet.onnx.packed").read_bytes()))
    assert network.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    settings = json.loads((page / "model.json").read_text())
    assert settings["shape"] == [3, 8, 8]
    assert settings["notice"].startswith("Synthetic images")
    assert settings["mark"] is None  # of latents so small
    quick = settings["quick"]
    assert quick["label"] == "Quick: 4 steps, guidance 2 built in"
    assert quick["weights_sha256"] != settings["weights_sha256"]
    assert [len(schedule["timesteps"]) for schedule in quick["schedules"].values()] == [4] == [int(quick["steps"])]
    assert len(json.loads(gzip.decompress((page / "tokenizer.json.packed").read_bytes()))["model"]["vocab"]) == 49408
    licences = (page / "LICENSES.txt").read_text()
    assert all(text in licences for text in ("LIDC-IDRI, CC BY 3.0", "onnxruntime-web 1.", "MIT License"))


def test_a_package_that_was_changed_is_refused(tarballs: Path, tmp_path: Path) -> None:
    with (tarballs / PACKAGES[0].tarball).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"onnxruntime-web-.*\.tgz: its SHA-512 is not the pinned one"):
        vendor(tmp_path / "page", tarballs)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"not there; npm pack onnxruntime-web@"):
        vendor(tmp_path / "page", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm: not installed, .* give --npm-packages DIR"):
        vendor(tmp_path / "page")


TOKENS = """
import { readFileSync } from "node:fs";
const { Tokenizer } = await import(process.argv[2]);
const { tokens, config, prompts } = JSON.parse(readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(tokens, config);
console.log(JSON.stringify(prompts.map((prompt) => tokenizer.encode(prompt).ids)));
"""


def test_tokens_are_those_of_python(source: Source, tmp_path: Path) -> None:
    npm, node, package = shutil.which("npm"), shutil.which("node"), PACKAGES[1]
    if npm is None or node is None:
        pytest.skip("Node.js and its npm, which fetch and run the page's tokenizer, are not installed")
    command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    fetched = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch {package.name}: {fetched.stderr.strip()[-200:]}")
    with tarfile.open(tmp_path / package.tarball) as archive:
        archive.extractall(tmp_path, filter="data")
    model = static.load_model(source)
    prompts = ["", "The nodule is oval in shape.", "  Émigré's CT — 12 mm, 50%!!  ", "x" * 40, "肺 nodule 🫁"]
    given = {"tokens": static._tokenizer(model), "prompts": prompts}
    given["config"] = static.describe_model(model, "reference")["tokens"]["config"]
    (tmp_path / "tokens.mjs").write_text(TOKENS)
    command = [node, "tokens.mjs", str(tmp_path / "package" / package.files[0])]
    done = subprocess.run(command, cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [model.tokenizer(prompt).input_ids for prompt in prompts]
