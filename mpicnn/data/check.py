"""Look at an HDF5 file's claims before believing any: links, storage, types, shapes, sizes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpicnn.data.digests import Digests
from mpicnn.data.layout import (
    FORMAT,
    MOST_CHUNK_BYTES,
    MOST_INFLATION,
    SPLITS,
    VERSION,
    Array,
    Index,
)
from mpicnn.errors import UserError

FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


class Checker:
    """Hand out the parts of the open image file `file`, each checked before it is read.

    Every method raises UserError naming the file, the part and what was expected.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file = file
        self.path = path
        self.bytes = os.path.getsize(path)

    def fail(self, part: str, expected: str) -> UserError:
        """Return the error that `part` is not as `expected`."""
        return UserError(
            f"{self.path}: {part}: expected {expected};"
            " make the file anew with 'python -m mpicnn.data prepare'"
        )

    def format(self) -> None:
        """Check that the file says it is one of ours, of the version read here."""
        found = self._attribute("format")
        if found != FORMAT:
            raise self.fail("attribute 'format'", f"{FORMAT!r}, found {found!r}")
        version = self._attribute("version")
        if version != VERSION:
            raise self.fail("attribute 'version'", f"{VERSION}, found {version!r}")

    def images(self, split: str) -> h5py.Dataset:
        """Return the dataset of a split's images: uint8 (n, c, h, w), no axis empty."""
        data = self._dataset(f"{split}/images", 4)
        if data.dtype != np.uint8:
            raise self.fail(data.name, f"uint8, found {data.dtype}")
        if 0 in data.shape:
            raise self.fail(data.name, f"n, c, h, w all above 0, found {data.shape}")
        return data

    def labels(self, split: str, count: int, classes: int) -> Index:
        """Return a split's labels, int64 (count,), each checked to be in 0 … classes-1."""
        data = self._dataset(f"{split}/labels", 1)
        if data.dtype.kind != "i" or data.dtype.itemsize not in (4, 8):
            raise self.fail(data.name, f"int32 or int64, found {data.dtype}")
        if data.shape != (count,):
            raise self.fail(data.name, f"one label for each of {count} images, found {data.shape}")
        labels = data[()].astype(np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if wrong.size:
            at = int(wrong[0])
            raise self.fail(data.name, f"0 to {classes - 1}, found {labels[at]} at row {at}")
        return np.asarray(labels)

    def digests(self, split: str, count: int) -> Digests | None:
        """Return the digests of a split's `count` images; None where the file has none."""
        group = self.file[split]
        if not group.id.links.exists(b"sha256"):
            return None
        data = self._dataset(f"{split}/sha256", 2)
        rows = data.attrs.get("rows")
        if not isinstance(rows, np.integer) or rows < 1:
            raise self.fail(data.name, "an attribute 'rows', how many images a digest is of")
        shape = (-(-count // int(rows)), 32)
        if data.dtype != np.uint8 or data.shape != shape:
            raise self.fail(data.name, f"uint8 {shape}, found {data.dtype} {data.shape}")
        return Digests(int(rows), np.asarray(data[()]))

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the labels."""
        data = self._dataset("classes", 1)
        if h5py.check_string_dtype(data.dtype) is None:
            raise self.fail(data.name, f"UTF-8 strings, found {data.dtype}")
        names = tuple(data.asstr()[()].tolist())
        if not names or len(set(names)) < len(names):
            raise self.fail(data.name, "at least one name and none twice")
        if not all(name and name.isprintable() for name in names):
            raise self.fail(data.name, "printable names")
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

    def _attribute(self, name: str) -> Any:
        if name not in self.file.attrs or self.file.attrs.get_id(name).shape != ():
            raise self.fail(f"attribute {name!r}", "a single value, found none")
        value = self.file.attrs[name]
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
        return node

    def _storage(self, data: h5py.Dataset, name: str) -> None:
        """Check that as many bytes as the dataset's shape claims really lie in this file."""
        create = data.id.get_create_plist()
        if create.get_layout() == h5py.h5d.VIRTUAL or create.get_external_count():
            raise self.fail(f"/{name}", "data in this file, found virtual or external storage")
        claimed = math.prod(data.shape) * data.id.get_type().get_size()
        stored = data.id.get_storage_size()
        most = min(stored, self.bytes)
        if create.get_layout() == h5py.h5d.CHUNKED:
            filters = {create.get_filter(i)[0] for i in range(create.get_nfilters())}
            if not filters <= FILTERS:
                raise self.fail(f"/{name}", "no filter but gzip, shuffle and fletcher32")
            if math.prod(data.chunks) * data.id.get_type().get_size() > MOST_CHUNK_BYTES:
                raise self.fail(f"/{name}", f"chunks up to {MOST_CHUNK_BYTES} bytes")
            chunks = math.prod(-(-n // k) for n, k in zip(data.shape, data.chunks, strict=True))
            if data.id.get_num_chunks() != chunks:
                raise self.fail(f"/{name}", f"all of its {chunks} chunks, found some never written")
            if h5py.h5z.FILTER_DEFLATE in filters:
                most *= MOST_INFLATION
        if claimed > most:
            raise self.fail(
                f"/{name}",
                f"the {claimed} bytes that its shape {data.shape} takes,"
                f" found {stored} stored in a file of {self.bytes}",
            )


def check_equal_images(checker: Checker) -> dict[str, h5py.Dataset]:
    """Return the image datasets of all splits, checked to hold images of one shape."""
    images = {split: checker.images(split) for split in SPLITS}
    shape = images[SPLITS[0]].shape[1:]
    for split, data in images.items():
        if data.shape[1:] != shape:
            raise checker.fail(f"/{split}/images", f"images of {shape}, found {data.shape[1:]}")
    return images
