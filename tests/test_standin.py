"""The stand-in's arrays, memory and streams are as strict, and as late, as a GPU's."""

import numpy as np
import pytest

hostgpu = pytest.importorskip("hostgpu", reason="there is a real GPU")

import cupy  # noqa: E402
from cupy.cuda import Event, Stream, runtime  # noqa: E402
from hostgpu import memory  # noqa: E402
from hostgpu.counts import counts  # noqa: E402


def device_array(*shape, dtype=np.float32):
    return cupy.asarray(np.arange(np.prod(shape), dtype=dtype).reshape(shape))


@pytest.fixture
def stream():
    """A stream that does not wait for the null stream, current in the test."""
    with Stream(non_blocking=True) as made:
        yield made


def test_rows_of_an_array_of_one_row():
    rows = cupy.asarray(np.zeros(3, np.int64))
    np.testing.assert_array_equal(cupy.asarray(np.arange(4.0)[None])[rows].get()[2], np.arange(4.0))


def test_host_arrays_do_not_mix():
    a, host = device_array(2, 3), np.ones((2, 3), np.float32)
    for mix in (
        lambda: a + host,
        lambda: host + a,
        lambda: np.add(a, host),
        lambda: np.asarray(a),
        lambda: cupy.maximum(a, host),
        lambda: cupy.concatenate([a, host]),
        lambda: a.__setitem__(slice(0, 1), host[:1]),
        lambda: a.__iadd__(host),
        lambda: np.add(host, 1, out=a),
    ):
        with pytest.raises(TypeError):
            mix()


def test_scalars_and_functions_of_numpy_are_taken():
    a = device_array(2, 3)
    for result in (a * 2, 2 * a, a * np.float32(2), np.multiply(a, 2), np.add(a, a)):
        assert isinstance(result, cupy.ndarray) and result.dtype == np.float32
        np.testing.assert_array_equal(result.get(), [[0, 2, 4], [6, 8, 10]])
    assert isinstance(np.concatenate([a, a]), cupy.ndarray)
    assert isinstance(np.zeros_like(a), cupy.ndarray)
    with pytest.raises(TypeError):
        np.busday_count(a, a)  # CuPy has no such function
    for unknown in ({"initial": 0}, {"where": True}):
        with pytest.raises(TypeError, match="unexpected"):
            np.max(a, **unknown)


def test_reductions_stay_on_the_device():
    total = device_array(2, 3).sum()
    assert isinstance(total, cupy.ndarray) and total.shape == ()
    assert float(total) == 15 and total.item() == 15 and int(total) == 15
    np.testing.assert_array_equal(device_array(2, 3).max(axis=1).get(), [2, 5])


def test_views_share_memory_and_copies_do_not():
    a = device_array(3, 4)
    a[1:, ::2] = -1
    np.testing.assert_array_equal(a.get(), [[0, 1, 2, 3], [-1, 5, -1, 7], [-1, 9, -1, 11]])
    assert a[1:].data.ptr == a.data.ptr + 16 and a[1].base is a
    assert a.T.strides == (4, 16) and a.T.flags.f_contiguous
    assert cupy.shares_memory(a.reshape(2, 6), a)
    assert not cupy.shares_memory(a.T.reshape(-1), a)
    assert a[0, 0].shape == () and len(list(a)) == 3


def test_results_are_in_c_order_and_copies_keep_theirs():
    a = device_array(2, 3, 4, 5).transpose(0, 3, 1, 2)
    assert (a + 1).flags.c_contiguous  # unlike NumPy's
    assert a.copy().flags.c_contiguous
    assert a.astype(np.float64).strides == (480, 8, 160, 40)
    assert cupy.empty_like(a).strides == a.strides
    assert cupy.asarray(a.get().transpose(0, 2, 3, 1)).flags.c_contiguous


def test_indices_and_masks():
    a = device_array(4, 3)
    rows = np.array([2, 0])
    np.testing.assert_array_equal(a[rows, np.array([1, 1])].get(), [7, 1])
    np.testing.assert_array_equal(a[a > 8].get(), [9, 10, 11])
    a[cupy.asarray(rows)] = 0
    np.testing.assert_array_equal(a.get()[[0, 2]], 0)


def test_empty_arrays_have_no_address():
    a = cupy.empty((0, 3), np.float32)
    assert a.data.ptr == 0 and a.nbytes == 0
    assert (a + 1).shape == (0, 3) and float(a.sum()) == 0


def test_fresh_memory_is_nan():
    assert np.isnan(cupy.empty(5, np.float32).get()).all()


def test_set_and_get_check_what_they_are_given():
    a = device_array(2, 3)
    with pytest.raises(TypeError):
        a.set(np.zeros((2, 3)))
    with pytest.raises(ValueError):
        a.set(np.zeros((3, 2), np.float32))
    with pytest.raises(RuntimeError):
        a[:, ::2].set(np.zeros((2, 2), np.float32))
    out = np.empty((2, 3), np.float32)
    assert a.get(out=out) is out and out[1, 2] == 5


