"""Masks of nodules as DICOM Segmentation, with the codes that LIDC-IDRI's published segmentations have.

See Fedorov et al., "DICOM re-encoding of volumetrically annotated Lung Imaging Database Consortium (LIDC) nodules", Med
Phys 2020;47:5953-5965. As SNOMED CT, which has taken the place of the SNOMED RT codes of that collection.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from nodule_plugin import __version__
from nodule_plugin.dicom.identity import MANUFACTURER, long_string

KINDS = ("BINARY", "LABELMAP")
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "SliceThickness",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Segment:
    """One nodule.

    Attributes:
        label: in words.
        tracking_uid: the nodule's, which reports share.
        mask: (slices, rows, columns) bool.
        first: slice, row and column of the series at which the mask begins.
    """

    label: str
    tracking_uid: str
    mask: np.ndarray
    first: tuple[int, int, int]

    def put(self, labels: np.ndarray, number: int, first_slice: int = 0) -> None:
        """Set the nodule's voxels in labels of the series' slices from ``first_slice`` on."""
        starts = np.subtract(self.first, (first_slice, 0, 0))
        labels[tuple(slice(start, start + size) for start, size in zip(starts, self.mask.shape))][self.mask] = number


def segmentation(
    kind: str,
    images: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: AlgorithmIdentificationSequence | None,
    **identifiers: Any,
) -> Segmentation:
    """A segmentation object on the slices of a series that nodules touch.

    Args:
        kind: "BINARY" (a frame for each nodule and slice; nodules may share voxels) or "LABELMAP" (one for each slice).
        images: the series' slices, by ascending position; no pixels are needed.
        segments: at least one, in the order of their numbers; in a label map the later one holds shared voxels.
        algorithm: that made them; None for people.
        identifiers: of highdicom's Segmentation: UIDs, numbers, descriptions, dates.
    """
    low = min(segment.first[0] for segment in segments)
    high = max(segment.first[0] + len(segment.mask) for segment in segments)
    shape = (high - low, int(images[0].Rows), int(images[0].Columns))
    planes = np.zeros((*shape, len(segments)) if kind == "BINARY" else shape, np.uint8)
    for number, segment in enumerate(segments, start=1):
        if kind == "BINARY":
            segment.put(planes[..., number - 1], 1, low)
        else:
            segment.put(planes, number, low)
    made = Segmentation(
        source_images=[_completed(image) for image in images[low:high]],
        pixel_array=planes,
        segmentation_type=kind,
        segment_descriptions=[_description(number, item, algorithm) for number, item in enumerate(segments, start=1)],
        manufacturer=MANUFACTURER,
        manufacturer_model_name="nodule masks",
        software_versions=__version__,
        device_serial_number="none",
        content_label="NODULES",
        **identifiers,
    )
    # highdicom draws one at random; the same masks are to give the same file.
    organization = generate_uid(entropy_srcs=[made.SOPInstanceUID, "dimensions"])
    for item in [*made.DimensionOrganizationSequence, *made.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization
    # highdicom shares it where all frames have the same; dwv 0.36 looks for it in each frame.
    shared = made.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:
        for frame in made.PerFrameFunctionalGroupsSequence:
            frame.SegmentIdentificationSequence = copy.deepcopy(shared.SegmentIdentificationSequence)
        del shared.SegmentIdentificationSequence
    return made


def _description(
    number: int, segment: Segment, algorithm: AlgorithmIdentificationSequence | None
) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=long_string(segment.label),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type="MANUAL" if algorithm is None else "AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=segment.tracking_uid,
        tracking_id=long_string(segment.label),
        anatomic_regions=[codes.SCT.Lung],
    )


def _completed(image: Dataset) -> Dataset:
    """A slice with all attributes that highdicom lets be empty, but not missing; many files lack some."""
    completed = copy.copy(image)
    for keyword in _TYPE_2:
        if keyword not in completed:
            setattr(completed, keyword, None)
    return completed
