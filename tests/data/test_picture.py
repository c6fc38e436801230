from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nodule_plugin.data.picture import LARGEST_PICTURE, read_picture
from nodule_plugin.errors import InputError

GREY = np.array([[0, 64, 128], [51, 204, 255]], np.uint8)
EXPECTED = GREY / 127.5 - 1
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _OFFSET, _ROWS, _COUNT, _FORMAT = 256, 257, 258, 262, 273, 278, 279, 339


def picture(kind: str) -> Image.Image:
    grey = Image.fromarray(GREY)
    if kind == "palette":  # whose numbers run the other way
        colours = Image.fromarray(255 - GREY)
        colours.putpalette([255 - level for level in range(256) for _ in range(3)])
        return colours
    made: dict[str, Any] = {
        "8 bits": lambda: grey,
        "16 bits": lambda: Image.fromarray(GREY.astype(np.uint16) * 257),
        "1 bit": lambda: grey.point(lambda value: 255 * (value > 100)).convert("1"),
        "opaque": lambda: grey.convert("RGBA"),
        "colour": lambda: grey.convert("RGB"),
        "four colours": lambda: grey.convert("RGB").convert("CMYK"),
        "float": lambda: Image.fromarray(GREY.astype(np.float32) / 255),
        "32 bits": lambda: Image.fromarray(GREY.astype(np.int32)),
        "transparent": lambda: Image.merge("LA", (grey, grey)),
    }
    return made[kind]()


def tiff(path: Path, values: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> Path:
    """A little-endian TIFF of one strip, as Pillow cannot write it."""
    data = values.tobytes()
    entries = [(_WIDTH, values.shape[1]), (_LENGTH, len(values)), (_BITS, bits), (259, 1), (_PHOTOMETRIC, photometric),
               (_OFFSET, 200), (_ROWS, len(values)), (_COUNT, len(data)), (_FORMAT, sample_format)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    path.write_bytes(header.ljust(200, b"\0") + data)
    return path


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "palette", "opaque", "colour"])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_every_kind_is_scaled_by_its_full_range(kind: str, suffix: str, tmp_path: Path) -> None:
    picture(kind).save(tmp_path / f"a{suffix}")
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, EXPECTED, atol=1e-6)


def test_two_levels_and_inks(tmp_path: Path) -> None:
    picture("1 bit").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), [[-1, -1, 1], [-1, 1, 1]])
    picture("four colours").save(tmp_path / "a.tiff")
    np.testing.assert_allclose(read_picture(tmp_path / "a.tiff"), EXPECTED, atol=1 / 127)


def test_tags_of_tiff_are_heeded(tmp_path: Path) -> None:
    wide = GREY.astype("<u2") * 257
    np.testing.assert_allclose(
        read_picture(tiff(tmp_path / "a.tif", 65535 - wide, 16, photometric=0)), EXPECTED, atol=1e-6
    )
    with pytest.raises(InputError, match=r"of the mode signed L, which does not say what is black"):
        read_picture(tiff(tmp_path / "b.tif", GREY.astype(np.int8), 8, sample_format=2))
    with pytest.raises(InputError, match=r"of the mode signed I, which"):
        read_picture(tiff(tmp_path / "c.tif", wide.astype("<i2"), 16, sample_format=2))
    packed = np.array([[0xFF, 0xF0, 0x00]], np.uint8)  # 4095, 0 of 12 bits
    file = tiff(tmp_path / "d.tif", packed, 12)
    file.write_bytes(
        file.read_bytes().replace(struct.pack("<HHII", _WIDTH, 4, 1, 3), struct.pack("<HHII", _WIDTH, 4, 1, 2))
    )
    np.testing.assert_array_equal(read_picture(file), [[1, -1]])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("float", "of the mode F, which"),
        ("32 bits", "of the mode signed I, which"),
        ("transparent", "partly transparent"),
    ],
)
def test_what_does_not_say_its_range_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    picture(kind).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=message):
        read_picture(tmp_path / "a.tiff")


def test_several_pictures_in_a_file_are_refused(tmp_path: Path) -> None:
    grey = picture("8 bits")
    grey.save(tmp_path / "a.tiff", save_all=True, append_images=[grey, grey])
    with pytest.raises(InputError, match="holds 3 pictures"):
        read_picture(tmp_path / "a.tiff")


def png(path: Path, width: int, height: int, *chunks: tuple[bytes, bytes]) -> Path:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [header, *chunks, (b"IEND", b"")]))
    return path


@pytest.mark.parametrize("side", [4097, 13_000, 30_000])
def test_bombs_are_known_by_their_header(side: int, tmp_path: Path) -> None:
    assert side**2 > LARGEST_PICTURE
    with pytest.raises(InputError, match=r"a\.png .*pixels") as caught:
        read_picture(png(tmp_path / "a.png", side, side, (b"IDAT", zlib.compress(bytes(1000)))))
    assert "\n" not in str(caught.value)


def test_texts_that_unfold_are_refused(tmp_path: Path) -> None:
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    with pytest.raises(InputError, match=r"a\.png cannot be read as a picture"):
        read_picture(png(tmp_path / "a.png", 1, 1, bomb, (b"IDAT", zlib.compress(b"\0\0"))))


def test_an_error_of_our_own_is_no_damaged_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a slip")

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("nodule_plugin.data.picture._grey_values", fail)
    with pytest.raises(RuntimeError, match="a slip"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a", b"", b"\x89PNG\r\n"]
)
def test_other_files_named_so_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png cannot be read as a picture: cannot identify"):
        read_picture(tmp_path / "a.png")


def test_a_cut_picture_and_none_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    for name in ("a.png", "b.png", "."):
        with pytest.raises(InputError, match=r"^image: "):
            read_picture(tmp_path / name)