def test_nothing_happens_before_somebody_waits(stream):
    host = pinned(4)
    a = cupy.full(4, 7, np.float32)
    a.get(out=host, blocking=False)
    assert np.isnan(host).all()
    stream.synchronize()
    np.testing.assert_array_equal(host, 7)


def pinned(count):
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(4 * count), np.float32, count)


def test_pinned_memory_is_read_when_the_stream_gets_there(stream):
    late, at_once = pinned(2), np.zeros(2, np.float32)
    late[:] = 0
    a, b = cupy.empty(2, np.float32), cupy.empty(2, np.float32)
    a.set(late)
    b.set(at_once)
    late[:] = at_once[:] = 1  # too early for a, no matter for b
    np.testing.assert_array_equal(a.get(), 1)
    np.testing.assert_array_equal(b.get(), 0)


def test_an_event_orders_two_streams():
    def product(ordered):
        producer, consumer = Stream(non_blocking=True), Stream(non_blocking=True)
        with producer:
            a = cupy.full(3, 2, np.float32)
            if ordered:
                consumer.wait_event(producer.record())
        with consumer:
            return (a * 3).get()

    np.testing.assert_array_equal(product(ordered=True), 6)
    assert np.isnan(product(ordered=False)).all()


def test_the_null_stream_waits_for_blocking_streams_alone():
    for non_blocking in (False, True):
        with Stream(non_blocking=non_blocking):
            a = cupy.full(3, 2, np.float32)
        assert np.isnan(a.get()).all() == non_blocking


def test_what_with_restores_is_not_what_use_made_current():
    """As CuPy: a `with` ends with the stream that the one around it entered, or the null stream."""
    used, entered, inner = (Stream(non_blocking=True) for _ in range(3))
    current = cupy.cuda.get_current_stream
    used.use()
    with entered:
        assert current() == entered
        used.use()
        with inner:
            assert current() == inner
        assert current() == entered
        used.use()
        assert current() == used
    assert current() == Stream.null


def test_an_event_is_done_in_the_end(stream):
    event = Event(disable_timing=True)
    assert event.done
    cupy.zeros(3)
    event.record()
    assert [event.done for _ in range(4)][0] is False
    while not event.done:
        pass
    assert stream.done


def test_elapsed_time_needs_both_events(stream):
    first, last = Event(), Event()
    first.record()
    last.record()
    with pytest.raises(runtime.CUDARuntimeError):
        cupy.cuda.get_elapsed_time(first, last)
    last.synchronize()
    assert cupy.cuda.get_elapsed_time(first, last) >= 0


def test_memory_freed_under_another_stream_is_lost(stream):
    other = Stream(non_blocking=True)
    a = cupy.full(3, 2, np.float32)
    other.wait_event(stream.record())
    with other:
        b = a * 1
    del a
    stream.synchronize()  # as if the next array of the stream had got its memory
    with other:
        assert np.isnan(b.get()).all()


def test_the_pool_counts_and_limits():
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    a = cupy.empty(1000, np.float32)
    assert pool.used_bytes() - before == 4096  # in units of 512 bytes
    del a
    assert pool.used_bytes() == before
    pool.set_limit(size=before + 512)
    try:
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(1000)
    finally:
        pool.set_limit(size=0)


def test_devices_are_as_many_as_asked_for(monkeypatch):
    monkeypatch.delenv("STANDIN_GPUS", raising=False)
    assert runtime.getDeviceCount() == 0
    monkeypatch.setenv("STANDIN_GPUS", "2")
    assert runtime.getDeviceCount() == 2
    uuids = {bytes(runtime.getDeviceProperties(i)["uuid"]) for i in range(2)}
    assert len(uuids) == 2
    with cupy.cuda.Device(1):
        stream = Stream(non_blocking=True)
        assert cupy.zeros(1).device.id == 1
    with pytest.raises(RuntimeError):
        stream.use()
    with pytest.raises(runtime.CUDARuntimeError):
        cupy.cuda.Device(2).use()


def test_addresses_are_checked():
    a = device_array(4)
    with pytest.raises(memory.AddressError):
        runtime.memcpyAsync(a.data.ptr, a.data.ptr, 64, runtime.memcpyDeviceToDevice, 0)
    address = a.data.ptr
    del a
    cupy.cuda.Device().synchronize()  # queued work keeps the memory that it uses
    with pytest.raises(memory.AddressError):
        memory.find(address)


def test_what_a_device_is_given_is_counted(stream):
    a, b = device_array(2, 3), device_array(2, 3)
    counts.clear()
    (a + b)[0] = a[1]
    Event().record()
    assert counts.launches == {"add": 1, "copy": 1}
    assert counts.bytes == 3 * a.nbytes + 2 * a.nbytes // 2
    assert (counts.events, counts.views) == (1, 1)
