"""Nodules into a CT series: read, check, insert, write. The folder appears when it is whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from nodule_plugin import __version__
from nodule_plugin.data.generated import NOTICE
from nodule_plugin.dicom.identity import RunIdentity, long_string, parse_created
from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder, write_json
from nodule_plugin.insertion.derived import Belonging, derived_slices
from nodule_plugin.insertion.host import Host, read_host
from nodule_plugin.insertion.measurements import insertion_report
from nodule_plugin.insertion.place import Lesion, Place
from nodule_plugin.insertion.segmentation import KINDS, Segment, segmentation
from nodule_plugin.insertion.voxels import VoxelInsertion
from nodule_plugin.settings import as_flag

FORMAT, VERSION, MANIFEST = "nodule-plugin insertion", 1, "manifest.json"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Insertion(VoxelInsertion):
    """How nodules are put into a series, and that is written.

    Args:
        belonging: whose the new series is.
        created: time that the files carry, ISO 8601; None is the time of the call. UIDs depend on it.
    """

    belonging: Belonging = field(default_factory=Belonging)
    created: str | None = None

    def __call__(self, series: str | Path, lesions: Sequence[Lesion], seeds: Sequence[int], output: str | Path) -> Path:
        """Write a series with all lesions for each seed, and what describes it.

        Args:
            series: folder of the host.
            lesions: see :func:`nodule_plugin.insertion.lesions.read_lesions`.
            seeds: each gives other nodules, and random places of its own.
            output: a folder that does not exist yet, or is empty.

        Returns:
            ``output``, with a folder for each seed (``ct/*.dcm``, ``segmentation_*.dcm``, ``report.dcm``,
            ``volume.nii.gz``, ``mask.nii.gz``) and ``manifest.json``.

        Raises:
            InputError: naming what was given and cannot be used; nothing is written then.
        """
        created = parse_created(self.created or datetime.now(timezone.utc).isoformat())
        _refuse_within(Path(output), series)
        with new_folder(Path(output)) as folder:
            host = read_host(series)
            if host.described["synthetic"]:
                _logger.warning("series: %s says that it is synthetic itself: its nodules may be nobody's, too", series)
            settings = self.settings_for(host)
            if as_flag("mark", self.mark) and settings["mark"] is None:
                _logger.warning("series: %s: its stored values are no whole HU and can carry no mark", series)
            chosen = self.place(host, lesions, seeds)
            identity = RunIdentity(settings, created, made_from=_fingerprint(host, chosen))
            written = []
            for number, (seed, places) in enumerate(zip(seeds, chosen), start=1):
                name = f"seed{seed}"
                (folder / name).mkdir()
                written.append({"seed": seed, **self._write(folder / name, name, host, places, identity, number)})
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "synthetic": True,
                "notice": NOTICE,
                "created": created.isoformat(timespec="seconds"),
                **settings,
                "patient": self.belonging.patient,
                "study": self.belonging.study,
                "host": host.described,
                "series": written,
            }
            write_json(folder / MANIFEST, manifest)
        return Path(output)

    def _write(
        self, folder: Path, name: str, host: Host, places: Sequence[Place], identity: RunIdentity, number: int
    ) -> dict[str, Any]:
        inserted = self.insert(host, places)
        shared = {"guidance_scale": self.guidance_scale, "seed": [place.seed for place in places]}
        prompts = list(dict.fromkeys(place.lesion.prompt for place in places))
        slices = derived_slices(host, inserted.stored, prompts, shared, identity, self.belonging, number)
        segments = [
            Segment(
                f"nodule {index}",
                identity.uid("nodule", str(number), str(index)),
                place.mask >= 0.5,
                tuple(part.start for part in place.box),
            )
            for index, place in enumerate(places, start=1)
        ]
        (folder / "ct").mkdir()
        for index, dataset in enumerate(slices, start=1):
            dataset.save_as(folder / "ct" / f"{index:06d}.dcm", enforce_file_format=True)
        masks = _segmentations(slices, segments, identity, shared, number)
        low, high = _extent(segments)
        report = insertion_report(slices[low:high], masks["BINARY"], segments, inserted.requests, identity, number)
        identity.mark_instance(report, shared, slices[0].get("TimezoneOffsetFromUTC"))
        files = {"segmentation_binary": masks["BINARY"], "segmentation_labelmap": masks["LABELMAP"], "report": report}
        for file, dataset in files.items():
            dataset.save_as(folder / f"{file}.dcm", enforce_file_format=True)
        for kind in ("volume", "mask"):
            (folder / f"{kind}.nii.gz").write_bytes(inserted.nifti(kind))
        return {
            "series_instance_uid": str(slices[0].SeriesInstanceUID),
            "ct": f"{name}/ct",
            **{file: f"{name}/{file}.dcm" for file in files},
            **{file: f"{name}/{file}.nii.gz" for file in ("volume", "mask")},
            "changed_voxels": inserted.changed_voxels,
            "nodules": inserted.requests,
        }


def _refuse_within(output: Path, series: str | Path | None) -> None:
    """The next reading of the host's folder would find two series."""
    if series is not None and output.resolve().is_relative_to(Path(series).resolve()):
        raise InputError(f"output_dir: {output} lies in the series' own folder {series}; choose one outside of it")


def _fingerprint(host: Host, chosen: Sequence[Sequence[Place]]) -> str:
    """What UIDs follow from beside the run's settings: the host and the nodules."""
    nodules = [
        [place.lesion.prompt, place.lesion.diameter_mm, place.seed, *np.round(place.centre, 3).tolist()]
        for places in chosen
        for place in places
    ]
    return json.dumps([str(host.slices[0].SeriesInstanceUID), nodules])


def _extent(segments: Sequence[Segment]) -> tuple[int, int]:
    """The first slice that a mask's box touches, and the one after the last."""
    return min(item.first[0] for item in segments), max(item.first[0] + len(item.mask) for item in segments)


def _segmentations(
    slices: Sequence[Dataset],
    segments: Sequence[Segment],
    identity: RunIdentity,
    request: Mapping[str, Any],
    number: int,
) -> dict[str, Segmentation]:
    """The masks in each kind, a series of their own for each."""
    algorithm = AlgorithmIdentificationSequence(
        name=long_string(identity.run["model"]["base_model"]),
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source="nodule-plugin",
    )
    made = {}
    for order, kind in enumerate(KINDS, start=1):
        made[kind] = segmentation(
            kind,
            slices,
            segments,
            algorithm,
            series_instance_uid=identity.uid("segmentation series", kind, str(number)),
            series_number=1000 + 10 * number + order,
            sop_instance_uid=identity.uid("segmentation", kind, str(number)),
            instance_number=1,
            series_description=f"SYNTHETIC: masks of inserted nodules ({kind})",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        identity.mark_instance(made[kind], request, slices[0].get("TimezoneOffsetFromUTC"))
    return made
