"""What to insert and where: lesions by a setting, a list or at random, each checked before anything is made."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nodule_plugin.data.entries import check_numbers
from nodule_plugin.data.requests import checked_prompt, findings_content
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.findings import SCALES, Findings
from nodule_plugin.insertion.block import Block
from nodule_plugin.insertion.host import Geometry, Host
from nodule_plugin.insertion.lungs import Lungs, random_places
from nodule_plugin.insertion.place import FEATHER_MM, Lesion, Place, fit_place
from nodule_plugin.insertion.sources import UNKNOWN, MaskDrawer, NoduleSource, findings_of
from nodule_plugin.prompts import findings_to_prompt
from nodule_plugin.settings import as_number, as_whole_number

COORDINATES = ("patient", "voxel")
_LEAST_IN_LUNG = 0.9
"""Of a nodule's voxels; the rest may touch what the lung's closed surface leaves out."""
_AXES = ("x", "y", "z")
_TRIES = 20
"""Random places in a row at which a nodule does not fit: then it fits nowhere, and its error is shown."""
_COLUMNS = (*_AXES, "diameter_mm", "prompt", *SCALES)
_KEYS = ("position", "diameter_mm", "findings", "prompt")
"""Of a lesion in a list of objects."""


def read_lesions(
    position: Any = None,
    lesions: str | Path | Sequence[Mapping[str, Any]] | None = None,
    random: Any = None,
    diameter_mm: Any = None,
    findings: Any = None,
    prompt: str | None = None,
    template: str = "reference",
) -> list[Lesion]:
    """The lesions that settings ask for; exactly one of ``position``, ``lesions`` and ``random`` says where.

    Args:
        position: x, y and z.
        lesions: a .csv file with columns x, y, z, diameter_mm and prompt or ratings, or a .json file with a list of
            ``{"position": [x, y, z], "diameter_mm": ..., "findings": {...} or "prompt": ...}``, or that list. What a
            lesion does not say is as the settings below say.
        random: how many at random places.
        diameter_mm, findings, prompt: of the nodules; findings (a dictionary of ratings, or a .json file with one) or a
            prompt.
        template: that words findings, see :mod:`nodule_plugin.prompts`.

    Raises:
        InputError: naming what was given and cannot be used.
    """
    places = {"position": position, "lesions": lesions, "random": random}
    asked = [name for name, value in places.items() if _is_given(value)]
    if len(asked) != 1:
        raise InputError(f"give exactly one of position, lesions and random, not {' and '.join(asked) or 'none'}")
    default = {"diameter_mm": diameter_mm, "findings": findings, "prompt": prompt}
    if asked == ["lesions"]:
        file, entries = _entries(lesions)
        names = [f"{file}: lesion {number}" for number in range(1, len(entries) + 1)]
        return [_lesion(name, {**default, **_own(name, entry)}, template) for name, entry in zip(names, entries)]
    if asked == ["random"]:
        count = as_whole_number("random", random)
        if count < 1:
            raise InputError(f"random: a whole number of 1 or above is needed, not {random!r}")
        return [_lesion("random", {**default, "position": None}, template)] * count
    return [_lesion("position", {**default, "position": position}, template)]


def _is_given(value: Any) -> bool:
    return value is not None and (value.size > 0 if isinstance(value, np.ndarray) else value not in ("", [], ()))


def _own(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry of a list says itself; its own findings or prompt replace the settings' of either kind."""
    if unknown := [name for name in entry if name not in _KEYS]:
        # Passed over, "diameter" or a rating beside "findings" would leave the nodule as the settings say.
        raise InputError(f"{where}: there is no key {unknown[0]!r} to read; there are {', '.join(_KEYS)}")
    own = {name: value for name, value in entry.items() if value not in (None, "")}
    kinds = {"findings", "prompt"} & set(own)
    return {**(dict.fromkeys({"findings", "prompt"}) if kinds else {}), **own}


