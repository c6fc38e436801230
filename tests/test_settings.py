from __future__ import annotations

from pathlib import Path

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.settings import as_flag, in_bundle


@pytest.mark.parametrize(("value", "flag"), [(True, True), ("true", True), (False, False), ("False", False)])
def test_flags_of_configurations_and_command_lines(value: bool | str, flag: bool) -> None:
    assert as_flag("resume", value) is flag


@pytest.mark.parametrize("value", ["yes", "", 1, None])
def test_what_is_no_flag_is_named(value: object) -> None:
    with pytest.raises(InputError, match=f"resume: .*{value!r}"):
        as_flag("resume", value)  # type: ignore[arg-type]


def test_what_ships_is_found_from_the_bundle_and_from_the_checkout(repository: Path, tmp_path: Path) -> None:
    for root in (repository, repository / "bundle"):
        assert Path(in_bundle(str(root), "models/model.pt")).is_file()
    assert in_bundle(str(tmp_path), "models/model.pt") == str(tmp_path / "models" / "model.pt")
