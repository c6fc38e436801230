"""The bundle as a function from an order and a CT series to the series with nodules in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from nodule_plugin.deploy.generator import find_bundle
from nodule_plugin.errors import InputError, unwrapped_input_errors
from nodule_plugin.insertion.lesions import read_lesions
from nodule_plugin.insertion.place import Lesion
from nodule_plugin.insertion.voxels import VoxelInsertion
from nodule_plugin.settings import as_number, as_seeds, as_whole_number

CONFIG = "configs/insert.json"
FIELD = "insert"
"""Of an order: that nodules go into the series beside it."""
OUTPUT = "inserted"
"""Folder of what is written, in the one that is given for output."""
LESION_FIELDS = ("position", "lesions", "random", "diameter_mm", "findings", "prompt", "template")
INSERTION_FIELDS = ("guidance_scale", "steps", "coordinates", "pleura_mm", "vessel_mm")
BELONGING_FIELDS = ("patient", "study")
ORDER_FIELDS = (*LESION_FIELDS, *INSERTION_FIELDS, *BELONGING_FIELDS, "seeds")
"""What an order may hold, with the names and meanings of the settings of ``nodule insert``."""


@dataclass(frozen=True)
class InsertionOrder:
    """An order, checked.

    Attributes:
        insertion: of the bundle, with the order's settings.
        lesions: what to insert.
        seeds: each makes a series.
    """

    insertion: VoxelInsertion
    lesions: list[Lesion]
    seeds: list[int]


class BundleInserter:
    """The insertion as the bundle's ``insert.json`` describes it, its model loaded.

    What an order says is put in the place of the configuration's values after those are evaluated, so that nothing in
    it is.

    Args:
        bundle_root: see :class:`nodule_plugin.deploy.generator.BundleGenerator`.
        overrides: of the configuration, such as ``inpainter`` or ``device``.

    Raises:
        InputError: if there is no bundle, or no inpainting model in it.
    """

    def __init__(self, bundle_root: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        root = find_bundle(Path(bundle_root))
        if not (root / CONFIG).is_file():
            raise InputError(f"model: {root} has no {CONFIG}; give a newer bundle's folder")
        parser = ConfigParser()
        parser.read_config(str(root / CONFIG))
        parser.update({"bundle_root": str(root), **(overrides or {})})
        with unwrapped_input_errors():
            self.insertion = parser.get_parsed_content("insertion")
        self.defaults = {name: parser.get_parsed_content(name) for name in ORDER_FIELDS}

    def read(self, order: Any) -> InsertionOrder:
        """Check what an order asks for.

        Args:
            order: any of :data:`ORDER_FIELDS`; what it leaves out is as in the bundle's configuration. ``lesions`` is a
                list as :func:`nodule_plugin.insertion.lesions.read_lesions` takes it, and no file.

        Raises:
            InputError: if something in it cannot be used.
        """
        if not isinstance(order, Mapping):
            raise InputError(f"{FIELD}: an object such as {{'position': [x, y, z], ...}} is needed, not {order!r}")
        if unknown := sorted(set(order) - set(ORDER_FIELDS)):
            raise InputError(f"{FIELD}: there is no field {unknown[0]!r}; there are {', '.join(ORDER_FIELDS)}")
        _refuse_files(order)
        given = {**self.defaults, **order}
        settings: dict[str, Any] = {"steps": as_whole_number("steps", given["steps"])}
        settings |= {name: float(as_number(name, given[name])) for name in ("guidance_scale", "pleura_mm", "vessel_mm")}
        settings["coordinates"] = given["coordinates"]
        if belonging := {name: order[name] for name in BELONGING_FIELDS if name in order}:
            settings["belonging"] = replace(self.insertion.belonging, **belonging)
        lesions = read_lesions(**{name: given[name] for name in LESION_FIELDS})
        return InsertionOrder(replace(self.insertion, **settings), lesions, as_seeds("seeds", given["seeds"]))

    def __call__(self, order: Mapping[str, Any], series: Path, output: Path) -> Path:
        """Fill an order as ``nodule insert`` would.

        Args:
            order: with nothing but ``{"insert": {...}}``, see :meth:`read`.
            series: folder with the host's files, or with folders of them.
            output: gets the folder ``inserted``, as :class:`nodule_plugin.insertion.run.Insertion` writes it.

        Returns:
            That folder.

        Raises:
            InputError: if something cannot be used; nothing is written then.
        """
        if others := sorted(set(order) - {FIELD}):
            raise InputError(f"order: {others[0]!r} does not go with {FIELD!r}; put what it means into {FIELD!r}")
        read = self.read(order[FIELD])
        insertion: Any = read.insertion  # what the configuration names; by default it writes DICOM
        return Path(insertion(series, read.lesions, read.seeds, output / OUTPUT))


def _refuse_files(order: Mapping[str, Any]) -> None:
    """An order names no files of the machine that fills it."""
    lesions = order.get("lesions")
    if lesions is not None and not isinstance(lesions, list):
        raise InputError(f"lesions: a list of lesions, each an object, is needed, not {lesions!r}")
    for entry in (order, *(lesions or [])):
        if isinstance(entry, Mapping) and isinstance(entry.get("findings"), str):
            raise InputError(f"findings: a dictionary of ratings is needed, not {entry['findings']!r}")
