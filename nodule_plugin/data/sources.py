"""One way in for every source of nodules: LIDC-IDRI's CT series, a folder of crops, or synthetic CT (phantoms)."""

from __future__ import annotations

from pathlib import Path

from nodule_plugin.data.crops import SIDECAR, TABLE, nodules_from_crops
from nodule_plugin.data.lidc_tree import nodules_from_lidc
from nodule_plugin.data.nodule import NoduleSet
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json, visible_entries
from nodule_plugin.lidc.consensus import DEFAULT_RULE
from nodule_plugin.lidc.selection import Selection
from nodule_plugin.lidc.series import contains_dicom
from nodule_plugin.parallel import workers

PHANTOM = "phantom"
SOURCES = ("auto", "crops", "lidc-idri", PHANTOM)


def load_nodules(
    dataset_dir: str | Path,
    source: str = "auto",
    consensus: str | None = None,
    selection: Selection | None = None,
    annotations: str = "auto",
    index_file: str | Path | None = None,
    num_workers: int = 1,
    parallel: str = "processes",
    cluster_address: str | None = None,
    skip_broken: bool = False,
    phantom_dir: str | Path = PHANTOM,
    phantom_nodules: int = 300,
    phantom_seed: int = 0,
) -> NoduleSet:
    """The nodules of a folder, whichever of the layouts it has.

    Args:
        dataset_dir: the folder; "phantom" for synthetic CT.
        source: "crops", "lidc-idri", "phantom", or "auto": "phantom" where that is ``dataset_dir``, else crops where
            the folder holds a nodules.csv, else LIDC-IDRI where there is any DICOM file below it.
        consensus: how readers are combined, median by default; only for LIDC-IDRI, crops hold one consensus already.
        selection: limits; all nodules by default.
        annotations, index_file, skip_broken: see :func:`nodules_from_lidc`; only for LIDC-IDRI.
        num_workers, parallel, cluster_address: who does the work, see :func:`nodule_plugin.parallel.workers`; only for
            LIDC-IDRI and phantoms.
        phantom_dir: where phantoms are written; used again where they were made with the same settings.
        phantom_nodules: how many phantoms.
        phantom_seed: their seed.

    Raises:
        InputError: if there is no such folder or source, the folder is none of these, or nothing is left of it.
    """
    if source not in SOURCES:
        raise InputError(f"source: there is no {source!r}; choose one of {', '.join(SOURCES)}")
    if source == PHANTOM or (source == "auto" and str(dataset_dir) == PHANTOM):
        with workers(num_workers, parallel, cluster_address):
            root = make_phantoms(Path(phantom_dir), phantom_nodules, phantom_seed)
        chosen = "crops"
    else:
        root = _existing_folder(Path(dataset_dir))
        chosen = _detect(root) if source == "auto" else source
    if chosen == "crops":
        if consensus is not None:
            raise InputError(f"consensus: {root} holds one consensus for each nodule; leave {consensus!r} out")
        nodules = nodules_from_crops(root, selection)
    else:
        with workers(num_workers, parallel, cluster_address):
            nodules = nodules_from_lidc(
                root,
                rule=DEFAULT_RULE if consensus is None else consensus,
                selection=selection,
                annotations=annotations,
                index_file=Path(index_file) if index_file is not None else None,
                skip_broken=skip_broken,
            )
    if not nodules.nodules:
        raise InputError(
            f"{root}: no nodule is left ({_reasons(nodules)}); loosen the selection or give another folder"
        )
    return nodules


def make_phantoms(phantom_dir: Path, nodules: int, seed: int) -> Path:
    """Write phantoms, unless the folder holds them already.

    Returns:
        The folder, absolute.

    Raises:
        InputError: if the folder holds something else, or phantoms made with other settings.
    """
    folder = phantom_dir.absolute()
    if not folder.exists() or (folder.is_dir() and not visible_entries(folder)):
        from nodule_plugin.lidc.phantom import write_phantom_crops  # only here: drawing costs imports and seconds

        return write_phantom_crops(folder, nodules=nodules, seed=seed).absolute()
    sidecar = folder / SIDECAR
    try:
        made = read_json(sidecar)
        settings = {"source": made["source"], "nodules": made["nodules"], "seed": made["seed"]}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: not a folder of phantoms; give phantom_dir another, empty one") from error
    wanted = {"source": PHANTOM, "nodules": nodules, "seed": seed}
    if settings != wanted:
        raise InputError(
            f"{sidecar}: made with {settings}, wanted is {wanted}; give phantom_dir another folder or delete it"
        )
    return folder


def _existing_folder(folder: Path) -> Path:
    if not folder.exists():
        raise InputError(f"dataset_dir: there is no {folder}; give LIDC-IDRI's folder, a folder of crops, or 'phantom'")
    if not folder.is_dir():
        raise InputError(f"dataset_dir: {folder} is a file; give the folder it lies in")
    try:
        empty = not visible_entries(folder)
    except OSError as error:
        raise InputError(f"dataset_dir: {folder} cannot be read ({error.strerror}); change its permissions") from error
    if empty:
        raise InputError(f"dataset_dir: {folder} is empty; give LIDC-IDRI's folder, a folder of crops, or 'phantom'")
    return folder.absolute()


def _detect(folder: Path) -> str:
    if (folder / TABLE).is_file():
        return "crops"
    if contains_dicom(folder):
        return "lidc-idri"
    raise InputError(
        f"dataset_dir: {folder} holds neither {TABLE} nor, at any depth, a DICOM file; give another folder"
    )


def _reasons(nodules: NoduleSet) -> str:
    counts: dict[str, int] = {}
    for skipped in nodules.skipped:
        counts[skipped.reason] = counts.get(skipped.reason, 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return "; ".join(f"{count} skipped: {reason}" for reason, count in most) or "it lists none"
