"""Prepare image files, check them, and show what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn.data.cifar import CIFAR10, CIFAR100, open_cifar
from mpicnn.data.draw import Draw
from mpicnn.data.file import Dataset, open_dataset
from mpicnn.data.folder import Division, open_folder
from mpicnn.data.idx import open_idx
from mpicnn.data.images import Decoding
from mpicnn.data.layout import class_counts
from mpicnn.data.prepare import Opener, Taking, prepare
from mpicnn.data.verify import verify
from mpicnn.errors import UserError, printable
from mpicnn.job.agreement import agree, from_root
from mpicnn.job.output import say
from mpicnn.run.setup import read_command
from mpicnn.settings.command_settings import (
    Cifar10Settings,
    Cifar100Settings,
    FolderSettings,
    IdxSettings,
    InfoSettings,
    VerifySettings,
)

if TYPE_CHECKING:
    from mpi4py import MPI

Prepared = IdxSettings | FolderSettings | Cifar10Settings | Cifar100Settings


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Do what the arguments say, on every rank; rank 0 alone prints. Collective.

    Raises UserError on every rank for whatever is wrong on one, and SystemExit after --help.
    """
    _, settings = read_command(comm, argv)
    assert isinstance(settings, InfoSettings | VerifySettings | Prepared)
    if isinstance(settings, VerifySettings):
        with agree(comm, open_dataset, settings.file) as data:
            text = verified(comm, data)
        if comm.rank == 0:
            say(None, text, fd=1)
        return
    account: list[str] = []
    if not isinstance(settings, InfoSettings):
        taking = Taking(
            per_class=tuple(map(int, filter(None, settings.per_class.split(",")))),
            validation=Draw(settings.validation, settings.seed) if settings.validation else None,
            gzip=None if settings.gzip < 0 else settings.gzip,
            overwrite=settings.overwrite,
            skip_broken=isinstance(settings, FolderSettings) and settings.skip_broken,
        )
        account = prepare(comm, Path(settings.file), opener(settings), taking)
    text = from_root(comm, info, settings.file)
    if comm.rank == 0:
        say(None, "\n".join([*map(printable, account), text]), fd=1)


def verified(comm: MPI.Intracomm, data: Dataset) -> str:
    """Return that all images are as they were prepared. Collective; raises UserError if not."""
    if not verify(comm, data):
        raise UserError(
            f"{data.path}: has no digests of its images to check them by; make the file anew with "
            "'python -m mpicnn.data prepare'"
        )
    count = sum(map(len, data.splits.values()))
    return f"{data.path}: all {count} images are as they were prepared, digest {data.digest}"


def opener(settings: Prepared) -> Opener:
    """Return what opens the source that the settings name."""
    source = Path(settings.source)
    if isinstance(settings, IdxSettings):
        names = tuple(filter(None, settings.classes.split(","))) or None
        return lambda _: open_idx(source, names)
    if isinstance(settings, FolderSettings):
        decoding = Decoding(settings.size or None, settings.gray)
        division = Division(settings.splits, settings.test_fraction or None, settings.seed)
        return partial(open_folder, source, decoding, division)
    version = CIFAR10 if isinstance(settings, Cifar10Settings) else CIFAR100
    return lambda _: open_cifar(source, version)


def info(path: str | Path) -> str:
    """Return what the image file at `path` holds, as text."""
    with open_dataset(path) as data:
        splits = data.splits.values()
        counts = [class_counts(split.labels, len(data.classes)) for split in splits]
        size = os.path.getsize(data.path)
        c, h, w = data.shape
        lines = [
            f"file    {data.path}",
            f"size    {size / 1e6:.1f} MB ({size} bytes)",
            f"images  {c} x {h} x {w} (channels x height x width)",
            f"mean    {' '.join(f'{v:.4f}' for v in data.mean)}",
            f"std     {' '.join(f'{v:.4f}' for v in data.std)}",
            "",
        ]
        columns = [max(8, len(name)) for name in data.splits]
        table = [
            ("label", *data.splits, "class"),
            *zip(range(len(data.classes)), *counts, data.classes, strict=True),
            ("all", *(each.sum() for each in counts), ""),
        ]
        for label, *numbers, name in table:
            cells = map("{:>{}}".format, numbers, columns)
            lines.append("  ".join((f"{label:>5}", *cells, name)).rstrip())
        return "\n".join(lines)
