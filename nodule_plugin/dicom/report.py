"""What an image was asked to show, as a structured report: PS3.16, TID 1500 "Measurement Report"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    FindingSite,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from nodule_plugin import __version__
from nodule_plugin.data.generated import NOTICE
from nodule_plugin.dicom.codes import CODING_SCHEMES, CONCEPTS, PROMPT, VALUES
from nodule_plugin.dicom.identity import MANUFACTURER, MODEL_NAME, RunIdentity, long_string
from nodule_plugin.dicom.image import SyntheticCTImage

REQUESTED = "Requested of the generator. Nobody has read this image."
"""The findings are an order, not an observation; whoever opens the report must see that first."""
_CHEST_CT = Code("24627-2", "LN", "CT Chest Report")


def findings_report(
    image: SyntheticCTImage, request: Mapping[str, Any], identity: RunIdentity, instance_number: int
) -> EnhancedSR:
    """The prompt, the findings and the generator of one image.

    Args:
        image: that the report is about.
        request: what was asked for; ``findings`` may be None, then the report holds the prompt alone.
        identity: of the run.
        instance_number: within the run's series of reports, from 1.
    """
    report = EnhancedSR(
        evidence=[image],
        content=report_content([_group(image, request, identity)], identity),
        series_instance_uid=identity.uid("series of reports"),
        series_number=1,
        sop_instance_uid=identity.uid("report", image.SOPInstanceUID),
        instance_number=instance_number,
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="SYNTHETIC: what the generator was asked for",
        coding_schemes=CODING_SCHEMES,
        **report_arguments(identity),
    )
    identity.mark(report, request)
    return report


def report_arguments(identity: RunIdentity) -> dict[str, Any]:
    """Of highdicom's reports: equipment and dates. Patient and study they take from the images."""
    return {name: value for name, value in identity.arguments.items() if name in _OF_REPORTS}


_OF_REPORTS = (
    "manufacturer", "manufacturer_model_name", "software_versions", "content_qualification", "specific_character_set",
    "series_date", "series_time", "content_date", "content_time",
)  # fmt: skip


def report_content(groups: Sequence[Any], identity: RunIdentity) -> MeasurementReport:
    """TID 1500 around groups of measurements, observed by the generator."""
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=identity.uid("generator"), name=MODEL_NAME, manufacturer_name=MANUFACTURER, model_name=MODEL_NAME
        ),
    )
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=_CHEST_CT,
        imaging_measurements=list(groups),
    )


def _group(
    image: SyntheticCTImage, request: Mapping[str, Any], identity: RunIdentity
) -> MeasurementsAndQualitativeEvaluations:
    tracking = TrackingIdentifier(
        uid=identity.uid("nodule", image.SOPInstanceUID), identifier=str(image.SeriesDescription)
    )
    group = MeasurementsAndQualitativeEvaluations(
        source_images=[SourceImageForMeasurementGroup.from_source_image(image)],
        **nodule_arguments(tracking, request, identity),
    )
    add_texts(group, request["prompt"], f"{REQUESTED} {NOTICE}")
    return group


def nodule_arguments(tracking: TrackingIdentifier, request: Mapping[str, Any], identity: RunIdentity) -> dict[str, Any]:
    """Of highdicom's measurement groups: a nodule of the lung, what was asked of it, and what made it.

    Args:
        tracking: of the nodule.
        request: ``findings`` (ratings or None), and what the identity's parameters take.
        identity: of the run.
    """
    return {
        "tracking_identifier": tracking,
        "finding_category": codes.SCT.MorphologicallyAbnormalStructure,
        "finding_type": codes.SCT.Nodule,
        "finding_sites": [FindingSite(anatomic_location=codes.SCT.Lung)],
        "algorithm_id": AlgorithmIdentification(
            name=long_string(identity.run["model"]["base_model"]),
            version=__version__,
            manufacturer=MANUFACTURER,
            parameters=identity.parameters(request),
        ),
        "qualitative_evaluations": [
            QualitativeEvaluation(CONCEPTS[name], VALUES[name][rating])
            for name, rating in (request["findings"] or {}).items()
        ],
    }


def add_texts(group: Any, prompt: str, comment: str) -> None:
    """Add the prompt and a comment to a measurement group."""
    contains = RelationshipTypeValues.CONTAINS
    group[0].ContentSequence.extend(
        [TextContentItem(PROMPT, prompt, contains), TextContentItem(codes.DCM.Comment, comment, contains)]
    )
