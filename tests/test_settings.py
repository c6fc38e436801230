from __future__ import annotations

from pathlib import Path

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.settings import as_flag, as_seeds, in_bundle, whole_number


@pytest.mark.parametrize(("value", "flag"), [(True, True), ("true", True), (False, False), ("False", False)])
def test_flags_of_configurations_and_command_lines(value: bool | str, flag: bool) -> None:
    assert as_flag("resume", value) is flag


@pytest.mark.parametrize("value", ["yes", "", 1, None])
def test_what_is_no_flag_is_named(value: object) -> None:
    with pytest.raises(InputError, match=f"resume: .*{value!r}"):
        as_flag("resume", value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "seeds"), [(3, [3]), ("3", [3]), ("0, 1", [0, 1]), ((2, 0), [2, 0]), ([1.0], [1])])
def test_seeds_of_configurations_and_command_lines(given: object, seeds: list[int]) -> None:
    assert as_seeds("seeds", given) == seeds


@pytest.mark.parametrize("given", [-1, 0.5, "a", [], [0, 0], True])
def test_what_is_no_seed_is_named(given: object) -> None:
    with pytest.raises(InputError, match=r"^classifier_seeds: "):
        as_seeds("classifier_seeds", given)


def test_what_ships_is_found_from_the_bundle_and_from_the_checkout(repository: Path, tmp_path: Path) -> None:
    for root in (repository, repository / "bundle"):
        assert Path(in_bundle(str(root), "models/model.pt")).is_file()
    assert in_bundle(str(tmp_path), "models/model.pt") == str(tmp_path / "models" / "model.pt")


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=f"^limit: a whole number of 1 or above is needed, not {value!r}$"):
        whole_number("limit", value)
    assert (whole_number("limit", 1), whole_number("limit", 0, least=0)) == (1, 0)
