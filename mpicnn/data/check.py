"""Look at an HDF5 file's claims before believing any: links, storage, types, shapes, sizes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import h5py
import numpy as np

from mpicnn.data.digests import Digests
from mpicnn.data.layout import (
    FORMAT,
    MOST_CHUNK_BYTES,
    MOST_CHUNKS,
    MOST_IMAGE_BYTES,
    MOST_IMAGES,
    MOST_INFLATION,
    MOST_NAME,
    MOST_NAMES_BYTES,
    MOST_SIDE,
    MOST_UNPACKED_BYTES,
    SPLITS,
    VALIDATION,
    VERSION,
    Array,
    Index,
)
from mpicnn.data.raw import RawFile
from mpicnn.data.store import PACKING, check_chunks, read_exactly
from mpicnn.errors import UserError

FILTERS = {PACKING, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}

REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
"""What an HDF5 file holds in place of a text of variable length: how long it is, and where."""


class Checker:
    """Hand out the parts of the image file that is open as `file` and `raw`, each checked.

    Every method raises UserError naming the file, the part and what was expected.
    """

    def __init__(self, file: h5py.File, raw: RawFile, path: Path) -> None:
        self.file = file
        self.path = path
        self.raw = raw
        self.bytes = os.fstat(raw.fileno()).st_size

    def fail(self, part: str, expected: str) -> UserError:
        """Return the error that `part` is not as `expected`."""
        return UserError(
            f"{self.path}: {part}: expected {expected};"
            " make the file anew with 'python -m mpicnn.data prepare'"
        )

    def format(self) -> None:
        """Check that the file says it is one of ours, of the version read here."""
        sizes = self.file.id.get_create_plist().get_sizes()
        if sizes != (8, 8):  # of all others, no heap can be looked at
            raise self.fail("addresses and lengths", f"8 bytes for each, found {sizes}")
        found = self._attribute(self.file, "format", "SO")
        if found != FORMAT:
            raise self.fail("attribute 'format'", f"{FORMAT!r}, found {short(found)}")
        version = self._attribute(self.file, "version", "iu")
        if version != VERSION:
            raise self.fail("attribute 'version'", f"{VERSION}, found {version!r}")

    def present(self, split: str) -> bool:
        """Tell whether a split is to be there: all are but the one that may be missing."""
        return split != VALIDATION or bool(self.file.id.links.exists(split.encode()))

    def images(self, split: str) -> h5py.Dataset:
        """Return the dataset of a split's images: uint8 (n, c, h, w), no axis empty."""
        data = self._dataset(f"{split}/images", 4)
        if data.dtype != np.uint8:
            raise self.fail(data.name, f"uint8, found {data.dtype}")
        if 0 in data.shape:
            raise self.fail(data.name, f"n, c, h, w all above 0, found {data.shape}")
        if data.shape[0] > MOST_IMAGES:
            raise self.fail(data.name, f"at most {MOST_IMAGES} images, found {data.shape[0]}")
        if wrong := wrong_shape(data.shape[1:]):
            raise self.fail(data.name, f"{wrong}, found {data.shape[1:]}")
        return data

    def labels(self, split: str, count: int, classes: int) -> Index:
        """Return a split's labels, int64 (count,), each checked to be in 0 … classes-1."""
        data = self._dataset(f"{split}/labels", 1)
        if data.dtype.kind != "i" or data.dtype.itemsize not in (4, 8):
            raise self.fail(data.name, f"int32 or int64, found {data.dtype}")
        if data.shape != (count,):
            raise self.fail(data.name, f"one label for each of {count} images, found {data.shape}")
        labels = data[()].astype(np.int64, copy=False)
        for at in (int(labels.argmin()), int(labels.argmax())):
            if not 0 <= labels[at] < classes:
                raise self.fail(data.name, f"0 to {classes - 1}, found {labels[at]} at row {at}")
        return np.asarray(labels)

    def digests(self, split: str, shape: tuple[int, ...]) -> Digests | None:
        """Return the digests of a split's images, `shape` (n, c, h, w); None if it has none."""
        group = self.file[split]
        if not group.id.links.exists(b"sha256"):
            return None
        data = self._dataset(f"{split}/sha256", 2)
        rows = self._attribute(data, "rows", "iu")
        most = max(1, MOST_UNPACKED_BYTES // math.prod(shape[1:]))
        if not 1 <= rows <= most:
            raise self.fail(data.name, f"an attribute 'rows' from 1 to {most}, found {rows}")
        expected = (-(-shape[0] // rows), 32)
        if data.dtype != np.uint8 or data.shape != expected:
            raise self.fail(data.name, f"uint8 {expected}, found {data.dtype} {data.shape}")
        return Digests(rows, np.asarray(data[()]))

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the labels."""
        data = self._dataset("classes", 1)
        if h5py.check_string_dtype(data.dtype) is None:
            raise self.fail(data.name, f"UTF-8 strings, found {data.dtype}")
        if not data.size:
            raise self.fail(data.name, "at least one name")
        found = self._text_bytes(data)
        if found > MOST_NAMES_BYTES:
            raise self.fail(data.name, f"names of {MOST_NAMES_BYTES} bytes at most, found {found}")
        names = tuple(data.asstr()[()].tolist())
        if wrong := wrong_names(names):
            raise self.fail(data.name, wrong)
        return names

    def per_channel(self, name: str, channels: int) -> Array:
        """Return `name` ("mean" or "std"), float64 (channels,), finite; std is positive."""
        data = self._dataset(name, 1)
        if data.dtype.kind != "f" or data.dtype.itemsize != 8 or data.shape != (channels,):
            raise self.fail(data.name, f"float64 ({channels},), found {data.dtype} {data.shape}")
        values = data[()].astype(np.float64)
        if not np.isfinite(values).all() or (name == "std" and (values <= 0).any()):
            raise self.fail(data.name, f"finite values{', above 0' * (name == 'std')}")
        return np.asarray(values)

    def _text_bytes(self, data: h5py.Dataset) -> int:
        """Return how many bytes the texts in a dataset take in memory, and more for many of them.

        Texts of variable length may share one place in the file, so its size says nothing.
        """
        length = h5py.check_string_dtype(data.dtype).length
        if length is not None:
            return data.size * max(1, length)
        place, stored = data.id.get_offset(), data.id.get_storage_size()
        if place is None or stored != data.size * REFERENCE.itemsize:
            raise self.fail(data.name, "texts that are stored contiguously")
        if data.size > MOST_NAMES_BYTES:
            return int(data.size)
        references = np.empty(data.size, REFERENCE)
        read_exactly(self.raw.fileno(), references.view(np.uint8).data, place)
        return int(np.maximum(references["length"], 1).sum(dtype=np.int64))

    def _attribute(self, holder: Any, name: str, kinds: str) -> Any:
        """Return an attribute of `holder` that is one value of a type of these `kinds`."""
        part = f"attribute {name!r}" + f" of {holder.name}" * (holder is not self.file)
        found = holder.attrs.get_id(name) if name in holder.attrs else None
        if found is None or found.shape != ():
            raise self.fail(part, "a single value, found none")
        # A type of objects may be other than text: values that hold values, without an end.
        text = h5py.check_string_dtype(found.dtype)
        if found.dtype.kind not in kinds or (found.dtype.kind == "O" and text is None):
            what = "a text" if "S" in kinds else "an integer"
            raise self.fail(part, f"{what}, found {found.dtype}")
        value = holder.attrs[name]
        return value.item() if isinstance(value, np.generic) else value

    def _dataset(self, name: str, rank: int) -> h5py.Dataset:
        """Return the dataset `name` if it lies in this file, whole, and of rank `rank`."""
        node: Any = self.file
        for part in name.split("/"):
            # Asked of the link itself: h5py's own "in" would follow it into another file.
            if not isinstance(node, h5py.Group) or not node.id.links.exists(part.encode()):
                raise self.fail(f"/{name}", "a dataset, found nothing")
            if node.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                raise self.fail(f"/{name}", "a hard link, found a soft or external one")
            node = node[part]
        if not isinstance(node, h5py.Dataset):
            raise self.fail(f"/{name}", f"a dataset, found a {type(node).__name__.lower()}")
        if node.shape is None or len(node.shape) != rank:
            raise self.fail(f"/{name}", f"{rank} axes, found shape {node.shape}")
        self._storage(node, name)
        if node.chunks and not name.endswith("/images"):  # which are looked at when they are read
            check_chunks(node, 0, len(node))
        return node

    def _storage(self, data: h5py.Dataset, name: str) -> None:
        """Check that as many bytes as the dataset's shape claims really lie in this file."""
        create = data.id.get_create_plist()
        if create.get_layout() == h5py.h5d.VIRTUAL or create.get_external_count():
            raise self.fail(f"/{name}", "data in this file, found virtual or external storage")
        size = data.id.get_type().get_size()
        claimed = math.prod(data.shape) * size
        stored = data.id.get_storage_size()
        most = min(stored, self.bytes)
        if create.get_layout() == h5py.h5d.CHUNKED:
            filters = [create.get_filter(i)[0] for i in range(create.get_nfilters())]
            # What is packed must be what lies in the file, for `check_chunks` to look at.
            behind = filters[filters.index(PACKING) + 1 :] if PACKING in filters else []
            if not set(filters) <= FILTERS or behind not in ([], [h5py.h5z.FILTER_FLETCHER32]):
                raise self.fail(
                    f"/{name}", "no filter but shuffle, gzip, fletcher32, in this order"
                )
            if math.prod(data.chunks) * size > MOST_CHUNK_BYTES:
                raise self.fail(f"/{name}", f"chunks up to {MOST_CHUNK_BYTES} bytes")
            if PACKING in filters:
                most *= MOST_INFLATION
                if claimed > MOST_UNPACKED_BYTES and not name.endswith("/images"):
                    raise self.fail(
                        f"/{name}",
                        f"{MOST_UNPACKED_BYTES} bytes at most where it is compressed, found"
                        f" {claimed}; or one that is not compressed",
                    )
        if claimed > most:
            raise self.fail(
                f"/{name}",
                f"the {claimed} bytes that its shape {data.shape} takes,"
                f" found {stored} stored in a file of {self.bytes}",
            )
        if create.get_layout() == h5py.h5d.CHUNKED:
            chunks = math.prod(-(-n // k) for n, k in zip(data.shape, data.chunks, strict=True))
            if chunks > MOST_CHUNKS and not name.endswith("/images"):
                raise self.fail(f"/{name}", f"{MOST_CHUNKS} chunks at most, found {chunks}")
            # Counting them takes time, of some kinds for those that are not there too.
            if chunks > self.bytes or data.id.get_num_chunks() != chunks:
                raise self.fail(f"/{name}", f"all of its {chunks} chunks, found some never written")


def wrong_names(names: Sequence[str]) -> str:
    """Return what is expected of these class names and is not so, "" where nothing is wrong."""
    if not names or len(set(names)) < len(names):
        return "at least one name and none twice"
    if not all(name and name.isprintable() for name in names):
        return "printable names"
    if max(map(len, names)) > MOST_NAME or len(json.dumps(names)) > MOST_NAMES_BYTES:
        return f"names of {MOST_NAME} characters and {MOST_NAMES_BYTES} bytes in all, at most"
    return ""


def wrong_shape(image: Sequence[int]) -> str:
    """Return what is expected of images of this shape and is not so, "" where nothing is wrong."""
    if max(image) > MOST_SIDE or math.prod(image) > MOST_IMAGE_BYTES:
        return f"images of sides up to {MOST_SIDE} and {MOST_IMAGE_BYTES} bytes"
    return ""


def check_equal_images(checker: Checker) -> dict[str, h5py.Dataset]:
    """Return the image datasets of all splits, checked to hold images of one shape."""
    images = {split: checker.images(split) for split in SPLITS if checker.present(split)}
    shape = images[SPLITS[0]].shape[1:]
    for split, data in images.items():
        if data.shape[1:] != shape:
            raise checker.fail(f"/{split}/images", f"images of {shape}, found {data.shape[1:]}")
    return images
