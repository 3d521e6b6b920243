"""A small state with every kind of array in it, and ranks that divide it as a test wants."""

# ruff: noqa: N802  (the names are mpi4py's)

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
from oracle import run_ranks

from mpicnn.checkpoint import Tensor
from mpicnn.division.placement import weighted_bounds
from mpicnn.errors import UserError


def floats(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


# Which dimension is divided; None: every rank has all of it.
DIVIDED = {
    "buffers/bn1.mean": None,
    "buffers/bn1.steps": None,
    "params/conv1.b": 0,
    "params/conv1.w": 0,
    "params/fc6.w": 1,
    "params/none.w": 0,
    "velocity/fc6.w": 0,
}
WHOLE = {
    "buffers/bn1.mean": np.array([np.nan, -0.0, 1e-45], np.float32),
    "buffers/bn1.steps": np.array(2**40 + 1),
    "params/conv1.b": floats(7),
    "params/conv1.w": floats(7, 3, 2, 5),
    "params/fc6.w": floats(5, 11, dtype=np.float64),
    "params/none.w": floats(0, 3),
    "velocity/fc6.w": floats(5, 11),
}
META = {"step": 12, "loss": [0.25, 1e-300], "plan": 'name = "Größe"\n', "none": None}


def tensors_of(rank: int, weights: tuple[int, ...], fill_in: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, whole in WHOLE.items():
        block = [slice(0, n) for n in whole.shape]
        if (dim := DIVIDED[name]) is not None:
            bounds = weighted_bounds(whole.shape[dim], weights)
            block[dim] = slice(bounds[rank], bounds[rank + 1])
        part = whole[tuple(block)]
        array = part.copy() if fill_in else np.full(part.shape, 99, part.dtype)
        tensors[name] = Tensor(whole.shape, whole.dtype, tuple(block), array)
    return tensors


def assert_filled(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # As bytes: a NaN and the sign of a zero must come back too.
        assert tensor.array.tobytes() == WHOLE[name][tensor.block].tobytes(), name


def complaint(call: Any, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


class Threaded:
    """Add what checkpoints use to the communicator between threads: byte buffers, messages."""

    def __init__(self, comm: Any, boxes: list[queue.Queue[Any]]) -> None:
        self._comm = comm
        self._boxes = boxes
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def Iallgather(self, send: Any, recv: Any) -> Any:
        if isinstance(send, np.ndarray):
            return self._comm.Iallgather(send, recv)
        whole = np.frombuffer(recv[0], np.uint8).reshape(self.size, -1)
        return self._comm.Iallgather(np.frombuffer(send[0], np.uint8), whole)

    def Ibcast(self, buffer: Any, root: int) -> Any:
        return self._comm.Ibcast(np.frombuffer(buffer[0], np.uint8), root)

    def Isend(self, buffer: Any, dest: int, tag: int) -> Any:
        assert dest == 0
        assert buffer.size > 0
        self._boxes[self.rank].put(buffer.copy())
        return DONE

    def Irecv(self, buffer: Any, source: int, tag: int) -> Any:
        sent = self._boxes[source].get(timeout=20)
        assert (sent.shape, sent.dtype) == (buffer.shape, buffer.dtype)
        buffer[...] = sent
        return DONE


class Done:
    def Test(self) -> bool:
        return True


DONE = Done()


def on_ranks(size: int, main: Any) -> list[Any]:
    """Run `main(comm)` as that many ranks; look that every block sent was asked for."""
    boxes: list[queue.Queue[Any]] = [queue.Queue() for _ in range(size)]
    results = run_ranks(size, lambda comm: main(Threaded(comm, boxes)))
    assert all(box.empty() for box in boxes)
    return results
