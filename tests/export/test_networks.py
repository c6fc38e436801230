from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_sd import make_tuned_weights
from warm import run_python

from nodule_plugin.diffusion.components import load_vae
from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import decode_latents
from nodule_plugin.errors import InputError
from nodule_plugin.export.forms import export_model
from nodule_plugin.export.networks import (
    LatentDecoder,
    PromptEncoder,
    run_onnx,
    save_network,
    save_onnx,
    save_program,
    trace,
    traced_networks,
    write_onnx,
)

SIZE = 8
NETWORKS = ("unet", "decoder", "text_encoder")


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    """Weights of a U-Net that is not the base model's."""
    return make_tuned_weights(base, base / "tuned.pt")


@pytest.fixture(scope="module")
def exported(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote, and the same networks as programs."""
    output = tmp_path_factory.mktemp("exported") / "onnx"
    command = [sys.executable, "-m", "nodule_plugin.cli", "export", "--output", str(output)]
    command += ["--base-model", str(base), "--weights", str(tuned), "--image-size", str(SIZE)]
    done = run_python(command, output.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unet.onnx: largest difference from PyTorch" in done.stdout
    assert {path.name for path in output.iterdir()} == {"README.md", *(f"{name}.onnx" for name in NETWORKS)}
    return output


def run(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["notice"].startswith("What this model generates is SYNTHETIC")
    return session.run(["pred"], {name: value.numpy() for name, value in inputs.items()})[0]


@pytest.mark.parametrize("batch", [1, 5])
def test_the_unet_in_onnxruntime_is_the_fine_tuned_one(base: Path, tuned: Path, exported: Path, batch: int) -> None:
    inputs = {"image": torch.randn(batch, 4, 4, 4), "timesteps": torch.arange(batch) * 199 + 3,
              "context": torch.randn(batch, 77, 16)}  # fmt: skip
    network = DiffusionUNet.from_base(str(base)).eval()
    with torch.no_grad():
        untuned = network(**inputs).numpy()
        network.load_state_dict(torch.load(tuned, weights_only=True))
        expected = network(**inputs).numpy()
    found = run(exported / "unet.onnx", inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - untuned).max() > 0.01


@pytest.mark.parametrize("batch", [1, 5])
def test_the_decoder_in_onnxruntime_gives_the_samplers_pixels(base: Path, exported: Path, batch: int) -> None:
    latents = torch.randn(batch, 4, 4, 4)
    with torch.no_grad():
        expected = decode_latents(load_vae(str(base)), latents).numpy()
    found = run(exported / "decoder.onnx", {"image": latents})
    assert found.shape == (batch, 3, SIZE, SIZE)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_text_encoder_in_onnxruntime_conditions(base: Path, exported: Path, batch: int) -> None:
    tokens = torch.randint(0, 49408, (batch, 77))
    with torch.no_grad():
        expected = PromptEncoder(load_model(Source(str(base))).text_encoder)(tokens).numpy()
    np.testing.assert_allclose(run(exported / "text_encoder.onnx", {"input_ids": tokens}), expected, atol=1e-4)


ELSEWHERE = """
import sys
for package in ("nodule_plugin", "diffusers", "transformers", "monai"):
    sys.modules[package] = None  # cannot be imported
import torch
notice = {"notice.txt": ""}
inputs, expected = torch.load("both.pt")
for name in inputs:
    found = torch.export.load(f"{name}.pt2", extra_files=notice).module()(**inputs[name])
    assert (found - expected[name]).abs().max() < 1e-4, name
print(notice["notice.txt"])
"""


def test_programs_run_where_the_package_is_not(base: Path, tuned: Path, tmp_path: Path) -> None:
    model = load_model(Source(str(base), str(tuned), image_size=SIZE))
    inputs = {"unet": {"image": torch.randn(1, 4, 4, 4), "timesteps": torch.tensor([7]),
                       "context": torch.randn(1, 77, 16)},
              "decoder": {"image": torch.randn(3, 4, 4, 4)},
              "text_encoder": {"input_ids": torch.randint(0, 49408, (2, 77))}}  # fmt: skip
    expected = {}
    for name, (network, shapes) in traced_networks(model).items():
        with torch.no_grad():
            save_program(trace(network, shapes), tmp_path / f"{name}.pt2")
            expected[name] = network(**inputs[name])
    torch.save((inputs, expected), tmp_path / "both.pt")
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("What this model generates is SYNTHETIC")


class Drawing(torch.nn.Module):
    """Adds noise drawn anew in each call, so that no file can agree with it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.randn_like(image)


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"drawing\.onnx: the exported network differs from PyTorch's by"):
        save_network(Drawing().eval(), tmp_path / "drawing.onnx", {"image": (1, 4)}, save_onnx, run_onnx)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ({"other": torch.zeros(1)}, "is of another network"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    base: Path, metadata: dict[str, Any], tmp_path: Path, content: dict | None, message: str
) -> None:
    weights = tmp_path / "model.pt"
    if content is not None:
        torch.save(content, weights)
    with pytest.raises(InputError, match=rf"weights: .*model\.pt.*{message}|weights: {message} .*model\.pt"):
        export_model("onnx", Source(str(base), str(weights)), tmp_path / "out", metadata)
    assert not (tmp_path / "out").exists()


def test_weights_of_code_are_refused(base: Path, tmp_path: Path) -> None:
    torch.save(LatentDecoder(load_vae(str(base))), tmp_path / "model.pt")  # a pickled object, not tensors
    message = r"model\.pt: holds nodule_plugin\.export\.networks\.LatentDecoder beside tensors"
    with pytest.raises(InputError, match=message):
        load_model(Source(str(base), str(tmp_path / "model.pt")))


def test_the_packages_that_are_missing_are_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime: not installed; run pip install 'nodule-plugin\[onnx\]'"):
        write_onnx(load_model(Source(str(base))), tmp_path)


def test_a_network_too_large_for_one_file_is_refused(tmp_path: Path) -> None:
    program: Any = SimpleNamespace(state_dict={"weight": torch.empty(30_000, 20_000, device="meta")})
    with pytest.raises(InputError, match=r"large\.onnx: ONNX holds at most 2 GiB in one file, .* 2\.2 GiB"):
        save_onnx(program, tmp_path / "large.onnx")
