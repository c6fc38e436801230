from __future__ import annotations

from pathlib import Path

import pytest

from nodule_plugin.files import write_text_atomically


def test_writes_into_a_new_folder_and_over_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text_atomically(path, "ä")
    write_text_atomically(path, "ö")
    assert path.read_text(encoding="utf-8") == "ö"
    assert list(path.parent.iterdir()) == [path]


def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
