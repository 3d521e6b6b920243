"""Write an image file piece by piece, so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from mpicnn.data.digests import BlockHasher
from mpicnn.data.file import one_line, open_dataset
from mpicnn.data.layout import (
    CHUNK_BYTES,
    FORMAT,
    MOST_MEMORY_BYTES,
    MOST_UNPACKED_BYTES,
    VERSION,
    Array,
    ImageShape,
    Index,
)
from mpicnn.errors import UserError

# The oldest version of HDF5's own structures that has checksums on them; HDF5 1.10 reads it.
LIBRARY = ("v110", "v110")

# More than all but the images and labels takes, for any sensible number of classes.
OTHER_BYTES = 2**20


class Writer:
    """Write labels at once and images in order, and gather the training images' statistics.

    Every method raises UserError naming `path` where writing fails.
    """

    def __init__(
        self,
        file: h5py.File,
        path: Path,
        classes: Sequence[str],
        shape: ImageShape,
        labels: dict[str, Index],
        gzip: int | None,
    ) -> None:
        self._file = file
        self._path = path
        self._done = dict.fromkeys(labels, 0)
        # How often each value occurs in each channel: exact however many images there are.
        self._histogram = np.zeros((shape[0], 256), np.int64)
        self._hashers = {split: BlockHasher(shape) for split in labels}
        self._digests: dict[str, list[bytes]] = {split: [] for split in labels}
        packing = {} if gzip is None else {"compression": gzip}
        with reporting(path):
            file.attrs["format"] = FORMAT
            file.attrs["version"] = VERSION
            file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
            for name in ("mean", "std"):
                file[name] = np.zeros(shape[0])
            for split in labels:
                data = labels[split].astype(np.int64)
                small = packing if data.nbytes <= MOST_UNPACKED_BYTES else {}
                file.create_dataset(f"{split}/labels", data=data, **small)
                hasher = self._hashers[split]
                blocks = -(-len(data) // hasher.rows)
                file[f"{split}/sha256"] = np.zeros((blocks, 32), np.uint8)
                file[f"{split}/sha256"].attrs["rows"] = hasher.rows
            for split in labels:
                count = len(labels[split])
                rows = min(count, max(1, CHUNK_BYTES // math.prod(shape)))
                chunks = {"chunks": (rows, *shape)} if packing else {}
                name = f"{split}/images"
                file.create_dataset(name, (count, *shape), np.uint8, **chunks, **packing)
            # All but the images has its place on the disk from here on: where the disk is full,
            # HDF5 fails cleanly at writing them, but ends the process at writing its own parts.
            file.flush()

    def append(self, split: str, images: Array) -> None:
        """Write the next images of `split`: uint8 (n, c, h, w)."""
        lo = self._done[split]
        self._done[split] = hi = lo + len(images)
        with reporting(self._path):
            self._file[f"{split}/images"][lo:hi] = images
        self._digests[split] += self._hashers[split].add(images)
        if split == "train":
            for channel, counts in enumerate(self._histogram):
                counts += np.bincount(images[:, channel].reshape(-1), minlength=256)

    def finish(self) -> None:
        """Write the images' digests, and the training images' mean and deviation per channel.

        A channel of one value everywhere gets the deviation 1, so that it normalizes to zero.
        """
        values = np.arange(256)
        counts = self._histogram.sum(axis=1)
        mean = self._histogram @ values / counts
        spread = (values - mean[:, None]) ** 2
        std = np.sqrt((self._histogram * spread).sum(axis=1) / counts)
        with reporting(self._path):
            self._file["mean"][...] = mean
            self._file["std"][...] = np.where(std > 0, std, 1.0)
            for split, found in self._digests.items():
                found += self._hashers[split].rest()
                self._file[f"{split}/sha256"][...] = np.frombuffer(
                    b"".join(found), np.uint8
                ).reshape(-1, 32)


@contextlib.contextmanager
def writing(
    path: Path,
    classes: Sequence[str],
    shape: ImageShape,
    labels: dict[str, Index],
    gzip: int | None = None,
) -> Iterator[Writer]:
    """Give a Writer of the image file `path`, which appears when all images were appended.

    `labels` are int64 (n,) by split; `gzip` is the level, 0 … 9, or None for plain contiguous
    data. Written, synchronized and checked under a temporary name first: whatever happens, `path`
    is what it was or the whole new file. Raises UserError where there is no room or writing fails,
    and for `gzip` with a split larger than what readers unpack into memory.
    """
    sizes = [len(labels[split]) * math.prod(shape) for split in labels]
    if gzip is not None and max(sizes) > MOST_MEMORY_BYTES:
        raise UserError(
            f"{path}: {max(sizes)} bytes of images in a split; --gzip is for up to"
            f" {MOST_MEMORY_BYTES}, larger ones would be slow to read at random; leave it out"
        )
    import shutil  # 4 ms that training, which reads alone, does without

    free = shutil.disk_usage(path.parent).free
    if gzip is None and sum(sizes) + OTHER_BYTES > free:
        raise UserError(
            f"{path}: {free} bytes free; expected the {sum(sizes)} of the images and"
            f" {OTHER_BYTES} more; make room, or write to another disk"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # In memory where packed: where the disk gets full between chunks, HDF5 ends the process.
    image = None if gzip is None else io.BytesIO()
    try:
        with (
            reporting(path),
            h5py.File(image or temporary, "w", libver=LIBRARY, locking=False) as file,
        ):
            writer = Writer(file, path, classes, shape, labels, gzip)
            yield writer
            writer.finish()
        with reporting(path):
            if image is not None:
                temporary.write_bytes(image.getbuffer())
            synchronize(temporary)
            open_dataset(temporary).close()
            os.replace(temporary, path)
            synchronize(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a reason why there is none has been told
            temporary.unlink()


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Raise UserError naming `path` for what the system or HDF5 raises."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else one_line(error)
        raise UserError(f"{path}: could not be written ({reason})") from error


def check_target(path: Path, overwrite: bool) -> None:
    """Raise UserError where `path` cannot become the new file."""
    if os.path.isdir(path):
        raise UserError(f"{path}: a directory; expected the name of the file to write")
    if not os.path.isdir(path.parent):
        raise UserError(f"{path.parent}: no such directory; make it first")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path}: exists; give --overwrite to replace it, or another name")


def synchronize(path: Path) -> None:
    """Have the system put a file's or directory's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
