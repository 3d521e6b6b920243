"""The checkpoint file: made in memory, checked in every byte when read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpicnn.checkpoint.blocks import Tensor
from mpicnn.documents import read_json
from mpicnn.errors import UserError

Array = NDArray[Any]
Outline = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of every array, by name."""

FORMAT = "mpicnn checkpoint 1"

MOST_META_BYTES = 4 * 2**20
"""Of the text: what Python makes of it may take twenty times as much."""
MOST_ATTRIBUTE_BYTES = 100

_BLOCK = 2**24
_SHOWN = 6
# What h5py was seen to raise on damaged files.
_UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


def make_image(wholes: Iterable[tuple[str, Array]], meta: dict[str, Any]) -> io.BytesIO:
    """Return the bytes of a checkpoint file.

    They are made in memory because HDF5, where the disk is full, fails at closing at best.
    """
    image = io.BytesIO()
    # This version puts checksums on HDF5's own structures.
    with h5py.File(image, "w", libver=("v110", "v110")) as file:
        digests = {}
        for name, whole in wholes:
            digests[name] = _digest(whole)
            file.create_dataset(name, data=whole).attrs["sha256"] = np.bytes_(digests[name])
        text = json.dumps(meta).encode()
        file.create_dataset("meta", data=np.bytes_(text))
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["sha256"] = np.bytes_(_seal(text, digests))
    return image


def verify(path: Path) -> None:
    """Read all of a checkpoint; raise UserError where it is not exactly what was written."""
    with _opened(path) as contents:
        for name, dataset in contents.datasets.items():
            _check(name, dataset, contents.digests)


def read_meta(path: Path) -> dict[str, Any]:
    """Return the meta data alone. Raises UserError where it is damaged."""
    with _opened(path) as contents:
        return contents.meta


def read_outline(path: Path) -> tuple[str, dict[str, Any], Outline]:
    """Return a checkpoint's digest, its meta data, and shape and type of every array.

    Raises UserError where it is damaged; the numbers themselves are not read.
    """
    with _opened(path) as contents:
        arrays = {name: (d.shape, d.dtype) for name, d in contents.datasets.items()}
        return contents.digest, contents.meta, arrays


def read_tensors(path: Path, sections: Collection[str] | None = None) -> dict[str, Array]:
    """Return the whole tensors by name ("section/name"), of all or the given sections.

    Raises UserError where one of them is damaged.
    """
    with _opened(path) as contents:
        wholes = {
            name: dataset[()]
            for name, dataset in contents.datasets.items()
            if sections is None or name.split("/")[0] in sections
        }
        for name, whole in wholes.items():
            _check(name, whole, contents.digests)
        return wholes


def compare(path: Path, arrays: Outline) -> tuple[str, dict[str, Any]]:
    """Return a checkpoint's digest and meta data after comparing it with the arrays to be loaded.

    Raises UserError where names, shapes or dtypes differ.
    """
    with _opened(path) as contents:
        kept = {n: f"{d.dtype.name} {d.shape}" for n, d in contents.datasets.items()}
        digest, meta = contents.digest, contents.meta
    wanted = {n: f"{dtype.name} {shape}" for n, (shape, dtype) in arrays.items()}
    differing = [n for n in sorted(kept | wanted) if kept.get(n) != wanted.get(n)]
    if differing:
        listed = [
            f"{n}: {kept.get(n, 'nothing')} in the file, {wanted.get(n, 'nothing')} in this run"
            for n in differing[:_SHOWN]
        ]
        listed += [f"and {len(differing) - _SHOWN} more"] * (len(differing) > _SHOWN)
        raise UserError(
            f"{path}: checkpoint of another network or number type: {'; '.join(listed)}; "
            "resume with the settings it was saved with, or start in a new directory"
        )
    return digest, meta


def fill(path: Path, digest: str, tensors: dict[str, Tensor]) -> None:
    """Read the block of every tensor into its array, from the file that has this digest.

    Raises UserError where it is another file by now or cannot be read.
    """
    with _opened(path) as contents:
        if contents.digest != digest:
            raise ValueError("it is not the file that rank 0 has checked")
        for name, tensor in tensors.items():
            if tensor.array.size:
                tensor.array[...] = contents.datasets[name][tensor.block]


@dataclass(frozen=True)
class _Contents:
    datasets: dict[str, Any]
    digests: dict[str, str]
    meta: dict[str, Any]
    digest: str


