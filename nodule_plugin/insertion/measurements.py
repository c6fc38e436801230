"""What an inserted nodule measures and was asked to be, as a structured report (PS3.16, TID 1500 and TID 1411)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from highdicom.seg import Segmentation
from highdicom.sr import (
    EnhancedSR,
    Measurement,
    ReferencedSegment,
    SourceImageForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.dicom.codes import CODING_SCHEMES
from nodule_plugin.dicom.identity import RunIdentity
from nodule_plugin.dicom.report import add_texts, nodule_arguments, report_arguments, report_content
from nodule_plugin.insertion.segmentation import Segment

MEASURED = (
    "Ratings are what was requested of the generator; sizes are measured on the mask. Nobody has read this image."
)


def insertion_report(
    images: Sequence[Dataset],
    mask: Segmentation,
    segments: Sequence[Segment],
    requests: Sequence[Mapping[str, Any]],
    identity: RunIdentity,
    number: int,
) -> EnhancedSR:
    """One report with a group for each nodule.

    Args:
        images: the slices that the mask was made from.
        mask: the nodules' segmentation.
        segments: of it, in order.
        requests: of each: ``prompt``, ``findings`` (ratings or None), ``measured_diameter_mm``, ``measured_volume_mm3``
            and what the identity's parameters take.
        identity: of the run.
        number: of the series that the nodules are in, from 1.
    """
    groups = []
    for index, (segment, request) in enumerate(zip(segments, requests), start=1):
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=ReferencedSegment(
                mask.SOPClassUID, mask.SOPInstanceUID, index, source_images=[_source(image) for image in images]
            ),
            measurements=[
                Measurement(codes.SCT.Diameter, round(request["measured_diameter_mm"], 2), codes.UCUM.Millimeter),
                Measurement(codes.SCT.Volume, round(request["measured_volume_mm3"], 1), codes.UCUM.CubicMillimeter),
            ],
            **nodule_arguments(
                TrackingIdentifier(uid=segment.tracking_uid, identifier=segment.label), request, identity
            ),
        )
        add_texts(group, request["prompt"], f"{MEASURED} {NOTICE}")
        groups.append(group)
    return EnhancedSR(
        evidence=[mask, *images],
        content=report_content(groups, identity),
        series_instance_uid=identity.uid("report series", str(number)),
        series_number=1000 + 10 * number,
        sop_instance_uid=identity.uid("report", mask.SOPInstanceUID),
        instance_number=1,
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="SYNTHETIC: inserted nodules",
        coding_schemes=CODING_SCHEMES,
        **report_arguments(identity),
    )


def _source(image: Dataset) -> SourceImageForSegmentation:
    return SourceImageForSegmentation(image.SOPClassUID, image.SOPInstanceUID)
