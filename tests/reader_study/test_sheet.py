from __future__ import annotations

import csv
import io

import pytest

from nodule_plugin.reader_study.sheet import csv_bytes


def cells(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def test_excel_sees_the_encoding_and_every_character() -> None:
    content = csv_bytes([{"reader": "山田", "comment": 'says "結節",\ntwo lines'}])
    assert content.startswith(b"\xef\xbb\xbf")
    assert cells(content) == [["reader", "comment"], ["山田", 'says "結節",\ntwo lines']]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", " =", "  -"])
def test_no_text_is_a_formula(start: str) -> None:
    (_, (cell,)) = cells(csv_bytes([{"comment": f"{start}cmd|' /C calc'!A0"}]))
    assert cell.lstrip(" ").startswith("'")
    assert cell.replace("'", "", 1) == f"{start}cmd|' /C calc'!A0"


@pytest.mark.parametrize("text", ["a;=1+1", "a\r=1+1", 'a"=1+1', "a\t@x", "a,+1"])
def test_nor_behind_what_ends_a_cell_elsewhere(text: str) -> None:
    content = csv_bytes([{"comment": text}])
    (_, (cell,)) = cells(content)
    assert cell == f"{text[:2]}'{text[2:]}"
    assert content.count(b"\r\n") == 2


@pytest.mark.parametrize("text", ["well-defined", "5 = solid", "it's", "a: -3", ""])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert cells(csv_bytes([{"comment": text, "n": 1}]))[1][0] == text


def test_numbers_stay_numbers() -> None:
    line = {"suspicion": -3.0, "p": 1e-9, "none": None, "flag": True, "nested": {"R1": -0.5}}
    assert cells(csv_bytes([line]))[1] == ["-3.0", "1e-09", "", "True", '{"R1": -0.5}']