@contextmanager
def _opened(path: Path) -> Iterator[_Contents]:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("not a file")
        with h5py.File(path, "r", locking=False) as file:
            yield _contents(file)
    except _UNREADABLE as e:
        # str() of a KeyError is its message in quotes.
        reason = str(e.args[0] if isinstance(e, KeyError) else e)
        raise UserError(f"{path}: not a whole checkpoint: {' '.join(reason.split())}") from e


def _contents(file: Any) -> _Contents:
    """Look through a file that may be damaged or made to mislead, reading no tensor yet."""
    form = _attribute(file, "format")
    if form != FORMAT:
        raise ValueError(f"its format is {form!r}, expected {FORMAT!r}")
    datasets: dict[str, Any] = {}
    for section in file:
        if section != "meta":
            group = _member(file, section, h5py.Group)
            datasets |= {f"{section}/{name}": _plain(file, group, name, "fiu") for name in group}
    if sum(map(_bytes, datasets.values())) > file.id.get_filesize():
        raise ValueError("its arrays share their place in the file")
    digests = {name: _attribute(dataset, "sha256") for name, dataset in datasets.items()}
    text = _text(file)
    digest = _attribute(file, "sha256")
    if digest != _seal(text, digests):
        raise ValueError("its list of contents or its meta data is damaged")
    return _Contents(datasets, digests, _meta(text), digest)


def _text(file: Any) -> bytes:
    dataset = _plain(file, file, "meta", "S")
    if dataset.shape != () or _bytes(dataset) > MOST_META_BYTES:
        raise ValueError(f"its meta data is not one text of at most {MOST_META_BYTES} bytes")
    return bytes(dataset[()])


def _meta(text: bytes) -> dict[str, Any]:
    meta = read_json(text.decode("ascii"))
    if not isinstance(meta, dict) or type(meta.get("step")) is not int or meta["step"] < 0:
        raise ValueError("its meta data does not say which step it is of")
    return meta


def _bytes(dataset: Any) -> int:
    # Python's integers: the shape in a damaged file may overflow h5py's.
    return prod(dataset.shape) * int(dataset.dtype.itemsize)


def _attribute(item: Any, name: str) -> str:
    stored = item.attrs.get_id(name)
    kind = stored.dtype
    if stored.shape != () or kind.kind != "S" or kind.itemsize > MOST_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} is not a short text of fixed length")
    return bytes(item.attrs[name]).decode("ascii")


def _member(group: Any, name: str, kind: type) -> Any:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link to another place, which is not followed")
    item = group[name]
    if not isinstance(item, kind):
        raise ValueError(f"{name} is not a {kind.__name__.lower()}")
    return item


def _plain(file: Any, group: Any, name: str, kinds: str) -> Any:
    """Return a dataset of numbers or text whose bytes lie in this very file, in one piece."""
    dataset = _member(group, name, h5py.Dataset)
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count():
        raise ValueError(f"{dataset.name} does not lie in one piece in this file")
    if dataset.shape is None or dataset.dtype.kind not in kinds:
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, which is not expected there")
    size = _bytes(dataset)
    offset = dataset.id.get_offset()
    if size and (offset is None or offset + size > file.id.get_filesize()):
        raise ValueError(f"{dataset.name} of shape {dataset.shape} is larger than the file")
    return dataset


def _check(name: str, data: Any, digests: dict[str, str]) -> None:
    if _digest(data) != digests[name]:
        raise ValueError(f"{name} is damaged: its bytes do not have the recorded sha256")


def _digest(data: Any) -> str:
    """Return the sha256 of dtype, shape and C-order bytes of an array or HDF5 dataset."""
    sha = hashlib.sha256(f"{data.dtype.str} {'x'.join(map(str, data.shape))}\n".encode())
    size = prod(data.shape)
    if data.ndim == 0:
        sha.update(np.asarray(data[()]).tobytes())
    elif size:
        rows = max(1, _BLOCK * data.shape[0] // (size * data.dtype.itemsize))
        for lo in range(0, data.shape[0], rows):
            block = np.ascontiguousarray(data[lo : lo + rows])
            sha.update(block.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _seal(text: bytes, digests: dict[str, str]) -> str:
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(f"{FORMAT}\n".encode() + text + f"\n{lines}".encode()).hexdigest()
