"""The application as a user starts it. Runs where the SDK is installed: scripts/deploy_smoke.sh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from nodule_plugin.deploy.generator import BundleGenerator

pytest.importorskip("monai.deploy.core", reason="MONAI Deploy's SDK is not installed; bash scripts/deploy_smoke.sh")

FINDINGS = {"sphericity": 3, "margin": 3, "texture": 5, "spiculation": 5, "calcification": 6}


def start(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "nodule_plugin.deploy", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False, timeout=600)


def test_findings_in_dicom_out(repository: Path, tmp_path: Path) -> None:
    order = {"findings": FINDINGS, "guidance_scales": 3, "seeds": [0, 1]}
    (tmp_path / "order.json").write_text(json.dumps(order))
    bundle = repository / "bundle"
    done = start(repository, "-i", str(tmp_path / "order.json"), "-m", str(bundle), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "image").iterdir())]
    reports = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "report").iterdir())]
    assert len(images) == len(reports) == 2
    assert len({dataset.StudyInstanceUID for dataset in images + reports}) == 1
    generator = BundleGenerator(bundle, {"device": "cpu"})
    for request, image, report in zip(generator.requests(order), images, reports):
        expected = generator.to_hu(generator.sample(*generator.prepare(request)), request["id"])
        np.testing.assert_array_equal(image.pixel_array, expected)
        assert np.ptp(expected) > 256, "more levels than 8 bits hold"
        assert (image.SyntheticData, image.RescaleSlope, image.RescaleIntercept) == ("YES", 1, 0)
        assert request["prompt"] in image.ImageComments
        source = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        assert source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_a_wrong_order_ends_with_one_line_and_writes_nothing(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps({"findings": {**FINDINGS, "margin": 7}}))
    done = start(repository, "-i", str(tmp_path), "-m", str(repository / "bundle"), "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "error: findings[0]: margin: whole numbers 1 to 5 are ratings, not 7" in done.stderr.splitlines()
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_an_order_puts_a_nodule_into_the_series_beside_it(
    repository: Path, bundle: Path, host: Path, tmp_path: Path
) -> None:
    insert = {"position": [30, 12, 2], "diameter_mm": 5, "findings": FINDINGS, "steps": 2, "seeds": [0, 4]}
    shutil.copytree(host, tmp_path / "in" / "series")
    (tmp_path / "in" / "order.json").write_text(json.dumps({"insert": insert}))
    given = ("-i", str(tmp_path / "in"), "-m", str(bundle), "-o", str(tmp_path / "out"))
    done = start(repository, *given)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "out" / "inserted" / "manifest.json").read_text())
    assert [series["seed"] for series in manifest["series"]] == [0, 4]
    for series in manifest["series"]:
        assert series["nodules"][0]["position_mm"] == [30, 12, 2]
        images = [pydicom.dcmread(path) for path in (tmp_path / "out" / "inserted" / series["ct"]).iterdir()]
        assert {(image.SyntheticData, image.SeriesInstanceUID) for image in images} == {
            ("YES", series["series_instance_uid"])
        }
        assert len(images) == len(list(host.iterdir()))
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    again = start(repository, *given)
    assert again.returncode == 1
    assert [line for line in again.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path}/out/inserted: already there and not an empty folder; choose another output folder or"
        " remove it"
    ]
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == written


def test_without_an_inpainting_model_the_application_says_what_to_do(
    repository: Path, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle / "configs", tmp_path / "bundle" / "configs")
    (tmp_path / "order.json").write_text(json.dumps({"insert": {}}))
    done = start(repository, "-i", str(tmp_path), "-m", str(tmp_path / "bundle"), "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("restore it, or train an inpainting model")
    assert not list((tmp_path / "out").rglob("*.*"))
