"""What differs between pydicom 3 and 2.4, which MONAI Label still needs. Nothing else here knows which one it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.datadict import add_dict_entry, dictionary_has_tag
from pydicom.uid import UID

HTJ2K = tuple(UID(f"1.2.840.10008.1.2.4.{number}") for number in (201, 202, 203))
"""The transfer syntaxes of high-throughput JPEG 2000 (PS3.5 10.21), of which pydicom 2.4 does not know."""

_SYNTHETIC_DATA = 0x0008001C
_FIRST = int(pydicom.__version__.split(".", maxsplit=1)[0])

if not dictionary_has_tag(_SYNTHETIC_DATA):
    # An attribute that is not in its dictionary pydicom keeps to itself: the mark would silently not be written.
    add_dict_entry(_SYNTHETIC_DATA, "CS", "SyntheticData", "Synthetic Data")


def has_decoder(syntax: UID) -> bool:
    """Whether pixels of a compressed transfer syntax can be decoded with what is installed.

    Raises:
        NotImplementedError: if pydicom does not know how to, whatever is installed.
    """
    if _FIRST >= 3:
        from pydicom.pixels import get_decoder

        return get_decoder(syntax).is_available
    handlers: list[Any] = [
        handler for handler in config.pixel_data_handlers if handler.supports_transfer_syntax(syntax)
    ]
    if not handlers:
        raise NotImplementedError(f"no handler for {syntax}")
    return any(handler.is_available() for handler in handlers)


def save_conforming(dataset: pydicom.Dataset, path: Path) -> None:
    """Write a file with all that PS3.10 wants of one, in the transfer syntax that the file meta information names."""
    if _FIRST >= 3:
        dataset.save_as(path, enforce_file_format=True)
    else:
        syntax = dataset.file_meta.TransferSyntaxUID
        dataset.is_little_endian, dataset.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
        dataset.save_as(path, write_like_original=False)
