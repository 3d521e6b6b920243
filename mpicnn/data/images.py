"""Decode image files: which formats are read, and what becomes of depth, transparency, turns."""

from __future__ import annotations

import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from mpicnn.data.layout import Array
from mpicnn.data.plain import without_metadata
from mpicnn.errors import UserError, printable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are opened, whatever a file is called. No others: Pillow would
start Ghostscript for EPS."""

ENDINGS = frozenset(
    (".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
     ".ppm", ".tif", ".tiff", ".webp")
)  # fmt: skip
"""What the names of image files end in, in lower case."""

BITS_PER_SAMPLE = 258  # a tag of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """Report a file that gives no image: which, and the `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = printable(reason)


@dataclass(frozen=True)
class Decoding:
    """Say how files become images: `size` None takes them as they are, all of one size."""

    size: int | None = None
    gray: bool = False


@dataclass(frozen=True)
class Picture:
    """Hold an image, uint8 (c, h, w), and whether part of it was transparent in the file."""

    pixels: Array
    transparent: bool


def decode(path: Path, decoding: Decoding) -> Array:
    """Return the pixels of an image file: see `read_picture`."""
    return read_picture(path, decoding).pixels


def read_picture(path: Path, decoding: Decoding) -> Picture:
    """Return an image file as uint8 (3, h, w), or (1, h, w) if gray, the right way up.

    What is transparent shows white. With a size, the centred square of the shorter side is scaled
    to size x size by Pillow's bilinear filter, which averages when it makes smaller. Of a moving
    image the first frame. Metadata that cannot be read is passed over. Raises ImageError where
    the file is no whole image of 8 bits a channel in one of `FORMATS`. Only regular files are
    opened: a pipe would wait for ever.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "not a regular file")
        if not status.st_size:
            raise ImageError(path, "no whole image (an empty file)")
        with path.open("rb") as file:
            image, transparent = _decoded(file, path, decoding.gray)
    except (ImageError, MemoryError):
        raise
    # Decoders raise whatever a broken file leads them to: OSError, SyntaxError, ValueError, …
    except Exception as error:
        image, transparent = _decoded_without_metadata(error, path, decoding.gray)
    if decoding.size is not None:
        short = min(image.size)
        left, top = ((side - short) / 2 for side in image.size)
        image = image.resize(
            (decoding.size, decoding.size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + short, top + short),
        )
    pixels = np.asarray(image)
    return Picture(pixels[None] if decoding.gray else pixels.transpose(2, 0, 1), transparent)


def _decoded_without_metadata(error: Exception, path: Path, gray: bool) -> tuple[Image.Image, bool]:
    """Decode a file that gave `error`, this time without metadata; where that fails, say why."""
    failure = ImageError(path, _reason(error))
    try:
        data = without_metadata(path.read_bytes())
        if data is None:
            raise failure from error
        return _decoded(io.BytesIO(data), path, gray)
    except MemoryError:
        raise
    except Exception:
        raise failure from error


def _reason(error: Exception) -> str:
    """Return why a file gave no image."""
    if isinstance(error, UnidentifiedImageError):
        return f"no whole image in one of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.errno:
        return f"could not be read ({error.strerror})"
    return f"no whole image ({error})"


def _decoded(file: IO[bytes], path: Path, gray: bool) -> tuple[Image.Image, bool]:
    """Return an upright image without transparency, and whether there was any."""
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of what may be a decompression bomb, which it refuses
        # from twice that size on.
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            if _deep(image):
                raise ImageError(path, "more than 8 bits a channel; convert it to 8 bits first")
            image.load()
            turn = TURNS.get(_orientation(image))
            opaque, transparent = _on_white(image)
    converted = opaque.convert("L" if gray else "RGB")
    return converted if turn is None else converted.transpose(turn), transparent


def _deep(image: ImageFile.ImageFile) -> bool:
    """Tell whether a file has more than 8 bits a channel: Pillow cuts or clips them to 8."""
    if image.mode[0] in "IF":
        return True
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return bool(max(bits, default=1) > 8)
    for tile in image.tile:
        mode, *rest = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if image.format == "PNG" and ";16" in str(mode):
            return True
        if image.format == "PPM" and rest and rest[-1] > 255:
            return True
    return False


def _orientation(image: Image.Image) -> int:
    """Return how the image is to be turned, as EXIF numbers it; 1, not at all, if that is unclear.

    TIFF files have been turned as they were loaded, and then say no more.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata: any damage, any error
        return 1
    return found if isinstance(found, int) else 1


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image on a white ground, and whether any of the ground shows."""
    if not image.has_transparency_data:
        return image, False
    coloured = image.convert("RGBA")
    if coloured.getchannel("A").getextrema()[0] == 255:
        return coloured, False
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(coloured)
    return white, True
