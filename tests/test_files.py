from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.files import (
    LARGEST_JSON,
    new_folder,
    read_json,
    remove_leftovers,
    replacing,
    temporary_name,
    visible_files,
    write_text_atomically,
)

KILLED = """
import os, signal
from pathlib import Path
from nodule_plugin.files import replacing, temporary_name
temporary_name(Path("folder")).mkdir()
temporary_name(Path("folder")).joinpath("a").touch()
with replacing(Path("a.json")) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_new_file_takes_the_olds_place(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.nii.gz"
    write_text_atomically(path, "one")
    with replacing(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
        assert temporary.name.endswith(".nii.gz")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text_atomically(path, "one")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    own = temporary_name(tmp_path / "b.json")  # being written by a process that is there
    elsewhere = tmp_path / f".otherhost-{os.getpid()}.part.c.json"
    for path in (own, elsewhere, tmp_path / ".hidden"):
        path.touch()
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {own, elsewhere, tmp_path / ".hidden"}
    remove_leftovers(tmp_path / "absent")


def test_a_new_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as folder:
        (folder / "a").touch()
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "a"]


def test_a_new_folder_never_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").touch()
    with pytest.raises(InputError, match="old: already there and not an empty folder"), new_folder(tmp_path / "old"):
        pass
    with pytest.raises(InputError, match="cannot be written"), new_folder(tmp_path / "other"):
        raise OSError(28, "No space left on device")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "old"]


def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    for content in (b'{"a": [1]}', b'\xef\xbb\xbf{"a": [1]}'):
        (tmp_path / "a.json").write_bytes(content)
        assert read_json(tmp_path / "a.json") == {"a": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, r"not JSON \(maximum recursion depth"),
        (b'{"a":' * 100_000, r"not JSON \(maximum recursion depth"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON .*utf-8"),
        (b"9" * 5000, "not JSON"),
        (None, r"cannot be read \(No such file"),
    ],
)
def test_json_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^\S+a\.json: {message}.*; start anew$"):
        read_json(path, "start anew")


def test_json_too_large_for_the_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.touch()
    os.truncate(path, LARGEST_JSON + 1)
    with pytest.raises(InputError, match=r"a\.json: not JSON \(larger than 256 MiB\)"):
        read_json(path)


def test_hidden_files_are_not_seen(tmp_path: Path) -> None:
    for name in ("b.png", "._b.png", ".DS_Store", "a.nii.gz"):
        (tmp_path / name).touch()
    assert [path.name for path in visible_files(tmp_path)] == ["a.nii.gz", "b.png"]
