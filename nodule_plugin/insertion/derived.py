"""The series written again: the host's slices with a nodule in them, as DICOM that says what it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import SOPClass
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.dicom.identity import RunIdentity, long_string
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.host import Host

PATIENTS, STUDIES = ("replace", "keep"), ("new", "host")
DERIVATION = "Synthetic lung nodule inserted by software into a CT image; pixels elsewhere are the source's"
_KEPT = (
    # Image Plane, Image Pixel, Modality and VOI LUT (PS3.3 C.7.6.2, C.7.6.3, C.11)
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation",
    "SpacingBetweenSlices", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "BurnedInAnnotation",
    "PixelData",
    # General Series, General Equipment, General Image
    "PatientPosition", "BodyPartExamined", "Manufacturer", "ManufacturerModelName", "SoftwareVersions",
    "PositionReferenceIndicator", "InstanceNumber", "AcquisitionNumber",
    # CT Image (C.8.2.1)
    "KVP", "XRayTubeCurrent", "ExposureTime", "Exposure", "ExposureInuAs", "FilterType", "GeneratorPower", "FocalSpots",
    "ConvolutionKernel", "ScanOptions", "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector",
    "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight", "RotationDirection", "RevolutionTime",
    "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor",
    "ExposureModulationType", "CTDIvol",
)  # fmt: skip
"""What nobody's slices take over: geometry, pixels and acquisition; nothing typed by hand, no date and no UID."""
_STALE = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence",
)  # fmt: skip
"""What would no longer be true."""
_OF_THE_ORDER = ("RequestAttributesSequence", "RequestedProcedureCodeSequence", "ReferencedStudySequence")


@dataclass(frozen=True)
class Belonging:
    """Whose the new series is.

    Attributes:
        patient: "replace" (nobody's: all but geometry, pixels and acquisition is left out) or "keep" (the host's).
        study: "new", or "host", the host's own, which needs its patient.

    Raises:
        InputError: for anything else.
    """

    patient: str = "replace"
    study: str = "new"

    def __post_init__(self) -> None:
        for name, value, choices in (("patient", self.patient, PATIENTS), ("study", self.study, STUDIES)):
            if value not in choices:
                raise InputError(f"{name}: {' or '.join(choices)}, not {value!r}")
        if self.study == "host" and self.patient != "keep":
            raise InputError("study: host: a study is one patient's; give patient keep as well, or study new")


def derived_slices(
    host: Host,
    stored: Sequence[np.ndarray],
    prompts: Sequence[str],
    request: Mapping[str, Any],
    identity: RunIdentity,
    belonging: Belonging,
    number: int,
) -> list[Dataset]:
    """The slices of a new series.

    Slices whose pixels are the host's keep their transfer syntax; changed ones are explicit VR little endian, and all
    voxels that were not changed keep their stored values. Texts are UTF-8. Slices are numbered by position where the
    host does not number them, or twice by one number.

    Args:
        host: the series.
        stored: (rows, columns) of each slice, as :meth:`Host.to_stored` gives them.
        prompts: of the nodules.
        request: what the identity's parameters take.
        identity: of the run; UIDs follow from it and from the host's.
        belonging: whose they are.
        number: of the series among the run's, from 1.
    """
    slices = []
    numbers = [source.get("InstanceNumber") for source in host.slices]
    numbered = None not in numbers and len(set(numbers)) == len(numbers)
    for index, source in enumerate(host.slices):
        if belonging.patient == "keep":
            derived = _patients(source, identity, belonging, number)
            identity.mark_instance(derived, request)
            before = source.get("ContributingEquipmentSequence") or []
            derived.ContributingEquipmentSequence = [*before, *derived.ContributingEquipmentSequence]
        else:
            derived = _nobodys(source, identity, number)
            identity.mark(derived, request)
        if not numbered:  # viewers order by it
            _delete(derived, ("InstanceNumber",))  # which may be the source's, as below
            derived.InstanceNumber = index + 1
        if not np.array_equal(stored[index], host.stored[index]):
            _set_pixels(derived, stored[index])
        _mark(derived, source, prompts)
        slices.append(derived)
    return slices


