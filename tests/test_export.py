from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_sd import make_tiny_sd, make_tuned_weights
from warm import run_python

from nodule_plugin.diffusion.components import load_vae
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import decode_latents
from nodule_plugin.errors import InputError
from nodule_plugin.export import LatentDecoder, export_network, export_onnx

SIZE = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("base"), "v_prediction", levels=2)


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    """Weights of a U-Net that is not the base model's."""
    return make_tuned_weights(base, base / "tuned.pt")


@pytest.fixture(scope="module")
def exported(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote."""
    output = tmp_path_factory.mktemp("exported") / "onnx"
    command = [sys.executable, "-m", "nodule_plugin.cli", "export", "--output", str(output)]
    command += ["--base-model", str(base), "--weights", str(tuned), "--image-size", str(SIZE)]
    done = run_python(command, output.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unet.onnx: largest difference from PyTorch" in done.stdout
    assert sorted(path.name for path in output.iterdir()) == ["decoder.onnx", "unet.onnx"]
    return output


def run(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
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
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - untuned).max() > 0.01


@pytest.mark.parametrize("batch", [1, 5])
def test_the_decoder_in_onnxruntime_gives_the_samplers_pixels(base: Path, exported: Path, batch: int) -> None:
    latents = torch.randn(batch, 4, 4, 4)
    with torch.no_grad():
        expected = decode_latents(load_vae(str(base)), latents).numpy()
    found = run(exported / "decoder.onnx", {"image": latents})
    assert found.shape == (batch, 3, SIZE, SIZE)
    np.testing.assert_allclose(found, expected, atol=1e-3)


class Drawing(torch.nn.Module):
    """Adds noise drawn anew in each call, so that no file can agree with it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.randn_like(image)


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"drawing\.onnx: the exported network differs from PyTorch's by"):
        export_network(Drawing().eval(), tmp_path / "drawing.onnx", {"image": (1, 4)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ({"other": torch.zeros(1)}, "is of another network"),
    ],
)
def test_weights_that_do_not_fit_are_named(base: Path, tmp_path: Path, content: dict | None, message: str) -> None:
    weights = tmp_path / "model.pt"
    if content is not None:
        torch.save(content, weights)
    with pytest.raises(InputError, match=rf"weights: .*model\.pt.*{message}|weights: {message} .*model\.pt"):
        export_onnx(str(base), weights, tmp_path, SIZE)


def test_weights_of_code_are_refused(base: Path, tmp_path: Path) -> None:
    torch.save(LatentDecoder(load_vae(str(base))), tmp_path / "model.pt")  # a pickled object, not tensors
    with pytest.raises(InputError, match=r"model\.pt: holds nodule_plugin\.export\.LatentDecoder beside tensors"):
        export_onnx(str(base), tmp_path / "model.pt", tmp_path, SIZE)


def test_the_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime: not installed; run pip install 'nodule-plugin\[onnx\]'"):
        export_network(Drawing(), tmp_path / "drawing.onnx", {"image": (1, 4)})


def test_a_network_too_large_for_one_file_is_refused(tmp_path: Path) -> None:
    network = torch.nn.Linear(30_000, 20_000, device="meta")
    with pytest.raises(InputError, match=r"large\.onnx: ONNX holds at most 2 GiB in one file, .* 2\.2 GiB"):
        export_network(network, tmp_path / "large.onnx", {"input": (30_000,)})
