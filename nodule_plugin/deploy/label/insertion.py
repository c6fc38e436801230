"""A nodule in a CT series of the studies, by the bundle's insertion configuration, as NIfTI."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.deploy.inserter import INSERTION_FIELDS, LESION_FIELDS, BundleInserter
from nodule_plugin.deploy.label.client_settings import MAX_STEPS
from nodule_plugin.deploy.label.configs import BundleFiles
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.host import read_host
from nodule_plugin.settings import as_whole_number, whole_number

RESULTS = ("volume", "mask")
_VOXELS = {
    "_target_": "nodule_plugin.insertion.voxels.VoxelInsertion",
    "source": "@nodule_source",
    "draw_mask": "@draw_mask",
    **{name: f"@{name}" for name in INSERTION_FIELDS},
}
"""In the place of the configuration's ``insertion``, which writes DICOM and needs a newer pydicom than MONAI Label."""


@dataclass(frozen=True)
class InsertedNodules:
    """What came of a request.

    Attributes:
        nifti: the volume or the mask; whoever asked for it removes it.
        description: of the nodules and what made them, as the manifest of ``nodule insert`` says it, fit for JSON.
    """

    nifti: Path
    description: dict[str, Any]


class InsertionService:
    """Insert for one request at a time; the model is loaded by the first and stays in memory.

    Args:
        files: the bundle. Its overlays and base model are those of generation and training, and do not count here.
        inpainter: folder of the inpainting model; None for the bundle's.
    """

    def __init__(self, files: BundleFiles, inpainter: str | None = None) -> None:
        self.root, self.inpainter = files.root, inpainter
        content = BundleFiles(files.root).read("insert.json")
        self.defaults = {name: content[name] for name in (*LESION_FIELDS, *INSERTION_FIELDS)}
        self._lock = threading.Lock()
        self._inserter = lru_cache(maxsize=1)(self._load)

    def __call__(self, given: Mapping[str, Any], series: Path, device: str) -> InsertedNodules:
        """Insert.

        Args:
            given: any of the fields of lesions and insertion in :mod:`nodule_plugin.deploy.inserter`, ``seed`` (0) and
                ``result`` (of :data:`RESULTS`); empty ones and others count for nothing.
            series: folder of the host.
            device: that torch knows.

        Raises:
            InputError: if something cannot be used.
        """
        result, seed = _choice(given.get("result") or RESULTS[0]), given.get("seed") or 0
        order = {name: given[name] for name in self.defaults if given.get(name) not in (None, "")}
        if "steps" in order:
            order["steps"] = whole_number("steps", as_whole_number("steps", order["steps"]), most=MAX_STEPS)
        with self._lock:
            read = self._inserter(device).read({**order, "seeds": [seed]})
            host = read_host(series)
            [places] = read.insertion.place(host, read.lesions, read.seeds)
            inserted = read.insertion.insert(host, places)
            content = inserted.nifti(result)
        with tempfile.NamedTemporaryFile(prefix="synthetic_nodule_", suffix=".nii.gz", delete=False) as file:
            file.write(content)
        description = {
            "synthetic": True,
            "notice": NOTICE,
            **inserted.settings,
            "host": host.described,
            "result": result,
            "changed_voxels": inserted.changed_voxels,
            "nodules": inserted.requests,
        }
        return InsertedNodules(Path(file.name), description)

    def _load(self, device: str) -> BundleInserter:
        chosen = {} if self.inpainter is None else {"inpainter": self.inpainter}
        return BundleInserter(self.root, {"insertion": _VOXELS, "device": device, **chosen})


def _choice(result: Any) -> str:
    if result not in RESULTS:
        raise InputError(f"result: choose one of {', '.join(RESULTS)}, not {result!r}")
    return str(result)


def series_folder(image: Any, roots: Sequence[Path]) -> Path:
    """The folder that a client means by ``image``.

    Args:
        image: a path in one of the roots, or an absolute one that lies there.
        roots: folders whose content a client may have read.

    Raises:
        InputError: if there is no such folder.
    """
    for root in roots if isinstance(image, str) else []:
        if _is_folder_below(root, root / image):
            return root / image
    raise InputError(
        f"image: a CT series as DICOM is needed, not {image!r}; name a folder in the studies, or upload the files to a"
        " session (NIfTI files are not taken)"
    )


def _is_folder_below(root: Path, path: Path) -> bool:
    try:
        return path.is_dir() and path.resolve().is_relative_to(root.resolve())
    except OSError:  # of a name that is too long, for instance
        return False
