from __future__ import annotations

from pathlib import Path

import pytest

from nodule_plugin.files import replacing, write_text_atomically


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
