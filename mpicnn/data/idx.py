"""Read the IDX files of the MNIST family (LeCun, Cortes, Burges: "The MNIST database")."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpicnn.data.layout import MOST_INFLATION, MOST_SIDE, MOST_UNPACKED_BYTES, Array
from mpicnn.data.source import ArraySource
from mpicnn.errors import UserError

# No real images pack tighter; MNIST's digits, nearly all black, take a fifth of their size.
USUAL_INFLATION = 50

PREFIXES = {"train": "train", "test": "t10k"}


def open_idx(directory: Path, classes: Sequence[str] | None = None) -> ArraySource:
    """Return the images and labels of a directory with the four files, gzipped or not.

    `classes` names the classes; without it they are "0", "1", … up to the largest label. Raises
    UserError for a file that is missing, cut short or not what it should be.
    """
    images, labels = {}, {}
    for split, prefix in PREFIXES.items():
        path = find(directory, f"{prefix}-images-idx3-ubyte")
        images[split] = read_idx(path, 3)[:, None]
        path = find(directory, f"{prefix}-labels-idx1-ubyte")
        labels[split] = read_idx(path, 1).astype(np.int64)
        if len(labels[split]) != len(images[split]):
            raise UserError(
                f"{path}: {len(labels[split])} labels; expected one for each of"
                f" {len(images[split])} images"
            )
        largest = int(labels[split].max(initial=0))
        if classes is not None and largest >= len(classes):
            raise UserError(
                f"{path}: label {largest}; expected 0 to {len(classes) - 1}, as classes named"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise UserError(
            f"{directory}: images of {images['train'].shape[2:]} for training and"
            f" {images['test'].shape[2:]} for testing; expected the same"
        )
    count = 1 + max(int(each.max(initial=0)) for each in labels.values())
    names = tuple(classes) if classes is not None else tuple(map(str, range(count)))
    return ArraySource(str(directory), names, labels, images)


def find(directory: Path, name: str) -> Path:
    """Return the file `name` in `directory`, plain or .gz, or with a dot: train-images.idx3-ubyte.

    Raises UserError where there is none, or one of each spelling.
    """
    spellings = (name, name.replace("-idx", ".idx"))
    found = []
    for each in spellings:
        paths = (directory / each, directory / f"{each}.gz")
        found += [path for path in paths if os.path.isfile(path)][:1]
    if len(found) > 1:
        raise UserError(f"{found[0]}: there is {found[1].name} too; keep one of them")
    if not found:
        raise UserError(
            f"{directory}: has no {name}; expected it, or {spellings[1]}, plain or with .gz"
        )
    return found[0]


def read_idx(path: Path, rank: int) -> Array:
    """Return the uint8 array of an IDX file with `rank` axes.

    Raises UserError where the header or the number of bytes is not right.
    """
    header = 4 + 4 * rank
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes((0, 0, 8, rank)):
                raise UserError(f"{path}: expected an IDX file of unsigned bytes with {rank} axes")
            shape = struct.unpack(f">{rank}I", start[4:])
            if not all(1 <= side <= MOST_SIDE for side in shape[1:]):
                raise UserError(
                    f"{path}: images of {shape[1:]}; expected sides from 1 to {MOST_SIDE}"
                )
            size = math.prod(shape)
            # Before `size` bytes are asked for: a false header must not take all the memory.
            stored = path.stat().st_size
            if size > stored * (MOST_INFLATION if packed else 1):
                raise UserError(f"{path}: cut short; its header says {shape}")
            if packed and size > max(MOST_UNPACKED_BYTES, stored * USUAL_INFLATION):
                raise UserError(
                    f"{path}: {stored} bytes that stand for {size}; expected at most"
                    f" {USUAL_INFLATION} times as many; unpack it by gunzip if it is right"
                )
            data = file.read(size)
            if len(data) < size or file.read(1):
                raise UserError(f"{path}: expected exactly the {size} bytes that its header says")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: could not be read ({error})") from error
    return np.frombuffer(data, np.uint8).reshape(shape)
