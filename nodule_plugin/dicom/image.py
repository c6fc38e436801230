"""A generated image as a DICOM CT image (PS3.3, A.3) in Hounsfield units."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from highdicom import SOPClass
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DS

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.data.window import checked_window
from nodule_plugin.dicom.identity import RunIdentity
from nodule_plugin.errors import InputError

_INT16 = np.iinfo(np.int16)


class SyntheticCTImage(SOPClass):
    """One generated slice, a series of its own.

    highdicom has no class for single-frame CT images; this one adds their modules to its base class. What a scanner
    would know is left empty (tube voltage, slice thickness, patient position): nobody was scanned. The stored values
    are Hounsfield units (slope 1, intercept 0). Images of one run show different places that do not exist, so each has
    its own frame of reference; a viewer that stacked them would show a volume that never was.

    Args:
        hu: (rows, columns) Hounsfield units; rounded.
        spacing_mm: between pixels, both ways.
        request: what was asked for, see :mod:`nodule_plugin.data.requests`.
        identity: of the run.
        series_number: of the image's series within the study, from 1.

    Raises:
        InputError: if values do not fit into 16 bits.
    """

    def __init__(
        self,
        hu: np.ndarray,
        spacing_mm: float,
        request: Mapping[str, Any],
        identity: RunIdentity,
        series_number: int,
    ) -> None:
        stored = _stored(hu, str(request["id"]))
        digest = hashlib.sha256(stored.tobytes()).hexdigest()
        super().__init__(
            series_instance_uid=identity.uid("series", request["id"], digest),
            series_number=series_number,
            sop_instance_uid=identity.uid("image", request["id"], digest),
            sop_class_uid=CTImageStorage,
            instance_number=1,
            modality="CT",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=f"SYNTHETIC nodule {series_number - 1}",
            **identity.arguments,
        )
        identity.mark(self, request)
        self._add_series(identity.uid("frame of reference", request["id"], digest))
        self._add_general_image(request)
        self._add_plane(spacing_mm)
        self._add_pixels(stored)
        self._add_window(identity.run["window_hu"])

    def _add_series(self, frame_of_reference_uid: str) -> None:
        """General Series and Frame of Reference (PS3.3, C.7.3.1 and C.7.4.1)."""
        self.BodyPartExamined = "CHEST"
        self.PatientPosition = ""
        self.FrameOfReferenceUID = frame_of_reference_uid
        self.PositionReferenceIndicator = ""

    def _add_general_image(self, request: Mapping[str, Any]) -> None:
        """General Image, General Reference and CT Image (C.7.6.1, C.12.4 and C.8.2.1) but for the pixels."""
        self.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        self.DerivationDescription = "Generated from text by a latent diffusion model; no acquisition, no patient"
        self.ImageComments = f"{NOTICE} Prompt: {request['prompt']}"
        self.BurnedInAnnotation = "NO"
        self.LossyImageCompression = "00"
        self.AcquisitionNumber = None
        self.KVP = None

    def _add_plane(self, spacing_mm: float) -> None:
        """Image Plane (C.7.6.2): rows run to the patient's left, columns to the back, as in the NIfTI files."""
        self.PixelSpacing = [DS(spacing_mm, auto_format=True)] * 2
        self.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        self.ImagePositionPatient = [0, 0, 0]
        self.SliceThickness = None

    def _add_pixels(self, stored: np.ndarray) -> None:
        """Image Pixel (C.7.6.3), and the rescale of the CT Image module that leaves values as they are."""
        self.Rows, self.Columns = stored.shape
        self.SamplesPerPixel = 1
        self.PhotometricInterpretation = "MONOCHROME2"
        self.BitsAllocated, self.BitsStored, self.HighBit, self.PixelRepresentation = 16, 16, 15, 1
        self.RescaleIntercept, self.RescaleSlope, self.RescaleType = 0, 1, "HU"
        self.PixelData = stored.astype("<i2").tobytes()

    def _add_window(self, window_hu: Sequence[float]) -> None:
        """VOI LUT (C.11.2): the window that the image was generated in."""
        lower, upper = checked_window(window_hu)
        self.WindowCenter = DS((lower + upper) / 2, auto_format=True)
        self.WindowWidth = DS(upper - lower, auto_format=True)
        self.WindowCenterWidthExplanation = "Generation"


def _stored(hu: np.ndarray, name: str) -> np.ndarray:
    rounded = np.rint(hu)
    if not (np.isfinite(rounded).all() and rounded.min() >= _INT16.min and rounded.max() <= _INT16.max):
        raise InputError(f"image {name}: Hounsfield units must fit into 16 bits; give a narrower window_hu")
    return rounded.astype(np.int16)
