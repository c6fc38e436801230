"""The playground as a folder for any web server: the model's networks in onnxruntime-web, everything else as data."""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.data.requests import rating_steps
from nodule_plugin.diffusion.model import FineTunedModel, Source, load_few_steps, load_model
from nodule_plugin.errors import InputError
from nodule_plugin.export.networks import run_onnx, save_network, save_onnx, traced_networks, write_onnx
from nodule_plugin.extras import check_installed
from nodule_plugin.files import new_folder
from nodule_plugin.findings import SCALES
from nodule_plugin.lidc.citation import ATTRIBUTION
from nodule_plugin.playground.drawing import (
    GUIDANCE_SCALES,
    START,
    START_SEED,
    USUAL_STEPS,
    quick_label,
    window,
    worded,
)
from nodule_plugin.prompts import get_template
from nodule_plugin.provenance.codebook import WORDS
from nodule_plugin.provenance.marking import ImageMark, image_mark
from nodule_plugin.provenance.noise import PAYLOAD_CYCLES, SMALLEST, WORD_CYCLES, band, patterns

STEPS = tuple(sorted({10, 15, 20, 25, 50, USUAL_STEPS}))
"""Numbers of steps that the page offers."""
TOLERANCE = 1e-3
"""Of a latent that is computed as a weighted sum, against the scheduler's own; its scale is that of the noise, 1."""
OWN_FILES = (
    *("index.html", "app.js", "sampling.js", "mark.js", "threads.js", "worker.js"),
    *("viewer.js", "viewer.css", "static.css"),
)


def write_static_page(
    source: Source, output_dir: Path, template: str = "reference", npm_packages: Path | None = None
) -> int:
    """Write the page, its model and the packages it needs.

    Args:
        source: of the model.
        output_dir: made; it must not hold anything.
        template: that words the findings.
        npm_packages: folder with the tarballs of :func:`pinned_packages`; None has npm fetch them.

    Returns:
        Bytes of all files.

    Raises:
        InputError: if the model cannot be exported, its scheduler needs Python, or a package is not to be had.
    """
    with new_folder(output_dir) as folder:
        model = load_model(source)
        quick = load_few_steps(model)
        described = describe_model(model, template) | {"quick": describe_quick(quick) if quick else None}
        _write(folder / "model.json", json.dumps(described).encode())
        vendor(folder, npm_packages)
        write_onnx(model, folder / "networks")
        _write(folder / "tokenizer.json", json.dumps(_tokenizer(model)).encode())
        _write(folder / "mark.bin", mark_signs(model_mark(model), model.latent_shape[0]))
        if quick:
            network, shapes = traced_networks(quick)["unet"]
            save_network(network, folder / "networks" / "quick.onnx", shapes, save_onnx, run_onnx)
            _write(folder / "quick_mark.bin", mark_signs(model_mark(quick), quick.latent_shape[0]))
        for file in folder.rglob("*.onnx"):
            _fix_batch(file)
        for file in [path for end in ("onnx", "wasm", "bin") for path in folder.rglob(f"*.{end}")]:
            _pack(file)
        _pack(folder / "tokenizer.json")
        for name in OWN_FILES:
            _write(folder / name, files(__package__).joinpath("web", name).read_bytes())
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _fix_batch(path: Path) -> None:
    """Have a network take one image at once: what follows from shapes is then computed when it is loaded."""
    import onnx

    network = onnx.load(path)
    for value in network.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(network, path)


def _tokenizer(model: FineTunedModel) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        model.tokenizer.save_pretrained(scratch)
        content: dict[str, Any] = json.loads((Path(scratch) / "tokenizer.json").read_text(encoding="utf-8"))
    # Padding and length are the page's: it refuses what is too long.
    return content | {"padding": None, "truncation": None}


