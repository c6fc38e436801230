from __future__ import annotations

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.settings import as_flag


@pytest.mark.parametrize(("value", "flag"), [(True, True), ("true", True), (False, False), ("False", False)])
def test_flags_of_configurations_and_command_lines(value: bool | str, flag: bool) -> None:
    assert as_flag("resume", value) is flag


@pytest.mark.parametrize("value", ["yes", "", 1, None])
def test_what_is_no_flag_is_named(value: object) -> None:
    with pytest.raises(InputError, match=f"resume: .*{value!r}"):
        as_flag("resume", value)  # type: ignore[arg-type]
