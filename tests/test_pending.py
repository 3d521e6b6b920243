"""Who lets MPI make progress with what travels while layers compute."""

import time
from time import perf_counter

import mpi_jobs
import numpy as np
import pytest

from mpicnn.comm.mesh import Group
from mpicnn.comm.pending import ProgressEngine

PATIENCE_S = 20.0

# Far more than MPI sends without the receiver's help, so that it takes both ranks' progress.
LONG = 1 << 22


def begun(comm, progress):
    """Return what is under way, one pending sum of it, and the time when it was begun."""
    engine = ProgressEngine(progress)
    buffer = np.full(LONG, 1.0 + comm.Get_rank(), np.float32)
    request = Group(comm, engine).allreduce(buffer)
    return engine, engine.add(request, lambda: buffer), perf_counter()


def ended_within(pending, seconds):
    """Look, without a call of MPI, whether the end has been seen."""
    until = perf_counter() + seconds
    while pending.ended == pending.began and perf_counter() < until:
        time.sleep(1e-3)
    return pending.ended > pending.began


def test_a_thread_brings_a_collective_to_its_end(subcomm):
    comm = subcomm(2)
    _, pending, _ = begun(comm, "thread")
    assert ended_within(pending, PATIENCE_S)
    assert (pending.wait() == 3).all()


def test_without_a_thread_it_takes_a_poll(subcomm):
    comm = subcomm(2)
    engine, pending, _ = begun(comm, "poll")
    assert not ended_within(pending, 0.2)
    until = perf_counter() + PATIENCE_S
    while pending.ended == pending.began and perf_counter() < until:
        engine.poll()
    assert pending.ended > pending.began
    assert (pending.wait() == 3).all()


def test_without_progress_it_is_waited_for_at_once(subcomm):
    comm = subcomm(2)
    _, pending, later = begun(comm, "none")
    assert pending.began < pending.ended < later
    assert (pending.wait() == 3).all()


def test_threads_and_waits_do_not_meet_in_one_request(subcomm):
    """Many short collectives, waited for in another order while the thread tests them."""
    comm = subcomm(2)
    engine = ProgressEngine("thread")
    group = Group(comm, engine)
    for count in range(1, 200):
        sums = [np.full(count, float(i)) for i in range(5)]
        pending = [engine.add(group.allreduce(s), lambda s=s: s) for s in sums]
        for i in reversed(range(5)):
            np.testing.assert_array_equal(pending[i].wait(), np.full(count, 2.0 * i))


BROKEN = """
import time
from mpicnn.job.launch import launch

def main(comm):
    from mpicnn.comm.pending import ProgressEngine

    class Request:
        def Test(self):
            raise RuntimeError("no such request")

    if comm.rank == 1:
        ProgressEngine("thread").add(Request(), lambda: None)
    time.sleep(30)

launch(main)
"""


@pytest.mark.limit(40)
def test_an_error_in_the_thread_ends_the_job():
    job = mpi_jobs.run(2, "-c", BROKEN, seconds=25)
    assert job.code == 1
    assert "[rank 1]" in job.err and "no such request" in job.err
