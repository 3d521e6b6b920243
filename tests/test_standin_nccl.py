"""The stand-in's NCCL moves arrays between ranks, and refuses what NCCL refuses or hangs on."""

import threading

import numpy as np
import pytest

hostgpu = pytest.importorskip("hostgpu", reason="there is a real GPU")

import cupy  # noqa: E402
from cupy.cuda import nccl  # noqa: E402


def ranks(monkeypatch, count, work, devices=None):
    """Run work(communicator, stream, rank) on threads, each with a device; return the results."""
    monkeypatch.setenv("STANDIN_GPUS", str(count))
    name, results = nccl.get_unique_id(), {}

    def run(rank):
        try:
            cupy.cuda.Device(devices[rank] if devices else rank).use()
            cupy.cuda.Stream(non_blocking=True).use()
            stream = cupy.cuda.get_current_stream()
            results[rank] = work(nccl.NcclCommunicator(count, name, rank), stream, rank)
        except Exception as failure:
            results[rank] = failure

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


def test_nccl_collectives(monkeypatch):
    blocks = np.arange(18, dtype=np.float32).reshape(3, 6) ** 2

    def work(comm, stream, rank):
        a, out = cupy.asarray(blocks[rank]), cupy.empty(18, np.float32)
        send, recv = a.data.ptr, [out[i : i + 6].data.ptr for i in range(0, 18, 6)]
        kind, add = nccl.NCCL_FLOAT32, nccl.NCCL_SUM
        found = []
        for call in (
            lambda: comm.allReduce(send, recv[0], 6, kind, add, stream.ptr),
            lambda: comm.allGather(send, recv[0], 6, kind, stream.ptr),
            lambda: comm.reduceScatter(send, recv[0], 2, kind, add, stream.ptr),
            lambda: comm.broadcast(send, recv[0], 6, kind, 1, stream.ptr),
            lambda: comm.reduce(send, recv[0], 6, kind, add, 2, stream.ptr),
        ):
            out.fill(0)
            call()
            found.append(out.get())
        nccl.groupStart()
        comm.send(send, 6, kind, (rank + 1) % 3, stream.ptr)
        comm.recv(recv[0], 6, kind, (rank - 1) % 3, stream.ptr)
        nccl.groupEnd()
        return *found, out.get()

    total = blocks.sum(axis=0)
    for rank, found in enumerate(ranks(monkeypatch, 3, work)):
        wants = (
            total,
            blocks.reshape(-1),
            total[2 * rank : 2 * rank + 2],
            blocks[1],
            total if rank == 2 else np.zeros(6),
            blocks[rank - 1],
        )
        for got, want in zip(found, wants, strict=True):
            np.testing.assert_array_equal(got[: len(want)], want)


def test_nccl_refuses_what_does_not_fit(monkeypatch):
    for failure in ranks(monkeypatch, 2, lambda *_: None, devices=[0, 0]):
        assert isinstance(failure, nccl.NcclError) and "Duplicate GPU" in str(failure)

    def unlike(comm, stream, rank):
        a = cupy.zeros(4, np.float32)
        comm.allReduce(a.data.ptr, a.data.ptr, 3 + rank, nccl.NCCL_FLOAT32, 0, stream.ptr)
        stream.synchronize()

    for failure in ranks(monkeypatch, 2, unlike):
        assert isinstance(failure, nccl.NcclError) and "calls differ" in str(failure)


def test_nccl_goes_on_while_the_host_waits_for_something_else(monkeypatch):
    """A rank's part is done though its thread waits for what the other does afterwards."""
    released = threading.Event()

    def work(comm, stream, rank):
        a = cupy.full(4, rank + 1, np.float32)
        comm.allReduce(a.data.ptr, a.data.ptr, 4, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, stream.ptr)
        if rank == 0:
            assert released.wait(20)
        total = float(a[0])
        released.set()
        return total

    assert ranks(monkeypatch, 2, work) == [3, 3]