def describe_model(model: FineTunedModel, template: str) -> dict[str, Any]:
    """All that ``web/app.js`` and ``web/sampling.js`` need beside the networks, of JSON's types."""
    wording = get_template(template)
    ratings = worded(template)
    start = START.to_dict()
    return {
        "notice": NOTICE,
        "attribution": f"Learnt from {ATTRIBUTION}",
        "weights_sha256": model.sha256,
        "mark": describe_mark(model_mark(model)),
        "shape": list(model.latent_shape),
        "size": [model.image_size, model.image_size],
        "window_hu": list(window(model)),
        "schedules": {str(steps): weighted_sums(model.scheduler, steps) for steps in STEPS},
        "tokens": {
            "length": model.tokenizer.model_max_length,
            "pad": model.tokenizer.pad_token_id,
            "config": {"tokenizer_class": "CLIPTokenizer", "model_max_length": model.tokenizer.model_max_length},
        },
        "template": {
            "opening": wording.opening,
            "remarks": list(wording.remarks),
            "wording": {name: dict(phrases) for name, phrases in wording.wording.items()},
        },
        "ratings": {name: {"labels": SCALES[name].labels, "ordinal": SCALES[name].ordinal} for name in ratings},
        "steps_of": {name: [step[name] for step in rating_steps(start, name, template)] for name in ratings},
        "start": {name: start[name] for name in ratings},
        "defaults": {"guidance": model.guidance_scale, "steps": str(USUAL_STEPS), "seed": START_SEED},
        "guidance_scales": list(GUIDANCE_SCALES),
    }


def describe_quick(quick: FineTunedModel) -> dict[str, Any]:
    """What is otherwise with the model of few steps, in the place of what :func:`describe_model` says; and "steps"."""
    assert quick.distilled is not None
    steps = quick.distilled.steps
    return {
        "label": quick_label(quick.distilled),
        "steps": str(steps),
        "weights_sha256": quick.sha256,
        "mark": describe_mark(model_mark(quick)),
        "schedules": {str(steps): weighted_sums(quick.scheduler, steps)},
    }


def model_mark(model: FineTunedModel) -> ImageMark | None:
    """The public mark of a model's images; None where its latents are too small for one."""
    return image_mark(True, None, model.sha256, model.latent_shape)


def describe_mark(mark: ImageMark | None) -> dict[str, Any] | None:
    """What ``web/mark.js`` needs beside the signs, of JSON's types."""
    if mark is None:
        return None
    bands = [band(*cycles).flatten().nonzero().flatten().tolist() for cycles in (WORD_CYCLES, PAYLOAD_CYCLES)]
    return {**mark.described, "secret": mark.key.secret.decode(), "words": WORDS, "count": SMALLEST, "bands": bands}


def mark_signs(mark: ImageMark | None, channels: int) -> bytes:
    """A bit for each sign of each word, 1 for plus; nothing without a mark."""
    if mark is None:
        return b""
    return np.packbits((patterns(mark.payload, mark.key, channels) > 0).numpy()).tobytes()


def weighted_sums(scheduler: Any, steps: int) -> dict[str, Any]:
    """A scheduler's run as arithmetic.

    A sampler that draws no noise between its steps is linear in the first noise and in what the network says: every
    latent is a weighted sum of these. The weights are what the scheduler makes of the unit vectors.

    Args:
        scheduler: diffusers'.
        steps: of the run.

    Returns:
        "timesteps"; "inputs", for each the weights of what the network gets: of the noise and of all it said before;
        "latents", those of the result.

    Raises:
        InputError: if the scheduler does more than that, or its timesteps are no whole numbers.
    """
    timesteps, inputs, latents, _ = _run(scheduler, steps, lambda count: torch.eye(count).reshape(count, 1, 1, 1, -1))
    generator = torch.Generator().manual_seed(0)
    trial = _run(scheduler, steps, lambda count: torch.randn(count, 1, 1, 8, 8, generator=generator))
    error = float((torch.tensordot(latents.flatten(), trial[3], 1) - trial[2]).abs().max())
    if not error <= TOLERANCE or any(timestep != int(timestep) for timestep in timesteps):
        raise InputError(f"scheduler: {type(scheduler).__name__} needs Python; take DPMSolverMultistepScheduler")
    return {
        "timesteps": [int(timestep) for timestep in timesteps],
        "inputs": [weights.flatten()[: step + 1].tolist() for step, weights in enumerate(inputs)],
        "latents": latents.flatten().tolist(),
    }