def _patients(source: Dataset, identity: RunIdentity, belonging: Belonging, number: int) -> Dataset:
    """A copy that stays the patient's."""
    derived = copy.deepcopy(source)  # setting an attribute of a shallow copy sets the source's
    derived.decode()  # by the host's own character set; the prompts need one that has every character
    derived.SpecificCharacterSet = "ISO_IR 192"
    derived.SOPClassUID = source.get("SOPClassUID") or CTImageStorage
    derived.SeriesInstanceUID = identity.uid("series", str(source.SeriesInstanceUID), str(number))
    derived.SOPInstanceUID = identity.uid("image", str(source.SOPInstanceUID), str(number))
    derived.file_meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
    derived.SeriesNumber = 100 * (source.get("SeriesNumber") or 0) + number
    derived.SeriesDescription = long_string(f"SYNTHETIC nodule in: {source.get('SeriesDescription') or 'CT'}")
    if belonging.study == "new":
        derived.StudyInstanceUID = identity.uid("study", str(source.get("StudyInstanceUID") or ""))
        derived.StudyDescription = long_string(f"SYNTHETIC: {source.get('StudyDescription') or 'CT'}")
        derived.AccessionNumber = ""
        _delete(derived, _OF_THE_ORDER)
    elif not derived.get("StudyInstanceUID"):
        raise InputError("study: host: the series has no StudyInstanceUID; give study new")
    if not derived.get("FrameOfReferenceUID"):
        derived.FrameOfReferenceUID = identity.uid("frame of reference")
    _delete(derived, _STALE)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = derived.SOPClassUID, source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [_item(codes.DCM.SourceImageForImageProcessingOperation)]
    derived.SourceImageSequence = [reference]
    return derived


def _nobodys(source: Dataset, identity: RunIdentity, number: int) -> Dataset:
    """A slice with the host's geometry and acquisition and nobody's name. It refers to no image of the patient."""
    derived = SOPClass(
        series_instance_uid=identity.uid("series", str(number)),
        series_number=number,
        sop_instance_uid=identity.uid("image", str(source.SOPInstanceUID), str(number)),
        sop_class_uid=CTImageStorage,
        instance_number=1,
        modality="CT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=f"SYNTHETIC nodule in CT {number}",
        **identity.arguments,
    )
    for keyword in _KEPT:
        if keyword in source:
            derived[keyword] = source[keyword]
    derived.file_meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
    derived.FrameOfReferenceUID = identity.uid("frame of reference")
    for keyword in ("KVP", "AcquisitionNumber", "PatientPosition", "SliceThickness", "PositionReferenceIndicator"):
        if keyword not in derived:
            setattr(derived, keyword, None)
    if not derived.get("BodyPartExamined"):
        _delete(derived, ("BodyPartExamined",))
        derived.BodyPartExamined = "CHEST"
    derived.PatientIdentityRemoved = "YES"
    derived.DeidentificationMethod = "nodule-plugin: only geometry, pixels, acquisition copied"
    return derived


def _set_pixels(derived: Dataset, stored: np.ndarray) -> None:
    derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _delete(derived, ("PixelData",))  # the element may be the source's, and setting its value would set the source's
    derived.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    derived["PixelData"].VR = "OW" if derived.BitsAllocated > 8 else "OB"


def _mark(derived: Dataset, source: Dataset, prompts: Sequence[str]) -> None:
    """General Image and General Reference (PS3.3 C.7.6.1 and C.12.4): what the pixels are."""
    derived.ContentQualification = "RESEARCH"
    derived.ImageType = ["DERIVED", "SECONDARY", *(list(source.get("ImageType") or [])[2:] or ["AXIAL"])]
    derived.DerivationDescription = DERIVATION
    derived.DerivationCodeSequence = [_item(codes.DCM.PixelByPixelAddition)]
    derived.ImageComments = f"{NOTICE} {'; '.join(prompts)}"[:10240]


def _item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _delete(dataset: Dataset, keywords: Sequence[str]) -> None:
    for keyword in keywords:
        if keyword in dataset:
            delattr(dataset, keyword)
