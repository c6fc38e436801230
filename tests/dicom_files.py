"""Small synthetic CT series and readings of them, written for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from nodule_plugin.lidc.pydicom_versions import save_conforming

SERIES_UID = "2.25.1001"
STUDY_UID = "2.25.1000"
_GDCM_SYNTAXES = {
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    RLELossless: gdcm.TransferSyntax.RLELossless,
}
COMPRESSED = tuple(_GDCM_SYNTAXES)
"""Transfer syntaxes that :func:`compress` writes."""


def compress(path: Path, syntax: str) -> Path:
    """Encode the pixels of an uncompressed DICOM file, in place."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(_GDCM_SYNTAXES[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def make_slice(z: float, size: int = 16, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> FileDataset:
    """One CT instance at ``z`` whose pixels are all ``round(z)`` after rescaling; ``elements`` replace its own."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(
        "",
        {},
        b"\0" * 128,
        meta,
        is_implicit_VR=meta.TransferSyntaxUID.is_implicit_VR,
        is_little_endian=meta.TransferSyntaxUID.is_little_endian,
    )
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "PatientID": "TEST-0001",
        "StudyInstanceUID": STUDY_UID,
        "SeriesInstanceUID": SERIES_UID,
        "SliceThickness": 2.5,
        "InstanceNumber": 1,
        "ImagePositionPatient": [-10.0, -20.0, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.5],
        "Rows": size,
        "Columns": size,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    for name, value in (values | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    stored = (round(z) - float(dataset.get("RescaleIntercept", -1024))) / float(dataset.get("RescaleSlope", 1))
    order = "<" if meta.TransferSyntaxUID.is_little_endian else ">"
    dataset.PixelData = np.full((size, size), round(stored), f"{order}i2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def write_slice(path: Path, z: float, size: int = 16, **elements: Any) -> Path:
    """Write :func:`make_slice`'s instance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_conforming(make_slice(z, size, **elements), path)
    return path


def write_series(folder: Path, positions: list[float], **elements: Any) -> list[Path]:
    """A series whose file names do not follow its slice order; the files by position."""
    return [
        write_slice(folder / f"{(7 * number + 3) % 101:06d}.dcm", z, InstanceNumber=number + 1, **elements)
        for number, z in enumerate(positions)
    ]


RATINGS = {
    "subtlety": 5,
    "internalStructure": 1,
    "calcification": 6,
    "sphericity": 4,
    "margin": 4,
    "lobulation": 1,
    "spiculation": 1,
    "texture": 5,
    "malignancy": 3,
}
SQUARE = [(5, 4), (5, 10), (11, 10), (11, 4)]
"""(x, y) corners: centre row 7, column 8; diagonal sqrt(72) pixels."""


def nodule_xml(contours: list[tuple[float, list[tuple[int, int]]]], inclusion: str = "TRUE", **ratings: int) -> str:
    """An ``unblindedReadNodule`` with ratings and outlines."""
    rated = "".join(f"<{name}>{code}</{name}>" for name, code in (RATINGS | ratings).items())
    rois = "".join(
        f"<roi><imageZposition>{z} </imageZposition><inclusion>{inclusion}</inclusion>"
        + "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
        + "</roi>"
        for z, points in contours
    )
    head = f"<noduleID>1</noduleID><characteristics>{rated}</characteristics>"
    return f"<unblindedReadNodule>{head}{rois}</unblindedReadNodule>"


def write_message(path: Path, readings: list[str], series_uid: str = SERIES_UID) -> Path:
    """A LidcReadMessage; ``readings`` are what each reader's session holds."""
    sessions = "\n".join(f"<readingSession>{reading}</readingSession>" for reading in readings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<LidcReadMessage xmlns="http://www.nih.gov">\n<ResponseHeader>'
        f"<SeriesInstanceUid>{series_uid}</SeriesInstanceUid><StudyInstanceUID>{STUDY_UID}</StudyInstanceUID>"
        f"</ResponseHeader>\n{sessions}\n</LidcReadMessage>\n"
    )
    return path
