"""Decoding image files: what is read, on what ground, and what is refused by name."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mpicnn.data.images import Decoding, ImageError, decode, read_picture

PLAIN = Decoding()
GRAY = Decoding(gray=True)
PIXELS = (np.indices((4, 6)).sum(0)[..., None] * [20, 10, 5]).astype(np.uint8)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour: int, *extra: bytes) -> bytes:
    """Write the pixels (h, w, c) as they are: uint8 or uint16, `colour` is PNG's colour type."""
    h, w, _ = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(h, -1)
    depth = 8 * pixels.itemsize
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", header, *extra, chunk(b"IDAT", data), chunk(b"IEND", b""))
    )


def tiff(pixels: np.ndarray, *extra: bytes) -> bytes:
    """Write the pixels (h, w, 3) as one strip; `extra` are entries of the directory."""
    h, w, _ = pixels.shape
    at = 8 + pixels.nbytes
    entries = [
        struct.pack("<HHII", tag, 3, 1, value)
        for tag, value in ((256, w), (257, h), (259, 1), (262, 2), (277, 3), (278, h))
    ]
    entries.append(struct.pack("<HHII", 258, 3, 3, at))
    entries += [struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHII", 279, 4, 1, pixels.nbytes)]
    entries = sorted([*entries, *extra], key=lambda entry: struct.unpack("<H", entry[:2]))
    bits = struct.pack("<3H", *[8 * pixels.itemsize] * 3)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    start = b"II*\0" + struct.pack("<I", at + 6)
    return start + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() + bits + directory


def test_transparent_grounds_are_white(tmp_path: Path) -> None:
    """A drawing in black of which only alpha, a palette's entry or a colour tells the ground."""
    drawn = np.zeros((4, 6), bool)
    drawn[1:3, 2:5] = True
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[drawn, 3] = 255
    rgba[~drawn, 0] = 255  # a colour that nobody is to see
    image = Image.fromarray(rgba)
    palette = Image.fromarray((~drawn).astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 90, 0, 0])
    red = png(rgba[..., :3], 2, chunk(b"tRNS", struct.pack(">3H", 255, 0, 0)))
    samples = [
        encoded(image, "PNG"),
        encoded(image.convert("LA"), "PNG"),
        encoded(palette, "PNG", transparency=1),
        encoded(palette, "PNG", transparency=b"\xff\0"),
        encoded(palette, "GIF", transparency=1),
        encoded(image, "WEBP", lossless=True, exact=True),
        encoded(image, "TIFF"),
        red,
    ]
    for k, content in enumerate(samples):
        path = written(tmp_path / f"{k}.png", content)
        found = read_picture(path, PLAIN)
        assert found.transparent
        np.testing.assert_array_equal(found.pixels, np.where(drawn, 0, 255)[None].repeat(3, 0))
        np.testing.assert_array_equal(decode(path, GRAY), np.where(drawn, 0, 255)[None])


def test_half_transparent_is_mixed_and_opaque_is_as_it_was(tmp_path: Path) -> None:
    for alpha, expected in ((255, PIXELS), (51, np.round(0.2 * PIXELS + 0.8 * 255))):
        content = np.dstack([PIXELS, np.full((4, 6), alpha, np.uint8)])
        found = read_picture(written(tmp_path / "a.png", png(content, 6)), PLAIN)
        assert found.transparent == (alpha < 255)
        np.testing.assert_array_equal(found.pixels, expected.transpose(2, 0, 1))


def test_deeper_than_8_bits_is_refused(tmp_path: Path) -> None:
    deep = PIXELS.astype(np.uint16) * 256
    gray = Image.fromarray(deep[..., 0])
    rows = deep.astype(">u2").tobytes()
    samples = {
        "rgb": png(deep, 2),
        "rgba": png(np.dstack([deep, deep[..., :1]]), 6),
        "la": png(deep[..., :2], 4),
        "l": encoded(gray, "PNG"),
        "tiff": tiff(deep),
        "gray tiff": encoded(gray, "TIFF"),
        "float": encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"),
        "ppm": b"P6 6 4 65535\n" + rows,
        "pgm of 12 bits": b"P5 6 4 4095\n" + rows[:48],
        "plain pgm": b"P2 2 1 300\n1 300\n",
    }
    for name, content in samples.items():
        with pytest.raises(ImageError, match=f"{name}: more than 8 bits a channel"):
            decode(written(tmp_path / name, content), PLAIN)


