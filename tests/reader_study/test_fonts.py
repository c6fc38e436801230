from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import pytest
from matplotlib.font_manager import FontProperties, findfont

from nodule_plugin.reader_study import fonts


def test_latin_names_need_no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: pytest.fail("the disk was searched"))
    assert fonts.choose_fonts("R1 Müller Ωμέγα\n") == (["DejaVu Sans"], "")


def test_what_no_font_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "findSystemFonts", list)
    assert fonts.choose_fonts("R1 山田 山") == (["DejaVu Sans"], "山田")


def test_an_installed_font_that_has_it_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = Path(matplotlib.get_data_path(), "fonts", "ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    stix = shutil.copy(data / "STIXGeneral.ttf", tmp_path)
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), str(stix)])
    monkeypatch.setattr(fonts, "OWN", "cmr10")  # has Latin letters only
    families, missing = fonts.choose_fonts("a Ж 山")
    assert (families, missing) == (["cmr10", "STIXGeneral"], "山")
    assert findfont(FontProperties(family=families[1]), fallback_to_default=False)
