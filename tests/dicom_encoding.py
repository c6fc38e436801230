"""A small image and a request, and the DICOM files they become."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pydicom

from nodule_plugin.dicom import DicomEncoder

CREATED = "2026-11-25T10:00:00.123456+00:00"
PROMPT = "The nodule is round in shape – naïve 結節"
RUN: dict[str, Any] = {
    "model": {"base_model": "owner/name", "weights_sha256": "0123456789abcdef" * 4, "prediction_type": "epsilon"},
    "scheduler": "DPMSolverMultistepScheduler",
    "num_inference_steps": 25,
    "guidance_interval": None,
    "window_hu": [-1000, 400],
    "software": {"nodule_plugin": "0.1.0", "torch": "2.14.1"},
}
FINDINGS = {"sphericity": 5, "margin": 3, "texture": 5, "spiculation": 1, "calcification": 6, "malignancy": 2}
REQUEST: dict[str, Any] = {
    "id": "findings000_g5_s7",
    "prompt": PROMPT,
    "findings": FINDINGS,
    "guidance_scale": 5.0,
    "seed": 7,
    "roi_mm": 20.0,
    "source_id": None,
}


@dataclass
class Encoded:
    """An image in Hounsfield units, and the files it became."""

    hu: np.ndarray
    files: tuple[bytes, bytes]

    @property
    def image(self) -> pydicom.Dataset:
        return pydicom.dcmread(io.BytesIO(self.files[0]))

    @property
    def report(self) -> pydicom.Dataset:
        return pydicom.dcmread(io.BytesIO(self.files[1]))


def encode(hu: np.ndarray | None = None, number: int = 1, created: str = CREATED, **request: Any) -> Encoded:
    """Encode an image (by default one with every value of the window, and not square) as a run of its own would."""
    if hu is None:
        hu = np.resize(np.arange(-1000, 401, dtype=np.int16), (30, 47))
    encoder = DicomEncoder(RUN, datetime.fromisoformat(created))
    return Encoded(hu, encoder.encode(hu, 20 / 64, {**REQUEST, **request}, number))
