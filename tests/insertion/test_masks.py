"""The mask and the report of inserted nodules, by whoever reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from highdicom.sr import srread
from pydicom.sr.codedict import codes

from nodule_plugin.dicom.codes import CONCEPTS, VALUES


def labels(folder: Path) -> tuple[np.ndarray, Any]:
    """(slices, rows, columns) of the NIfTI mask, and its file."""
    image: Any = nibabel.load(folder / "seed0" / "mask.nii.gz")
    return np.asarray(image.dataobj).transpose(2, 1, 0), image


def ct(folder: Path) -> list[pydicom.Dataset]:
    slices = [pydicom.dcmread(path) for path in (folder / "seed0" / "ct").glob("*.dcm")]
    return sorted(slices, key=lambda item: float(item.ImagePositionPatient[2]))


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_segmentation_is_the_mask(kind: str, inserted: Path) -> None:
    expected, _ = labels(inserted)
    read = highdicom.seg.segread(inserted / "seed0" / f"segmentation_{kind}.dcm")
    uids = [item.SOPInstanceUID for item in ct(inserted)]
    found = read.get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() > 50
    segment = read.get_segment_description(1)
    assert segment.segmented_property_type == codes.SCT.Nodule
    assert segment.segmented_property_category == codes.SCT.MorphologicallyAbnormalStructure
    assert segment.anatomic_regions[0] == codes.SCT.Lung


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_plain_readers_of_it_see_the_same(kind: str, inserted: Path) -> None:
    expected, _ = labels(inserted)
    path = inserted / "seed0" / f"segmentation_{kind}.dcm"
    dataset = pydicom.dcmread(path)
    places = [
        float(item.PlanePositionSequence[0].ImagePositionPatient[2])
        for item in dataset.PerFrameFunctionalGroupsSequence
    ]
    if kind == "binary":  # dwv looks for it in each frame, even where all have the same
        named = [item.SegmentIdentificationSequence[0] for item in dataset.PerFrameFunctionalGroupsSequence]
        assert {item.ReferencedSegmentNumber for item in named} == {1}
        assert "SegmentIdentificationSequence" not in dataset.SharedFunctionalGroupsSequence[0]
    heights = [float(item.ImagePositionPatient[2]) for item in ct(inserted)]
    frames = np.atleast_3d(dataset.pixel_array) if dataset.NumberOfFrames > 1 else dataset.pixel_array[None]
    found = np.zeros_like(expected)
    for place, frame in zip(places, frames):
        found[int(np.abs(np.array(heights) - place).argmin())] = frame
    np.testing.assert_array_equal(found, expected)


def test_simpleitk_reads_volume_and_mask_on_one_grid(inserted: Path) -> None:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install SimpleITK)")
    folder = inserted / "seed0"
    names = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "ct"))
    series = itk.ReadImage(names)
    volume, mask = (itk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("volume", "mask"))
    np.testing.assert_array_equal(itk.GetArrayFromImage(series), itk.GetArrayFromImage(volume))
    np.testing.assert_array_equal(itk.GetArrayFromImage(mask), labels(inserted)[0])
    for image in (volume, mask):
        np.testing.assert_allclose(image.GetOrigin(), series.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(image.GetSpacing(), series.GetSpacing(), atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), series.GetDirection(), atol=1e-6)
    frames = itk.GetArrayFromImage(itk.ReadImage(str(folder / "segmentation_binary.dcm")))
    assert (frames > 0).sum() == labels(inserted)[0].sum()


def test_nifti_says_that_it_is_synthetic(inserted: Path) -> None:
    _, image = labels(inserted)
    assert bytes(image.header["descrip"]).startswith(b"SYNTHETIC")
    origin = json.loads(image.header.extensions[0].get_content())
    assert origin["requests"][0]["prompt"].startswith("The nodule is round")


def test_the_report_says_what_was_asked_for_and_measured(inserted: Path) -> None:
    report = srread(inserted / "seed0" / "report.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (nodule,) = json.loads((inserted / "manifest.json").read_text())["series"][0]["nodules"]
    sizes = {item.name: item.value for item in group.get_measurements()}
    assert sizes[codes.SCT.Diameter] == pytest.approx(nodule["measured_diameter_mm"], abs=0.01)
    assert sizes[codes.SCT.Volume] == pytest.approx(nodule["measured_volume_mm3"], abs=0.1)
    found = {(item.name, item.value) for item in group.get_qualitative_evaluations()}
    assert {(CONCEPTS[name], VALUES[name][rating]) for name, rating in nodule["findings"].items()} <= found
    mask = pydicom.dcmread(inserted / "seed0" / "segmentation_binary.dcm")
    assert group.reference_type == codes.DCM.ReferencedSegment
    assert group.referenced_segment.referenced_sop_instance_uid == mask.SOPInstanceUID
    assert mask.SegmentSequence[0].TrackingUID == group.tracking_uid
    assert report.VerificationFlag == "UNVERIFIED"
