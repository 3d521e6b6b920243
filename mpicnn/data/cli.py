"""The command line of `python -m mpicnn.data`: prepare image files, say what is in them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mpicnn.data.cifar import CIFAR10, CIFAR100, open_cifar
from mpicnn.data.file import open_dataset
from mpicnn.data.folder import DEFAULT_TEST_FRACTION, Decoding, open_folder
from mpicnn.data.idx import open_idx
from mpicnn.data.layout import SPLITS, class_counts
from mpicnn.data.prepare import prepare
from mpicnn.data.source import Source
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree

if TYPE_CHECKING:
    from mpi4py import MPI

DESCRIPTION = """\
Prepare image files, which training reads, and say what is in them.
Run under mpirun, `prepare` divides the reading and decoding over the ranks."""

KINDS = {
    "idx": "MNIST's format: a directory with train-images-idx3-ubyte, train-labels-idx1-ubyte,"
    " t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz",
    "cifar10": "the binary version of CIFAR-10, unpacked (data_batch_1.bin, …)",
    "cifar100": "the binary version of CIFAR-100, unpacked (train.bin, test.bin); fine labels",
    "folder": "image files in SOURCE/train/CLASS/ and SOURCE/test/CLASS/ (or val/CLASS/), or in"
    " SOURCE/CLASS/;"
    " classes are numbered in the order of their sorted names",
}


class Parser(argparse.ArgumentParser):
    """Raise what argparse would print and exit with; never take a shortened name for an option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def run(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Do what the command line says, on every rank; rank 0 alone prints.

    Raises UserError on every rank for whatever is wrong on one, and SystemExit after --help.
    """
    with contextlib.redirect_stdout(io.StringIO()) if comm.rank else contextlib.nullcontext():
        options = parser().parse_args(argv)
    if options.command == "prepare":
        prepare(
            comm,
            options.file,
            opener(options),
            per_class=options.per_class,
            gzip=options.gzip,
            overwrite=options.overwrite,
        )
    text = agree(comm, lambda: "" if comm.rank else info(options.file))
    if comm.rank == 0:
        print(text)


def opener(options: argparse.Namespace) -> Callable[[], Source]:
    """Return what opens the source that the command line names."""
    if options.kind == "idx":
        return functools.partial(open_idx, options.source, options.classes)
    if options.kind == "folder":
        decoding = Decoding(options.size, options.gray)
        return functools.partial(
            open_folder, options.source, decoding, options.test_fraction, options.seed
        )
    version = CIFAR10 if options.kind == "cifar10" else CIFAR100
    return functools.partial(open_cifar, options.source, version)


def info(path: str | Path) -> str:
    """Return what the image file at `path` holds, as text."""
    with open_dataset(path) as data:
        counts = [class_counts(data.split(split).labels, len(data.classes)) for split in SPLITS]
        size = os.path.getsize(data.path)
        c, h, w = data.shape
        lines = [
            f"file    {data.path}",
            f"size    {size / 1e6:.1f} MB ({size} bytes)",
            f"images  {c} x {h} x {w} (channels x height x width)",
            f"mean    {' '.join(f'{v:.4f}' for v in data.mean)}",
            f"std     {' '.join(f'{v:.4f}' for v in data.std)}",
            "",
            f"{'label':>5}  {'train':>8}  {'test':>8}  class",
        ]
        rows = zip(*counts, data.classes, strict=True)
        lines += [f"{k:5}  {a:8}  {b:8}  {name}" for k, (a, b, name) in enumerate(rows)]
        lines.append(f"{'all':>5}  {counts[0].sum():8}  {counts[1].sum():8}")
        return "\n".join(lines)


def parser() -> Parser:
    """Return the description of the command line."""
    top = Parser(
        prog="python -m mpicnn.data",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shown = commands.add_parser("info", help="say what an image file holds")
    shown.add_argument("file", metavar="FILE", help="image file, or 'embedded': the packaged one")
    made = commands.add_parser("prepare", help="make an image file")
    kinds = made.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in KINDS.items():
        one = kinds.add_parser(kind, help=text, description=f"Source: {text}.")
        one.add_argument("source", metavar="SOURCE", type=Path, help="directory to read")
        one.add_argument("file", metavar="OUT", type=Path, help="image file (HDF5) to write")
        if kind == "idx":
            one.add_argument("--classes", type=names, metavar="A,B,…", help="names of the classes")
        if kind == "folder":
            add_folder_options(one)
        one.add_argument(
            "--per-class",
            type=two_counts,
            metavar="TRAIN,TEST",
            help="take only the first TRAIN training and TEST test images of each class",
        )
        one.add_argument(
            "--gzip",
            type=int,
            choices=range(10),
            metavar="LEVEL",
            help="compress small sets, level 0 to 9; each rank unpacks them into its memory"
            " (default: not compressed)",
        )
        one.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return top


def add_folder_options(one: Parser) -> None:
    """Add what says how files become images, and which of them are for testing."""
    one.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="cut out the centred square and scale it to PIXELS x PIXELS (bilinear, averaging"
        " when made smaller), which is scaling the shorter side to PIXELS and keeping the centred"
        " square; without it all images must be of one size",
    )
    one.add_argument("--gray", action="store_true", help="one channel instead of red, green, blue")
    one.add_argument(
        "--test-fraction",
        type=fraction,
        metavar="F",
        help="part of each class drawn for testing where SOURCE has no train/ and test/ (or val/)"
        f" (default: {DEFAULT_TEST_FRACTION})",
    )
    one.add_argument("--seed", type=int, default=0, help="of that draw (default: %(default)s)")


def names(text: str) -> tuple[str, ...]:
    """Return names separated by commas."""
    found = tuple(text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("expected names separated by commas, none empty or twice")
    return found


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, not {text!r}")
    return int(text)


def two_counts(text: str) -> tuple[int, int]:
    """Return two whole numbers above 0, separated by a comma."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected TRAIN,TEST, not {text!r}")
    return positive(parts[0]), positive(parts[1])


def fraction(text: str) -> float:
    """Return a number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text!r}")
    return value
