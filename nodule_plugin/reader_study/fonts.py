"""Fonts for the figures: readers and models have names in any script, and matplotlib's own font has no Japanese."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font

OWN = "DejaVu Sans"
"""Ships with matplotlib: Latin, Greek, Cyrillic and more."""
JAPANESE: tuple[str, ...] = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAPGothic", "IPAGothic")
JAPANESE += ("TakaoPGothic", "VL PGothic", "Hiragino Sans", "Yu Gothic", "Meiryo", "MS PGothic", "MS Gothic")
"""Looked at first, since Chinese fonts draw some characters of a Japanese name in another form."""


def choose_fonts(text: str) -> tuple[list[str], str]:
    """The fonts that draw a text: matplotlib's own, and of the installed ones those that have what is missing there.

    The disk is asked, not matplotlib's cache, which does not know fonts that were installed after it was made.

    Args:
        text: all that is to be drawn.

    Returns:
        Names for matplotlib's ``font.family``, in the order in which a character is looked up; and the characters that
        no installed font has, in the order of the text.
    """
    families = [OWN]
    missing = set(filter(_is_drawn, text)) - _characters(findfont(FontProperties(family=OWN)))
    if missing:
        for path, family in _installed():
            if missing & (has := _characters(path)):
                fontManager.addfont(path)
                families.append(family)
                missing -= has
            if not missing:
                break
    return families, "".join(dict.fromkeys(character for character in text if character in missing))


def _is_drawn(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ"  # neither control characters nor spaces


def _installed() -> Iterator[tuple[str, str]]:
    """Path and family of every installed font, Japanese ones first, upright sans serif before the others."""
    fonts = []
    for path in findSystemFonts():
        try:
            font = get_font(path)
        except (OSError, RuntimeError):  # not every file with a font's name is one
            continue
        rank = JAPANESE.index(font.family_name) if font.family_name in JAPANESE else len(JAPANESE)
        fonts.append((rank, font.style_name != "Regular", "Sans" not in font.family_name, path, font.family_name))
    for *_, path, family in sorted(fonts):
        yield path, family


def _characters(path: str) -> set[str]:
    return {chr(code) for code in get_font(path).get_charmap()}
