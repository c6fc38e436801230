"""By the standard's tables, and by the validators and readers that are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_encoding import Encoded, encode

OLDER_THAN_THE_ATTRIBUTE = "(0x0008,0x001c)"
"""What dciodvfy calls Synthetic Data where its release is older than that attribute (Debian's is of June 2022)."""
STANDARD = Path(os.environ.get("DICOM_VALIDATOR_STANDARD", Path.home() / "dicom-validator"))
"""Where dicom-validator keeps the standard's documents, which it fetches from the internet."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images and their reports, one with findings and one without."""
    folder = tmp_path_factory.mktemp("dicom")
    paths = []
    for number, findings in enumerate([{"sphericity": 5, "margin": 3, "calcification": 2}, None], start=1):
        encoded = encode(number=number, findings=findings, id=f"nodule{number}")
        for kind, data in zip(("image", "report"), encoded.files):
            paths.append(folder / f"{kind}{number}.dcm")
            paths[-1].write_bytes(data)
    return paths


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


@pytest.fixture(scope="module")
def tables() -> Any:
    """Attributes of an IOD as highdicom ships them: (key and usage of the module, type, path of keywords) of each."""
    spec = importlib.util.find_spec("highdicom")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "_standard"
    modules = json.loads((folder / "module_attribute_map.json").read_text())
    uses = json.loads((folder / "iod_module_map.json").read_text())
    return lambda iod: [
        (use["key"], use["usage"], attribute["type"], (*attribute["path"], attribute["keyword"]))
        for use in uses[iod]
        for attribute in modules[use["key"]]
    ]


@pytest.mark.parametrize(("iod", "kind"), [("ct-image", "image"), ("enhanced-sr", "report")])
def test_they_have_what_the_standard_asks_for_and_nothing_else(
    iod: str, kind: str, encoded: Encoded, tables: Any
) -> None:
    dataset = getattr(encoded, kind)
    attributes = tables(iod)
    known = {path for _, _, _, path in attributes}
    assert ("SyntheticData",) in known
    assert ("ContributingEquipmentSequence", "DeviceSerialNumber") in known
    assert {path for path in paths(dataset) if path not in known} == set()
    for module, usage, kind_of_attribute, path in attributes:
        # In a tree of content the kind of an item decides what it must have; dciodvfy knows.
        if module != "sr-document-content" and usage == "M" and len(path) == 1 and kind_of_attribute in ("1", "2"):
            assert path[0] in dataset
            assert kind_of_attribute == "2" or dataset[path[0]].value not in (None, "")


def paths(dataset: pydicom.Dataset, above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths of all attributes, but for those within a report's tree of content, which has no end in the tables."""
    found = set()
    for element in dataset:
        path = (*above, element.keyword)
        found.add(path)
        if element.VR == "SQ" and element.keyword != "ContentSequence":
            found |= {inner for item in element.value for inner in paths(item, path)}
    return found


def test_dciodvfy_finds_no_error(files: list[Path]) -> None:
    dciodvfy = tool("dciodvfy", "Debian package dicom3tools")
    for path in files:
        done = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        assert ("CTImage" if path.name.startswith("image") else "EnhancedSR") in lines
        assert [line for line in lines if "Error" in line and OLDER_THAN_THE_ATTRIBUTE not in line] == []


def test_dcentvfy_finds_one_patient_and_one_study(files: list[Path]) -> None:
    dcentvfy = tool("dcentvfy", "Debian package dicom3tools")
    done = subprocess.run([dcentvfy, *map(str, files)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "Error" in line] == []


def test_dicom_validator_finds_no_error(files: list[Path]) -> None:
    if importlib.util.find_spec("dicom_validator") is None:
        pytest.skip("dicom-validator is not installed (pip install dicom-validator)")
    if not list(STANDARD.glob("*/docbook/part03.xml")):
        pytest.skip(f"dicom-validator has no copy of the standard in {STANDARD}; it fetches one when run with internet")
    line = [sys.executable, "-m", "dicom_validator.validate_iods", "-src", str(STANDARD), "-e", "local"]
    for path in files:
        done = subprocess.run([*line, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_dcm2niix_converts_without_loss(files: list[Path], tmp_path: Path) -> None:
    dcm2niix = tool("dcm2niix", "Debian or PyPI package dcm2niix")
    subprocess.run([dcm2niix, "-o", str(tmp_path), "-f", "%d", str(files[0].parent)], capture_output=True, check=True)
    converted = sorted(tmp_path.glob("*.nii"))
    assert len(converted) == 2, "the images must not be stacked, and the reports are none"
    for path in converted:
        volume: Any = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(volume.dataobj).squeeze()[:, ::-1].T, encode().hu)
        np.testing.assert_allclose(volume.header.get_zooms()[:2], 0.3125)


def test_simpleitk_reads_the_same(files: list[Path]) -> None:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install SimpleITK)")
    image = itk.ReadImage(str(files[0]))
    np.testing.assert_array_equal(itk.GetArrayFromImage(image)[0], encode().hu)
    assert image.GetSpacing()[:2] == (0.3125, 0.3125)
