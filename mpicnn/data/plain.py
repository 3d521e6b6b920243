"""Take the metadata out of an image file, so that damage to it does not cost the image."""

from __future__ import annotations

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = {b"II*\0": "<", b"MM\0*": ">"}

# What TIFF's pixels cannot be read without (TIFF 6.0 and its supplements).
TIFF_TAGS = frozenset(
    (*range(254, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, 322, 323, 324,
     325, 332, 338, 339, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532)
)  # fmt: skip
ORIENTATION = (274, 3, 1)  # its tag, type (16 bits) and number of values


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or TIFF file without all that its pixels do not need; None for other files.

    Raises struct.error where the file is too short. Other formats need no help: Pillow passes over
    damaged metadata in them.
    """
    if data.startswith(PNG):
        return _png(data)
    order = TIFF.get(data[:4])
    return None if order is None else _tiff(data, order)


def _png(data: bytes) -> bytes:
    """Return a PNG with its critical chunks, transparency, and an EXIF chunk that is undamaged."""
    kept, at = [PNG], len(PNG)
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunk = data[at : at + 12 + size]
        kind = chunk[4:8]
        sound = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        # An upper-case letter marks a critical chunk (PNG specification, 5.4).
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and sound):
            kept.append(chunk)
        if kind == b"IEND":
            break
        at += len(chunk)
    return b"".join(kept)


def _tiff(data: bytes, order: str) -> bytes:
    """Return a TIFF whose first directory, now at the end, has what pixels need alone."""
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries = [data[k : k + 12] for k in range(at + 2, at + 2 + 12 * count, 12)]
    kept = []
    for entry in entries:
        tag, kind, values = struct.unpack_from(f"{order}HHI", entry)
        if tag in TIFF_TAGS or (tag, kind, values) == ORIENTATION:
            kept.append(entry)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    pad = bytes(len(data) % 2)
    return b"".join(
        (data[:4], struct.pack(f"{order}I", len(data) + len(pad)), data[8:], pad, directory)
    )