def _run(scheduler: Any, steps: int, make: Callable[[int], Tensor]) -> tuple[list[float], list[Tensor], Tensor, Tensor]:
    """A run whose noise and network say the tensors of ``make(how many)``: timesteps, inputs, result, those tensors."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    terms = make(len(scheduler.timesteps) + 1)
    latents, inputs = terms[0] * scheduler.init_noise_sigma, []
    for said, timestep in zip(terms[1:], scheduler.timesteps):
        inputs.append(scheduler.scale_model_input(latents, timestep))
        latents = scheduler.step(said, timestep, latents, return_dict=False)[0]
    return scheduler.timesteps.tolist(), inputs, latents, terms


@dataclass(frozen=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name, version: of it.
        integrity: SHA-512 of its tarball, base64, as npm's lock files hold it.
        files: that are taken from it.
        licence: file of its licence in it; None where it holds none, see :func:`_licences`.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]
    licence: str | None = None

    @property
    def tarball(self) -> str:
        """The name of its file, as ``npm pack`` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def folder(self) -> str:
        """Where the page keeps it."""
        return f"vendor/{self.name.rpartition('/')[2]}"


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        ("dist/tokenizers.min.mjs",),
        "LICENSE",
    ),
)
"""What the page runs on."""


def vendor(folder: Path, npm_packages: Path | None = None) -> None:
    """Lay the files of :data:`PACKAGES` and all licences into the page's folder.

    Raises:
        InputError: if a tarball is missing, cannot be fetched, or is not the one that is pinned.
    """
    licences = [f"This page: Apache-2.0. The model learnt from {ATTRIBUTION} {NOTICE}"]
    with tempfile.TemporaryDirectory() as scratch:
        for package in PACKAGES:
            tarball = (npm_packages or Path(scratch)) / package.tarball
            if npm_packages is None:
                _fetch(package, Path(scratch))
            elif not tarball.is_file():
                raise InputError(f"{tarball}: not there; npm pack {package.name}@{package.version} makes it")
            with tarfile.open(fileobj=io.BytesIO(_pinned(package, tarball))) as archive:
                for name in package.files:
                    _write(folder / package.folder / Path(name).name, _member(archive, name))
                # onnxruntime-web is MIT and comes without its text; the package for Python has it.
                text = _member(archive, package.licence).decode() if package.licence else _onnxruntime_licence()
            licences.append(f"{package.name} {package.version}\n\n{text}")
    _write(folder / "LICENSES.txt", "\n\n----\n\n".join(licences).encode())


def _fetch(package: Package, folder: Path) -> None:
    remedy = "give --npm-packages DIR with the tarballs"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"npm: not installed, and {package.name} comes from it; install Node.js, or {remedy}")
    command = [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise InputError(f"npm: {package.name} {package.version} cannot be fetched ({reason[0]}); {remedy}")


def _pinned(package: Package, tarball: Path) -> bytes:
    content = tarball.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.integrity:
        raise InputError(f"{tarball}: its SHA-512 is not the pinned one; it is damaged or has been changed")
    return content


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(f"package/{name}")
    assert member is not None  # the tarball is the pinned one
    return member.read()


def _onnxruntime_licence() -> str:
    check_installed("onnxruntime", "onnx")
    return files("onnxruntime").joinpath("LICENSE").read_text(encoding="utf-8")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _pack(path: Path) -> None:
    """Compress a file; its new ending says nothing, so that no server tells the browser to unpack it by itself."""
    _write(path.with_name(f"{path.name}.packed"), gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
