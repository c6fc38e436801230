"""One slice of a phantom as a DICOM CT image (PS3.3, A.3), marked as synthetic wherever the standard has a place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from nodule_plugin import __version__
from nodule_plugin.lidc.phantom.provenance import NOTICE
from nodule_plugin.lidc.pydicom_versions import save_conforming

INTERCEPT = -1024
"""Stored value 0 in HU, as in most of LIDC-IDRI."""

_DATE, _TIME = "20000101", "000000"
"""A date that nobody takes for an examination's: the same input must give the same files."""


@dataclass(frozen=True)
class SeriesIdentity:
    """Identifiers shared by the slices of one series, none of them a real patient's."""

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str


@dataclass(frozen=True)
class SliceGeometry:
    """Where a slice lies, and its identifiers.

    Attributes:
        sop_instance_uid: the slice's own UID.
        number: InstanceNumber, from 1.
        position: of the first pixel's centre in patient coordinates (x, y, z), mm.
        spacing: between pixels, mm.
        thickness: of the slice, mm.
    """

    sop_instance_uid: str
    number: int
    position: tuple[float, float, float]
    spacing: float
    thickness: float


def write_slice(path: Path, hu: np.ndarray, identity: SeriesIdentity, geometry: SliceGeometry) -> None:
    """Write a slice of (rows, columns) HU, -1024 to 3071."""
    dataset = _identify(identity, geometry)
    dataset.ImagePositionPatient = [round(value, 6) for value in geometry.position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [geometry.spacing, geometry.spacing]
    dataset.SliceThickness = geometry.thickness
    dataset.SliceLocation = round(geometry.position[2], 6)
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = INTERCEPT, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = -600, 1600
    stored = np.clip(np.rint(hu) - INTERCEPT, 0, 4095).astype("<u2")
    dataset.PixelData = stored.tobytes()
    save_conforming(dataset, path)


def _identify(identity: SeriesIdentity, geometry: SliceGeometry) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(geometry.sop_instance_uid)
    dataset.SOPInstanceUID = geometry.sop_instance_uid
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.DerivationDescription = "Synthetic phantom drawn by software; no acquisition"
    dataset.ImageComments = NOTICE
    dataset.ContentQualification = "RESEARCH"
    dataset.BurnedInAnnotation = "NO"
    dataset.PatientID = identity.patient_id
    dataset.PatientName = f"{identity.patient_id}^SYNTHETIC"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = identity.study_instance_uid
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = _DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = _TIME
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyID = "1"
    dataset.StudyDescription = dataset.SeriesDescription = "SYNTHETIC chest phantom"
    dataset.SeriesInstanceUID = identity.series_instance_uid
    dataset.Modality = "CT"
    dataset.SeriesNumber = 1
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = geometry.number
    dataset.PatientPosition = "HFS"
    dataset.BodyPartExamined = "CHEST"
    dataset.KVP = None
    dataset.FrameOfReferenceUID = identity.frame_of_reference_uid
    dataset.PositionReferenceIndicator = ""
    dataset.Manufacturer = "nodule-plugin"
    dataset.ManufacturerModelName = "phantom"
    dataset.SoftwareVersions = __version__
    return dataset