def _lesion(where: str, entry: Mapping[str, Any], template: str) -> Lesion:
    position = entry.get("position")
    if position is not None:
        numbers = _numbers(f"{where}: position" if where != "position" else where, position)
        if len(numbers) != 3:
            raise InputError(f"{where}: x, y and z are needed, not {position!r}")
        position = tuple(numbers)
    elif where != "random":
        raise InputError(f"{where}: the position is missing; give x, y and z")
    if entry["diameter_mm"] is None:
        raise InputError(f"{where}: diameter_mm is missing; give the nodule's greatest extent in a slice, mm")
    diameter = float(as_number(f"{where}: diameter_mm", entry["diameter_mm"]))
    if not diameter > 0:
        raise InputError(f"{where}: diameter_mm: a number above 0 is needed, not {diameter:g}")
    check_numbers(where, {"diameter_mm": diameter})
    if (entry["findings"] is None) == (entry["prompt"] is None):
        given = "neither is there" if entry["prompt"] is None else "both are there"
        raise InputError(f"{where}: give either findings or a prompt; {given}")
    if entry["prompt"] is not None:
        prompt = checked_prompt(f"{where}: prompt", entry["prompt"])
        return Lesion(where, position, diameter, prompt, findings_of(prompt))
    ratings = findings_content(f"{where}: findings", entry["findings"])
    if not isinstance(ratings, Mapping):
        raise InputError(f"{where}: findings: a dictionary of ratings is needed, not {ratings!r}")
    try:
        findings = Findings.from_dict(ratings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return Lesion(where, position, diameter, findings_to_prompt(findings, template), findings)


def _numbers(where: str, given: Any) -> list[float]:
    """Numbers, equal ones among them."""
    given = given.tolist() if isinstance(given, np.ndarray) else given
    values = given.strip(" ,[]()").replace(",", " ").split() if isinstance(given, str) else given
    return [float(as_number(where, value)) for value in (values if isinstance(values, Sequence) else [values])]


def _entries(lesions: Any) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """A list of lesions, and what errors call it."""
    if isinstance(lesions, (str, Path)):
        path = Path(lesions)
        if path.suffix.lower() != ".json":
            return str(lesions), _read_table(path)
        where, entries = str(lesions), read_json(path)
    else:
        where, entries = "lesions", lesions
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{where}: a list of lesions, each an object, is needed")
    return where, entries


def _read_table(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, strict=True)
            head, rows = list(table.fieldnames or []), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a .json file, or a .csv in UTF-8") from error
    needed = f"lines below a head of {', '.join(_COLUMNS)} (ratings where known)"
    if not set(_AXES) <= set(head):
        raise InputError(f"{path}: {needed}, divided by commas, are needed; its head is {','.join(head)[:100]!r}")
    if twice := [name for name in head if head.count(name) > 1]:
        raise InputError(f"{path}: the column {twice[0]!r} is there twice; remove one")
    if not rows:
        raise InputError(f"{path}: {needed} are needed; there is no line below its head")
    return [_from_row(f"{path}: lesion {number}", row) for number, row in enumerate(rows, start=1)]


def _from_row(where: str, row: Mapping[Any, Any]) -> dict[str, Any]:
    if None in row:  # what csv makes of cells beyond the head
        raise InputError(f"{where}: it has {len(row[None])} more cells than the head; quote a text that holds commas")
    if unknown := [name for name in row if name not in _COLUMNS]:
        raise InputError(f"{where}: there is no column {unknown[0]!r} to read; there are {', '.join(_COLUMNS)}")
    if empty := [name for name in _AXES if not (row[name] or "").strip()]:
        raise InputError(f"{where}: {empty[0]} is empty; give x, y and z of each")
    ratings = {name: as_whole_number(f"{where}: {name}", row[name]) for name in SCALES if row.get(name)}
    entry = {"position": [as_number(f"{where}: {name}", row[name]) for name in _AXES], "findings": ratings or None}
    return entry | {name: row.get(name) for name in ("diameter_mm", "prompt")}


def place_lesions(
    lesions: Sequence[Lesion],
    host: Host,
    lungs: Lungs,
    source: NoduleSource,
    draw_mask: MaskDrawer,
    seed: int,
    coordinates: str = "patient",
    pleura_mm: float = 2.0,
    vessel_mm: float = 1.0,
) -> list[Place]:
    """Lesions in a host, each with its mask.

    Args:
        lesions: as :func:`read_lesions` gives them.
        host: the series.
        lungs: its.
        source: of the pixels; its grid says how large a nodule can be.
        draw_mask: of a nodule.
        seed: of the first lesion and of random places; further ones have seeds that follow from it, see
            :func:`lesion_seed`.
        coordinates: of positions: "patient" (x, y, z to the left, the back and the head, mm) or "voxel" (column, row
            and slice, from 0; slices from below).
        pleura_mm, vessel_mm: of random places, from the nodule's surface, 0 or above. A place where the nodule as
            drawn does not fit, or would touch another, is drawn again.

    Raises:
        InputError: if a nodule lies outside the series, the body or the lung, is larger than the source's grid, or
            touches another.
    """
    if coordinates not in COORDINATES:
        raise InputError(f"coordinates: patient or voxel, not {coordinates!r}")
    for margin, distance in (("pleura_mm", pleura_mm), ("vessel_mm", vessel_mm)):
        if not distance >= 0:
            raise InputError(f"{margin}: a number of 0 or above is needed, not {distance:g}")
    for lesion in lesions:
        _check_size(lesion, source)
    places: list[Place] = []

    def put(index: np.ndarray) -> int | None:
        """Place the next lesion there, unless it touches an earlier one: then that one's number."""
        number = len(places)
        place = _place_in_lung(lesions[number], index, host, lungs, source, draw_mask, lesion_seed(seed, number))
        for other, earlier in enumerate(places, start=1):
            if place.touches(earlier):
                return other
        places.append(place)
        return None

    if any(lesion.position is None for lesion in lesions):
        diameter = lesions[0].diameter_mm
        wanted = (len(lesions), diameter / 2, pleura_mm, vessel_mm, diameter + 2 * FEATHER_MM, seed)
        random_places(lungs, *wanted, accept=_lenient(put))
        return places
    for lesion in lesions:
        index = _voxel(lesion, host.geometry, coordinates)
        if other := put(index):
            raise InputError(f"{_name(lesion, index, host)} touches lesion {other}; move them apart")
    return places


def _lenient(put: Callable[[np.ndarray], int | None]) -> Callable[[np.ndarray], bool]:
    """Whether a place will do, without an error where it will not, but after :data:`_TRIES` places in a row."""
    failed = 0

    def accept(index: np.ndarray) -> bool:
        nonlocal failed
        try:
            accepted = put(index) is None
        except InputError:  # the nodule as drawn is larger than the ball that has room there
            failed += 1
            if failed == _TRIES:
                raise
            return False
        failed = 0
        return accepted

    return accept


def lesion_seed(seed: int, number: int) -> int:
    """The seed of one of several lesions.

    The next whole numbers would be other series' seeds, and give them the same nodules.

    Args:
        seed: of the series.
        number: of the lesion, from 0.

    Returns:
        ``seed`` for the first; for others 32 bits, which is what torch's generator takes in.
    """
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _name(lesion: Lesion, index: np.ndarray, host: Host) -> str:
    """What errors call a lesion at a voxel."""
    return f"{lesion.where} {_words(host.geometry.to_patient(index))}"


def _place_in_lung(
    lesion: Lesion,
    index: np.ndarray,
    host: Host,
    lungs: Lungs,
    source: NoduleSource,
    draw_mask: MaskDrawer,
    seed: int,
) -> Place:
    name = _name(lesion, index, host)
    if objection := lungs.objection(index):
        raise InputError(f"{name} is {objection}; choose a place in the lung")
    place = _place(lesion, name, index, host, source, draw_mask, seed)
    inside = lungs.covered(np.argwhere(place.mask >= 0.5) + [part.start for part in place.box])
    if inside < _LEAST_IN_LUNG:
        raise InputError(
            f"{name}: a nodule of {lesion.diameter_mm:g} mm reaches out of the lung ({inside:.0%} of it lies"
            " inside); move it inwards, or make it smaller"
        )
    return place


def _check_size(lesion: Lesion, source: NoduleSource) -> None:
    extent = source.grid.extent_mm
    if lesion.diameter_mm + 2 * FEATHER_MM > min(extent[1:]):
        raise InputError(
            f"{lesion.where}: diameter_mm: {lesion.diameter_mm:g} mm and its surroundings are larger than the"
            f" {' x '.join(f'{side:.0f}' for side in extent)} mm that the model sees; give a smaller nodule"
        )


def _voxel(lesion: Lesion, geometry: Geometry, coordinates: str) -> np.ndarray:
    position = np.array(lesion.position, dtype=float)
    return geometry.to_voxel(position) if coordinates == "patient" else position[::-1]


def _words(point: np.ndarray) -> str:
    return f"({', '.join(f'{value:.1f}' for value in point)} mm)"


def _place(
    lesion: Lesion, name: str, index: np.ndarray, host: Host, source: NoduleSource, draw_mask: MaskDrawer, seed: int
) -> Place:
    centre = host.geometry.to_patient(index)
    block = Block.around(centre, host.geometry, source.grid.spacing_mm, source.grid.shape)

    def draw(diameter_mm: float) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        shape = source.grid.spacing_mm, source.grid.shape
        return draw_mask(lesion.findings or UNKNOWN, diameter_mm, *shape, generator)

    try:
        place = fit_place(lesion, seed, centre, block, draw)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if not (place.mask >= 0.5).any():
        raise InputError(f"{name}: a nodule of {lesion.diameter_mm:g} mm fills no voxel by half; make it larger")
    if place.is_cut:
        raise InputError(
            f"{name}: a nodule of {lesion.diameter_mm:g} mm reaches beyond the series or what the model sees"
        )
    return place
