"""By the validators, converters and archives that are installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import nibabel
import numpy as np
import pytest

OLDER_THAN_THE_ATTRIBUTE = "(0x0008,0x001c)"
"""What dciodvfy calls Synthetic Data where its release is older than that attribute (Debian's is of June 2022)."""


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def errors(path: Path) -> set[str]:
    done = subprocess.run(
        [tool("dciodvfy", "Debian package dicom3tools"), str(path)], capture_output=True, text=True, check=False
    )
    return {line for line in done.stderr.splitlines() if "Error" in line and OLDER_THAN_THE_ATTRIBUTE not in line}


@pytest.mark.parametrize("which", ["inserted", "kept"])
def test_dciodvfy_finds_no_error_that_the_host_has_not(which: str, host: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which) / "seed0"
    known = errors(min(host.glob("*.dcm"))) if which == "kept" else set()
    for path in [
        *sorted((folder / "ct").glob("*.dcm"))[::5],
        folder / "report.dcm",
        folder / "segmentation_binary.dcm",
    ]:
        assert errors(path) - known == set(), path


def test_dcentvfy_finds_one_patient_and_one_study(inserted: Path) -> None:
    dcentvfy = tool("dcentvfy", "Debian package dicom3tools")
    files = [str(path) for path in (inserted / "seed0").rglob("*.dcm") if "labelmap" not in path.name]
    done = subprocess.run([dcentvfy, *files], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "Error" in line] == []


def test_dcm2niix_makes_the_same_volume(inserted: Path, tmp_path: Path) -> None:
    dcm2niix = tool("dcm2niix", "Debian or PyPI package dcm2niix")
    folder = inserted / "seed0"
    subprocess.run([dcm2niix, "-o", str(tmp_path), "-f", "v", str(folder / "ct")], capture_output=True, check=True)
    made, own = (nibabel.load(path) for path in (tmp_path / "v.nii", folder / "volume.nii.gz"))
    ours: Any = nibabel.as_closest_canonical(own)
    theirs: Any = nibabel.as_closest_canonical(made)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-3)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a server that runs as long as the test does, and its port for C-STORE."""
    program = tool("Orthanc", "Debian package orthanc")
    port, dicom_port = free_port(), free_port()
    settings = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": port,
        "DicomPort": dicom_port,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(path) for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")][:1],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    server = subprocess.Popen(
        [program, str(tmp_path / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                urlopen(f"{address}/system", timeout=5).read()
                break
            except (URLError, OSError):
                time.sleep(0.2)
        yield address, dicom_port
    finally:
        server.terminate()
        server.wait(timeout=20)


def answer(address: str, data: bytes | None = None, **headers: str) -> Any:
    with urlopen(Request(address, data=data, headers=headers), timeout=30) as reply:
        return json.loads(reply.read())


def stored_on_the_web(address: str, files: list[Path]) -> None:
    if "dicom-web" not in answer(f"{address}/plugins"):
        pytest.skip("Orthanc has no DICOMweb (Debian package orthanc-dicomweb)")
    parts = [b"--part\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n" for path in files]
    kind = 'multipart/related; type="application/dicom"; boundary=part'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    stored = answer(f"{address}/dicom-web/studies", b"".join(parts) + b"--part--", **headers)
    assert len(stored["00081199"]["Value"]) == len(files)


@pytest.mark.parametrize("way", ["C-STORE", "DICOMweb"])
def test_orthanc_accepts_all_of_it(way: str, kept: Path, orthanc: tuple[str, int]) -> None:
    files, (address, port) = sorted(path for path in kept.rglob("*.dcm")), orthanc
    if way == "C-STORE":
        # Releases of DCMTK from before label maps know no such class.
        files = [path for path in files if "labelmap" not in path.name]
        storescu = tool("storescu", "Debian package dcmtk")
        subprocess.run([storescu, "-R", "-aec", "ORTHANC", "127.0.0.1", str(port), *map(str, files)], check=True)
    else:
        stored_on_the_web(address, files)
    counts = answer(f"{address}/statistics")
    assert (counts["CountInstances"], counts["CountStudies"], counts["CountPatients"]) == (len(files), 1, 1)
    series = [answer(f"{address}/series/{one}") for one in answer(f"{address}/series")]
    kinds = ["CT", "SEG", "SR"] if way == "C-STORE" else ["CT", "SEG", "SEG", "SR"]
    assert sorted(one["MainDicomTags"]["Modality"] for one in series) == kinds
