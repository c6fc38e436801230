"""Pictures: the one loader of grey values from PNG, JPEG, TIFF and BMP files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from nodule_plugin.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
LARGEST_PICTURE = 2**24
"""Pixels of the largest picture that is decoded; one of a nodule at 512 x 512 has a sixty-fourth of them."""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # no others, whatever a file's name says: PostScript would be run
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, (1, 4)


def read_picture(path: str | Path) -> np.ndarray:
    """The grey values of a picture, scaled by the full range of its kind: 1, 8, 12 or 16 bits, colours by luminance.

    Returns:
        (rows, columns) float32 in [-1, 1]; -1 is black, the window's lower end.

    Raises:
        InputError: if the file is missing, damaged or too large, is no single picture, or its kind (floating point,
            signed, transparent) does not say what is black and what is white.
    """
    with _opened(path) as picture:
        grey, white = _grey_values(path, picture)
    return grey * np.float32(2 / white) - 1


def picture_kind(path: str | Path) -> tuple[tuple[int, int], int]:
    """(rows, columns) of a picture and its bits a pixel, 8 or 16, by its header; nothing is decoded.

    Raises:
        InputError: if the file is missing, damaged or too large, or is no single picture.
    """
    with _opened(path, decoded=False) as picture:
        return (picture.height, picture.width), 16 if picture.mode.startswith("I;16") else 8


def picture_texts(path: str | Path) -> tuple[str, dict[str, str]]:
    """The format of a picture that can be decoded ("PNG", "JPEG", "TIFF", "BMP"), and the texts in a PNG's chunks.

    Raises:
        InputError: if the file is missing, damaged or too large, or is no single picture.
    """
    with _opened(path) as picture:
        return str(picture.format), dict(getattr(picture, "text", {}))


@contextmanager
def _opened(path: str | Path, decoded: bool = True) -> Iterator[Image.Image]:
    """A picture, all of it or its header; what is done with it then raises its own errors."""
    if not Path(path).is_file():
        raise InputError(f"image: there is no file {path}")
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = stack.enter_context(Image.open(path, formats=_FORMATS))
                _check_header(path, picture)
                if decoded:
                    picture.load()
        except InputError:
            raise
        except Exception as error:  # a damaged file leads decoders to errors of many kinds
            raise InputError(f"image: {path} cannot be read as a picture: {error or type(error).__name__}") from error
        yield picture


def _check_header(path: str | Path, picture: Image.Image) -> None:
    if picture.width * picture.height > LARGEST_PICTURE:
        size = f"{picture.width} x {picture.height}"
        raise InputError(f"image: {path} has {size} pixels, more than {LARGEST_PICTURE}; give images of nodules")
    if (pages := getattr(picture, "n_frames", 1)) > 1:
        raise InputError(f"image: {path} holds {pages} pictures; give files with one each")


def _grey_values(path: str | Path, picture: Image.Image) -> tuple[np.ndarray, int]:
    """Grey values (rows, columns) float32, and which of them is white."""
    tags = getattr(picture, "tag_v2", {})
    signed = set(np.ravel(tags.get(_SAMPLE_FORMAT, 1))) - set(_UNSIGNED)
    if picture.mode in _EIGHT_BITS and not signed:
        if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
            raise InputError(f"image: {path} is partly transparent; save it without an alpha channel")
        return np.asarray(picture.convert("L"), np.float32), 255
    if picture.mode.startswith("I;16") and not signed:
        white = 2 ** int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0]) - 1
        grey = np.asarray(picture).astype(np.float32)
        return (white - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey), white
    kind = f"signed {picture.mode}" if signed & {2} else picture.mode
    raise InputError(
        f"image: {path} is of the mode {kind}, which does not say what is black and white; save it with 8 or 16 bits, "
        "or Hounsfield units as NIfTI"
    )
