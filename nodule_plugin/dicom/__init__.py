"""Generated images as DICOM: a CT image in Hounsfield units and a structured report of what was asked for.

Needs highdicom (the extra ``dicom``). What is written where stands in docs/dicom.md.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from nodule_plugin.data.requests import checked_prompt
from nodule_plugin.dicom.identity import RunIdentity, parse_created
from nodule_plugin.dicom.image import SyntheticCTImage
from nodule_plugin.dicom.report import findings_report

# At its level "info" it reports every attribute that a report takes over from its image.
logging.getLogger("highdicom").setLevel(logging.WARNING)

__all__ = ["DicomEncoder", "parse_created"]


class DicomEncoder:
    """The images of one run as one DICOM study: each image a series of its own, all reports one series.

    Args:
        run: settings of the run, as manifests hold them; ``model`` and ``window_hu`` are needed.
        created: the time that the files carry; see :class:`nodule_plugin.dicom.identity.RunIdentity`.
    """

    def __init__(self, run: Mapping[str, Any], created: datetime) -> None:
        self.identity = RunIdentity(run, created)

    def encode(self, hu: np.ndarray, spacing_mm: float, request: Mapping[str, Any], number: int) -> tuple[bytes, bytes]:
        """One image and its report, as files.

        Args:
            hu: (rows, columns) Hounsfield units; stored rounded, as int16.
            spacing_mm: between pixels.
            request: what was asked for, see :mod:`nodule_plugin.data.requests`.
            number: of the image within the run, from 1.

        Raises:
            InputError: if the values do not fit into 16 bits, or DICOM cannot hold the prompt.
        """
        request = {**request, "prompt": checked_prompt("prompt", request["prompt"])}
        image = SyntheticCTImage(hu, spacing_mm, request, self.identity, series_number=number + 1)
        report = findings_report(image, request, self.identity, instance_number=number)
        return _file(image), _file(report)


def _file(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
