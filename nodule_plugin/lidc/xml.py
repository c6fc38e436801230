"""The readers' XML files of LIDC-IDRI (``LidcReadMessage``, namespace http://www.nih.gov) as the records of a scan.

A file holds the second, unblinded reading of one CT series by up to four readers. Nodules of 3 mm or more have ratings
and outlines; smaller ones have only a point each, and non-nodules a point too: neither is an annotation here.

The files do not say what the series looks like. Slice thickness, pixel spacing, slice positions and the patient come
from the DICOM series, see :func:`with_geometry`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# ElementTree on Expat 2.4.1 or later refuses exponential entity expansion and never fetches external entities.
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.records import READERS_NAMES, Annotation, Contour, Reading, Scan

_NAMESPACE = "{http://www.nih.gov}"
_SAME_POSITION = 0.01
"""Positions nearer than this, mm, are the same: XML and DICOM round differently."""


LARGEST_FILE = 2**24
"""Bytes: about eight times as many as LIDC-IDRI's longest reading (21,415 points) has."""
_LARGEST_INDEX = 2**16
"""Of a pixel: DICOM's rows and columns are numbers of 16 bits."""


def is_read_message(path: Path) -> bool:
    """Whether a file is a ``LidcReadMessage``; the chest radiographs' ``IdriReadMessage`` and other XML are not.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            # With a prefix or without, in 8 or 16 bits a character.
            return re.search(rb"[<:]LidcReadMessage", file.read(4096).replace(b"\0", b"")) is not None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); change its permissions or remove it") from error


def read_reading(path: str | Path) -> Reading:
    """The annotations of one file, and when they were made.

    Returns:
        A reading whose scan has an empty ``patient_id`` and ``slice_z``, and NaN for thickness and spacing. An
        annotation's id is the reader's number in the file and the nodule's among that reader's nodules, such as "2.1".

    Raises:
        InputError: if the file is missing, too large, is not well-formed XML (with its line), is another kind of
            message, or lacks something an annotation needs.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"{file}: larger than {LARGEST_FILE:,} bytes, which no reading of a scan is; get it anew")
        root = ElementTree.parse(file).getroot()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a LidcReadMessage XML file") from error
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).split(":")[0]
        raise InputError(
            f"{file}: line {line}, column {column + 1}: not well-formed XML ({reason}); get it anew"
        ) from error
    except InputError:
        raise
    except (LookupError, ValueError) as error:
        raise InputError(f"{file}: not in an encoding that XML can be read in ({error}); get it anew") from error
    if root.tag != f"{_NAMESPACE}LidcReadMessage":
        raise InputError(f"{file}: the root element is {root.tag!r}, not LidcReadMessage: not a reading of a CT series")
    sessions = root.findall(f"{_NAMESPACE}readingSession")
    scan = Scan(
        patient_id="",
        study_instance_uid=_text(root, "ResponseHeader/StudyInstanceUID", file, "header"),
        series_instance_uid=_text(root, "ResponseHeader/SeriesInstanceUid", file, "header"),
        slice_thickness=math.nan,
        pixel_spacing=math.nan,
        slice_z=(),
        annotations=tuple(
            annotation
            for number, session in enumerate(sessions, start=1)
            for annotation in _annotations(session, number, file)
        ),
    )
    header = f"{_NAMESPACE}ResponseHeader/{_NAMESPACE}"
    date, time = (root.findtext(f"{header}{name}Service", "").strip() for name in ("Date", "Time"))
    return Reading(file, scan, f"{date} {time}" if date else "")


def with_geometry(
    scan: Scan, patient_id: str, slice_thickness: float, pixel_spacing: float, slice_z: Sequence[float]
) -> Scan:
    """A scan read from XML, completed by what its DICOM series says.

    Args:
        scan: as :func:`read_reading` gives it.
        patient_id: the series' patient.
        slice_thickness, pixel_spacing: mm.
        slice_z: positions of the slices, mm, in any order. Where a contour lies at a position that is not among them
            (the slice is missing from the folder) that position is added, so that slices keep their order.
    """
    outlined = {contour.z for annotation in scan.annotations for contour in annotation.contours}
    known = np.array(sorted(slice_z))
    missing = [z for z in outlined if not len(known) or np.abs(known - z).min() > _SAME_POSITION]
    return replace(
        scan,
        patient_id=patient_id,
        slice_thickness=slice_thickness,
        pixel_spacing=pixel_spacing,
        slice_z=tuple(sorted([*slice_z, *missing])),
    )


def _annotations(session: Element, reader: int, file: Path) -> list[Annotation]:
    rated: list[Annotation] = []
    for nodule in session.findall(f"{_NAMESPACE}unblindedReadNodule"):
        characteristics = nodule.find(f"{_NAMESPACE}characteristics")
        # Some files give a small nodule an empty <characteristics/>.
        if characteristics is not None and len(characteristics) > 0:
            rated.append(_annotation(nodule, characteristics, f"{reader}.{len(rated) + 1}", file))
    return rated


def _annotation(nodule: Element, characteristics: Element, annotation_id: str, file: Path) -> Annotation:
    name = _text(nodule, "noduleID", file, f"nodule {annotation_id}")
    where = f"nodule {name!r} of reader {annotation_id.partition('.')[0]}"
    outlines = nodule.findall(f"{_NAMESPACE}roi")
    if not outlines:
        raise InputError(f"{file}: {where}: it is rated and has no outline (roi); correct the file")
    return Annotation(
        id=annotation_id,
        nodule_id=name,
        ratings={
            rating: _whole_number(characteristics, element, file, where)
            for rating, element in READERS_NAMES.items()
            if characteristics.find(_NAMESPACE + element) is not None
        },
        contours=tuple(_contour(roi, file, where) for roi in outlines),
    )


def _contour(roi: Element, file: Path, where: str) -> Contour:
    position = _text(roi, "imageZposition", file, where)
    try:
        z = float(position)
    except ValueError:
        z = math.nan
    if not math.isfinite(z):
        raise InputError(f"{file}: {where}: imageZposition is {position!r}, not a number; correct the file")
    inclusion = _text(roi, "inclusion", file, where).upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise InputError(f"{file}: {where}: inclusion is {inclusion!r}, neither TRUE nor FALSE; correct the file")
    points = [
        (_whole_number(edge, "yCoord", file, where), _whole_number(edge, "xCoord", file, where))
        for edge in roi.findall(f"{_NAMESPACE}edgeMap")
    ]
    if not points:
        raise InputError(f"{file}: {where}: the contour at z = {z:g} has no edgeMap; correct the file")
    return Contour(z, inclusion == "TRUE", np.array(points, dtype=np.int64))


def _whole_number(parent: Element, element: str, file: Path, where: str) -> int:
    text = _text(parent, element, file, where)
    if not re.fullmatch(r"[+-]?[0-9]{1,6}", text) or abs(int(text)) > _LARGEST_INDEX:
        raise InputError(
            f"{file}: {where}: {element} is {text[:20]!r}, not a whole number up to 65,536; correct the file"
        )
    return int(text)


def _text(parent: Element, elements: str, file: Path, where: str) -> str:
    text = parent.findtext("/".join(_NAMESPACE + element for element in elements.split("/")))
    if text is None or not text.strip():
        raise InputError(f"{file}: {where}: {elements} is missing; get the file anew")
    return text.strip()