def test_what_only_looks_deep_is_read(tmp_path: Path) -> None:
    tall = PIXELS.transpose(2, 0, 1)
    shallow = written(tmp_path / "a.ppm", b"P6 6 4 100\n" + (PIXELS // 2).tobytes())
    assert np.abs(decode(shallow, PLAIN) - PIXELS.transpose(2, 0, 1) // 2 * 2.55).max() < 1
    np.testing.assert_array_equal(decode(written(tmp_path / "a.tif", tiff(PIXELS)), PLAIN), tall)
    # The content decides, not the name.
    named = written(tmp_path / "a.jpg", png(PIXELS, 2))
    np.testing.assert_array_equal(decode(named, PLAIN), tall)


def test_only_regular_files_of_known_formats_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match="eps.png: no whole image in one of the formats BMP, GIF"):
        decode(written(tmp_path / "eps.png", eps), PLAIN)
    assert not started
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", ""):
        with pytest.raises(ImageError, match="not a regular file"):
            decode(tmp_path / name, PLAIN)
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match=r"loop.png: could not be read \(Too many levels"):
        decode(tmp_path / "loop.png", PLAIN)
    with pytest.raises(ImageError, match=r"none.png: could not be read \(No such file"):
        decode(tmp_path / "none.png", PLAIN)


def damaged_metadata() -> dict[str, bytes]:
    """Return images of 4 x 6 whose metadata is damaged in ways that end Pillow's reading of it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sound = exif.tobytes()
    # To be turned right; and the maker's name is a floating-point number.
    odd = struct.pack(">HHHIHHHHIf", 2, 0x0112, 3, 1, 6, 0, 0x010F, 11, 1, 1.5)
    image = Image.fromarray(PIXELS)
    name = chunk(b"iCCP", b"icc\0\x07" + b"no profile")
    wrong_sum = chunk(b"tEXt", b"a\0b")[:-1] + b"\0"
    entry = struct.pack("<HHII", 700, 3, 1, 5)  # XMP that is a number
    return {
        "jpeg": encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + odd + bytes(4)),
        "cut exif": encoded(image, "PNG", exif=sound[:12]),
        "icc": png(PIXELS, 2, name),
        "checksum": png(PIXELS, 2, wrong_sum),
        "xmp": tiff(PIXELS, entry),
        "exif": tiff(PIXELS, struct.pack("<HHII", 34665, 6, 1, 0xFFFFFFFF)),
    }


def test_images_with_damaged_metadata_are_read(tmp_path: Path) -> None:
    exact = PIXELS.transpose(2, 0, 1)
    jpeg = encoded(Image.fromarray(PIXELS), "JPEG")
    turned = np.rot90(decode(written(tmp_path / "a.jpg", jpeg), PLAIN), -1, (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, content in damaged_metadata().items():
            found = decode(written(tmp_path / name, content), PLAIN)
            np.testing.assert_array_equal(found, turned if name == "jpeg" else exact)


def test_turns_and_transparency_survive_damage_to_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    bad = chunk(b"iCCP", b"icc\0\x07no profile")
    upright = np.rot90(PIXELS, -1).transpose(2, 0, 1)
    content = png(PIXELS, 2, bad, chunk(b"eXIf", exif.tobytes()[6:]))
    np.testing.assert_array_equal(decode(written(tmp_path / "a.png", content), PLAIN), upright)
    content = png(PIXELS[..., :1], 0, bad, chunk(b"tRNS", b"\0\x14"))  # the gray 20 is none
    white = np.where(PIXELS[..., 0] == 20, 255, PIXELS[..., 0])
    np.testing.assert_array_equal(decode(written(tmp_path / "a.png", content), GRAY)[0], white)
    entries = struct.pack("<HHII", 700, 3, 1, 5), struct.pack("<HHII", 274, 3, 1, 6)
    content = tiff(PIXELS, *entries)
    np.testing.assert_array_equal(decode(written(tmp_path / "a.tif", content), PLAIN), upright)


def test_damaged_pixels_are_refused_with_damaged_metadata_too(tmp_path: Path) -> None:
    for name, content in damaged_metadata().items():
        if name in ("xmp", "exif"):
            strip = struct.pack("<HHII", 273, 4, 1, 8)
            content = content.replace(strip, strip[:-4] + b"\0\0\1\0")
        else:
            data = content.index(b"IDAT" if b"IDAT" in content else b"\xff\xda")
            content = content[: data + 20]
        with pytest.raises(ImageError, match=f"{name}: no whole image") as refused:
            decode(written(tmp_path / name, content), PLAIN)
        assert "0x" not in str(refused.value)


def test_damage_anywhere_gives_an_image_or_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)  # large ones take their time
    draw = np.random.default_rng(5)
    image = Image.fromarray(PIXELS)
    kinds = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
    samples = [*(encoded(image, kind) for kind in kinds), *damaged_metadata().values()]
    outcomes = []
    for k in range(400):
        content = bytearray(samples[k % len(samples)])
        for at in draw.integers(0, len(content), 1 + k % 4):
            content[at] = draw.integers(256)
        try:
            picture = read_picture(written(tmp_path / "a", bytes(content)), Decoding(size=3))
            outcomes.append(picture.pixels.shape == (3, 3, 3) and picture.pixels.dtype == np.uint8)
        except ImageError as error:
            assert error.reason and "\n" not in error.reason
    assert all(outcomes) and 50 < len(outcomes) < 350
