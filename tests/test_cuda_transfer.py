"""Copies between host and GPU: what threads, failures and reused memory may not spoil."""

import threading

import numpy as np
import pytest
from mpi4py import MPI

cuda = pytest.importorskip("mpicnn.ops.cuda", reason="CuPy is not installed", exc_type=ImportError)
transfer = pytest.importorskip("mpicnn.ops._cuda_transfer", reason="CuPy is not installed")
wire_gpu = pytest.importorskip("mpicnn.comm.wire_gpu", reason="CuPy is not installed")
cupy = cuda.xp
runtime = cupy.cuda.runtime


def batch(size, value):
    return np.full((2, 1, size, size), value, np.uint8)


def in_thread(call):
    """Return what a fresh thread returns."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_larger_batches_wait_until_the_smaller_ones_were_used():
    feed = transfer.Feed()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        small = [feed.take(feed.put(batch(8, i), lambda x: x + 0)) for i in range(transfer.SLOTS)]
        large = [feed.put(batch(16, i), lambda x: x + 0) for i in range(transfer.SLOTS)]
        for slot, *_ in large:
            slot.copied.synchronize()  # copies may be far ahead of what computes
        for made, size in ((small, 8), ([feed.take(one) for one in large], 16)):
            for i, x in enumerate(made):
                np.testing.assert_array_equal(x.get(), batch(size, i))


def test_who_puts_a_batch_goes_on_with_its_own_stream():
    stream = cupy.cuda.Stream(non_blocking=True).use()
    cuda.Feed().put(batch(4, 1), lambda x: x)
    assert cupy.cuda.get_current_stream() == stream


def test_a_failure_of_the_gpu_is_raised_by_who_asks(monkeypatch):
    event = cupy.cuda.Event(disable_timing=True)
    event.record()
    cuda.synchronize()
    assert transfer.reached(event)
    monkeypatch.setattr(runtime, "eventQuery", lambda ptr: 600)
    assert not transfer.reached(event)
    monkeypatch.setattr(runtime, "eventQuery", lambda ptr: 719)
    with pytest.raises(runtime.CUDARuntimeError):
        transfer.reached(event)


def test_a_failure_of_the_gpu_ends_a_collective(monkeypatch):
    wire = wire_gpu.StagedWire(MPI.COMM_SELF, wire_gpu.Line())
    monkeypatch.setattr(runtime, "eventQuery", lambda ptr: 719)
    with pytest.raises(runtime.CUDARuntimeError):
        wire.allreduce(cupy.ones(3, np.float32)).Test()


@pytest.fixture
def second(monkeypatch):
    """Compute on the second of two GPUs."""
    monkeypatch.setenv("STANDIN_GPUS", "2")
    if runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    cupy.cuda.Device(1).use()


def test_threads_that_help_stay_on_the_ranks_gpu(second):
    """To go back to GPU 0 would take memory there, which belongs to another rank."""
    feed, line = transfer.Feed(), wire_gpu.Line()
    request = wire_gpu.StagedWire(MPI.COMM_SELF, line).allreduce(cupy.ones(3, np.float32))

    def put():
        feed.put(batch(4, 1), lambda x: x)
        return runtime.getDevice()

    def advance():
        line.advance()
        return runtime.getDevice()

    def test():
        request.Test()
        return runtime.getDevice()

    assert [in_thread(call) for call in (put, advance, test)] == [1, 1, 1]
