"""The checkpoints of a run: save one, load the newest that is whole, keep the last few."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from mpicnn.checkpoint.blocks import Tensor, gather
from mpicnn.checkpoint.file import compare, fill, make_image, verify
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree, from_root

if TYPE_CHECKING:
    from mpi4py import MPI

BEST = "best.h5"

_FILE = re.compile(r"step-(\d{8,})\.h5")
_TENSOR = re.compile(r"(?!meta/)[^/]+/[^/]+")


class Checkpoints:
    """Keep the last `keep` checkpoints of one run in `directory`, one file per saved step.

    Beside them there may be the best, in a file of its own that is not counted.
    `warn` gets a line for every damaged file that was passed over, on rank 0.
    """

    def __init__(
        self, directory: Path, keep: int, warn: Callable[[str], None] = warnings.warn
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least 1 checkpoint must be kept, got {keep}")
        self.directory = directory
        self.keep = keep
        self.warn = warn

    @property
    def best(self) -> Path:
        """Return the file of the best checkpoint, whether or not there is one."""
        return self.directory / BEST

    def paths(self) -> list[Path]:
        """Return the files of steps here, the latest first, without looking inside."""
        found = (p for p in self.directory.glob("step-*.h5") if _FILE.fullmatch(p.name))
        return sorted(found, key=_step, reverse=True)

    def newest(self) -> Path | None:
        """Return the latest file that is whole, or None where there is no file at all.

        Reads every byte of it. Raises UserError where there are files and none is whole.
        """
        damaged = []
        for path in self.paths():
            try:
                verify(path)
            except UserError as e:
                damaged.append(str(e))
                continue
            for line in damaged:
                self.warn(f"{line}; passed over for {path.name}")
            return path
        if damaged:
            raise UserError("no checkpoint can be used: " + "; ".join(damaged))
        return None

    def find(self, which: str) -> Path | None:
        """Return the file that `which` names, None where there is no file at all.

        It is "best", "last" (see `newest`), the number of a step, or "auto": the best, where there
        is one, is whole, and else the last. Raises UserError for one that is missing or not whole.
        """
        if which == "last" or (which == "auto" and not self.best.exists()):
            return self.newest()
        path = self.best if which in ("auto", "best") else self.directory / _name(int(which))
        if not path.exists():
            there = [str(_step(each)) for each in reversed(self.paths())]
            there += ["best"] * self.best.exists()
            raise UserError(
                f"{path}: no such checkpoint; there is {', '.join(there) or 'none'} in this run"
            )
        try:
            verify(path)
        except UserError as e:
            if which != "auto":
                raise
            self.warn(f"{e}; passed over for the last checkpoint")
            return self.newest()
        return path

    def save(
        self,
        comm: MPI.Intracomm,
        tensors: dict[str, Tensor],
        meta: dict[str, Any],
        best: bool = False,
    ) -> Path:
        """Write all tensors and `meta` as the checkpoint of step `meta["step"]`; return its path.

        Or as the `best` one, in place of the one before it.
        To be called by all ranks of `comm`. Tensors are called "section/name". `meta` is what JSON
        can hold; rank 0's is written. A new file takes its name only after it was read back whole;
        then files beyond the last `keep` go. Files of later steps stay.

        Rank 0 needs memory for the file's image plus its largest tensor; other ranks for a copy
        of their largest block. Raises UserError on all ranks where the file cannot be written
        (all earlier ones are as they were), ValueError where the blocks do not make up a tensor.
        """
        path = self.best if best else self.directory / _name(meta["step"])
        for name in tensors:
            if not _TENSOR.fullmatch(name):
                raise ValueError(f"a tensor is called section/name, got {name!r}")
        wholes = gather(comm, tensors)
        from_root(comm, self._prepare, path)
        if comm.rank == 0:
            agree(comm, lambda: _put(path, make_image(wholes, meta)))
            if not best:
                self._prune(path)
        else:
            agree(comm, lambda: deque(wholes, maxlen=0))
        return path

    def load(
        self, comm: MPI.Intracomm, tensors: dict[str, Tensor], path: Path | None = None
    ) -> dict[str, Any]:
        """Fill the tensors' arrays in place and return the meta data.

        To be called by all ranks of `comm`. Takes the newest whole file, or `path`. Rank 0 checks
        every digest, then each rank reads its own blocks. Raises UserError on all ranks where no
        file is whole, or where the file is of another network or number type.
        """
        found: dict[str, Any] = json.loads(from_root(comm, self._choose, path, tensors))
        agree(comm, fill, Path(found["path"]), found["digest"], tensors)
        loaded: dict[str, Any] = found["meta"]
        return loaded

    def _choose(self, path: Path | None, tensors: dict[str, Tensor]) -> str:
        if path is not None:
            verify(path)
        else:
            path = self.newest()
        if path is None:
            raise UserError(f"{self.directory}: no checkpoint here; expected files step-*.h5")
        digest, meta = compare(path, {n: (t.shape, t.dtype) for n, t in tensors.items()})
        if _FILE.fullmatch(path.name) and meta["step"] != _step(path):
            raise UserError(
                f"{path}: it is of step {short(meta['step'])}; expected the one that its name says"
            )
        return json.dumps({"path": os.fspath(path), "digest": digest, "meta": meta})

    def _prepare(self, path: Path) -> None:
        with _writing(path):
            self.directory.mkdir(parents=True, exist_ok=True)
            for pattern in ("step-*.h5", BEST):
                for stale in self.directory.glob(_unfinished(pattern)):
                    stale.unlink()

    def _prune(self, latest: Path) -> None:
        older = [path for path in self.paths() if _step(path) <= _step(latest)]
        for path in older[self.keep :]:
            try:
                path.unlink()
            except OSError as e:
                self.warn(f"{path}: cannot remove the old checkpoint: {e.strerror}")


def _put(path: Path, image: io.BytesIO) -> None:
    """Make `path` a file of these bytes, leaving no trace where that fails."""
    unfinished = path.with_name(_unfinished(path.name))
    with _writing(path):
        try:
            with open(unfinished, "xb") as file:
                file.write(image.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            image.close()
            verify(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(
            f"{path}: cannot write the checkpoint: {e.strerror or e}; earlier ones are as they "
            "were; make room, or choose a directory that can be written"
        ) from e


def _unfinished(name: str) -> str:
    return f".{name}.part"


def _name(step: int) -> str:
    return f"step-{step:08d}.h5"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
