from __future__ import annotations

import os
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disk import full_disk
from safetensors.torch import save_file

from nodule_plugin.errors import InputError
from nodule_plugin.weights import file_sha256, load_strictly, one_line, read_weights, save_tensors, weights_sha256


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_weights_are_read_and_loaded_whole(suffix: str, tmp_path: Path) -> None:
    file, state = tmp_path / f"w{suffix}", _network().state_dict()
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == ".ckpt" else state, file)
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    load_strictly(other, read_weights(file, "weights"), str(file), "its state dict")
    assert weights_sha256(other) == weights_sha256(_network())
    assert weights_sha256(other, "bicubic") != weights_sha256(other, "bilinear")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def _pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def _garbage(file: Path) -> None:
    file.write_bytes(b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01garbage.")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cut, damaged or no weights"),
        (_pointer, "a git-lfs pointer in the place of the weights; run git lfs pull"),
        (_garbage, "cut, damaged or no weights"),
        (Path.unlink, r"cannot be read \(No such file or directory\)"),
        (lambda file: file.write_bytes(b""), "cut, damaged or no weights"),
    ],
)
def test_a_file_that_is_no_whole_one_is_one_line(
    suffix: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / f"w{suffix}"
    save_file(_network().state_dict(), file) if suffix == ".safetensors" else torch.save(_network().state_dict(), file)
    damage(file)
    with pytest.raises(InputError, match=f"^LPIPS weights {file}: {message}") as caught:
        read_weights(file, "LPIPS weights")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 3}, torch.zeros(1), {"state_dict": None}])
def test_something_else_is_no_weights(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="something else than a network's weights"):
        read_weights(tmp_path / "w.pth", "weights")


def test_other_keys_are_refused_with_their_first_names() -> None:
    network, state = _network(), dict(_network().state_dict())
    before = weights_sha256(network)
    renamed = {name.replace("0.", "first."): value for name, value in state.items()}
    with pytest.raises(InputError) as caught:
        load_strictly(network, renamed, "w.pth", "its state dict")
    assert str(caught.value) == (
        "w.pth: not its state dict: 2 weights missing (0.weight, 0.bias); 2 weights unexpected (first.weight, "
        "first.bias)"
    )
    with pytest.raises(InputError, match=r"1 weights of another shape \(2\.bias\)"):
        load_strictly(network, state | {"2.bias": torch.zeros(9)}, "w.pth", "its state dict")
    assert weights_sha256(network) == before
    load_strictly(network, state | {"fc.bias": torch.zeros(9)}, "w.pth", "its state dict", spare=["fc.bias"])


def test_old_files_lack_the_counters_of_batch_normalisation() -> None:
    network = _network()
    state = {name: value + 1 for name, value in network.state_dict().items() if "num_batches" not in name}
    load_strictly(network, state, "w.pth", "its state dict")
    assert torch.equal(network[0].bias, state["0.bias"])


def test_hashes_are_those_of_sha256sum_and_one_line_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert one_line(ValueError("one\n  two\n" + "long " * 100)).startswith("one two long")
    assert one_line(EOFError()) == "EOFError"


@pytest.mark.parametrize("name", ["model.pt", "deep/other.pth"])
def test_equal_weights_are_equal_files(tmp_path: Path, name: str) -> None:
    save_tensors(_network().state_dict(), tmp_path / "first.pt")
    save_tensors(_network().state_dict(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content == (tmp_path / "first.pt").read_bytes()
    assert f"{platform.node()}-{os.getpid()}".encode() not in content
    assert torch.load(tmp_path / name, weights_only=True).keys() == _network().state_dict().keys()


def test_a_full_disk_is_what_the_error_says(tmp_path: Path) -> None:
    with full_disk(1000), pytest.raises(OSError, match=r"File too large.*w\.pt"):
        save_tensors({"a": torch.zeros(10_000)}, tmp_path / "w.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_that_ship_name_no_machine(repository: Path) -> None:
    with zipfile.ZipFile(repository / "bundle" / "models" / "model.pt") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}
