from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.extract import extract_masks
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.masks import consensus_mask


def test_real_nodules_are_the_readers_consensus(real_data: Path, tmp_path: Path) -> None:
    patient = "LIDC-IDRI-0003"
    nodules = extract_masks(real_data / "lidc_idri" / patient, tmp_path / "out")
    (scan,) = [scan for scan in load_scans() if scan.patient_id == patient]
    masks = [consensus_mask(cluster, scan) for cluster in cluster_annotations(scan)]
    expected = np.zeros((140, 512, 512), np.uint8)
    for number, (mask, box) in enumerate(masks, start=1):
        expected[box][mask] = number
    image: Any = nibabel.load(tmp_path / "out" / f"{patient}.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), expected)
    assert [item["voxels"] for item in nodules] == [int(mask.sum()) for mask, _ in masks]
    for kind in ("binary", "labelmap"):
        read = highdicom.seg.segread(tmp_path / "out" / f"{patient}_{kind}.dcm")
        assert read.segmentation_type.value == kind.upper()
        assert list(read.segment_numbers) == list(range(1, len(masks) + 1))
        volume = read.get_volume(combine_segments=True)
        assert (volume.array > 0).sum() == (expected > 0).sum()
        place = np.argwhere(volume.array == 2)[0]
        corner = np.linalg.inv(image.affine) @ np.diag([-1, -1, 1, 1]) @ volume.affine @ [*place, 1]
        assert expected[tuple(np.rint(corner[2::-1]).astype(int))] == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "CC BY 3.0" in manifest["licence"]
    assert manifest["nodules"] == nodules


def test_masks_of_another_time_have_uids_of_their_own(real_data: Path, tmp_path: Path) -> None:
    """Their dates differ; the nodules that they follow are the same."""
    made = []
    for run in ("first", "second"):
        extract_masks(real_data / "lidc_idri" / "LIDC-IDRI-0001", tmp_path / run, ["seg"])
        made.append(highdicom.seg.segread(tmp_path / run / "LIDC-IDRI-0001_binary.dcm"))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "ContentTime"):
        assert made[0][keyword].value != made[1][keyword].value, keyword
    assert made[0].get_tracking_ids() == made[1].get_tracking_ids() != []


def test_what_cannot_be_extracted(host: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its 1 CT series is annotated"):
        extract_masks(host, tmp_path / "out")
    with pytest.raises(InputError, match="level: a number above 0"):
        extract_masks(host, tmp_path / "out", level=0)
    assert not (tmp_path / "out").exists()
