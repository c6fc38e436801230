from __future__ import annotations

import errno
import os
import secrets
import subprocess
import sys
import time
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
    write_files,
    write_text_atomically,
)

KILLED = """
import os, signal
from pathlib import Path
from nodule_plugin.files import replacing, temporary_name
temporary_name(Path("folder")).mkdir()
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


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    own = temporary_name(tmp_path / "b.json")  # being written by a process that is there
    elsewhere, abandoned = (tmp_path / f".otherhost-{os.getpid()}.part.{name}" for name in ("c.json", "d.json"))
    kept = {own, elsewhere, tmp_path / ".hidden"}
    for path in {*kept, abandoned}:
        path.touch()
    os.utime(abandoned, (time.time() - 25 * 3600,) * 2)
    write_text_atomically(tmp_path / "e.json", "{}")
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "e.json"}


def test_removing_leftovers_where_there_is_no_folder(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "absent")


@pytest.mark.parametrize(("umask", "old", "new"), [(0o022, None, 0o644), (0o077, 0o664, 0o664), (0o022, 0o440, 0o440)])
def test_a_files_permissions_stay(tmp_path: Path, umask: int, old: int | None, new: int) -> None:
    path = tmp_path / "a.json"
    if old is not None:
        path.touch()
        path.chmod(old)
    before = os.umask(umask)
    try:
        with replacing(path) as temporary:
            assert temporary.stat().st_mode & 0o777 & ~(new | 0o200) == 0, "nobody reads more while it is written"
            temporary.write_text("{}")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == new


def test_nothing_is_written_through_a_link_laid_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "guessed")
    temporary_name(tmp_path / "a.json").symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"a\.json"):
        write_text_atomically(tmp_path / "a.json", "{}")
    assert victim.read_text() == "precious"


def test_a_file_is_on_the_disk_before_it_takes_the_olds_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append((name, (tmp_path / "a.json").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text_atomically(tmp_path / "a.json", "{}")
    (file, replaced), folder = synced
    assert file.endswith(".a.json")
    assert not replaced
    assert folder == (tmp_path.name, True)


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a.json'"):
        write_text_atomically(tmp_path / "a.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_of_several_files_all_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: replaced.append(to.name) or replace(path, to))
    out = tmp_path / "out"
    assert write_files({"a": b"1", "b": b"2"}, out) == [out / "a", out / "b"]
    assert replaced == ["a", "b"]  # the last one says that the others are there
    with pytest.raises(InputError, match=rf"^folder {out}: cannot be written"):
        write_files({"a/below": b"", "b": b"3"}, out, "folder")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"a": "1", "b": "2"}


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


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the current folder cannot be replaced"), new_folder(Path()):
        raise AssertionError
    with new_folder(Path("new")) as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


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
        (b'[{"a": 1, "b": 2, "a": 3}]', "not JSON .'a' stands twice in one object"),
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
