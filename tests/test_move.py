"""Every entry of the table of moves: what it does, its adjoint, and its bytes."""

import itertools
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import run_ranks

from mpicnn.comm.mesh import Group
from mpicnn.comm.pending import ProgressEngine
from mpicnn.comm.redistribution import redistribute
from mpicnn.division.move import Move
from mpicnn.division.placement import (
    Partial,
    Replicated,
    Split,
    box_shape,
    on_first,
    slices,
    weighted_bounds,
)
from mpicnn.ops import numpy

SHAPE = (7, 5, 3)
WEIGHTS = {1: [(1,)], 2: [(1, 1), (3, 1), (0, 1)], 3: [(1, 2, 0), (2, 0, 5)], 4: [(1, 1, 1, 1)]}


def placements(ranks):
    splits = [
        Split(dim, weighted_bounds(SHAPE[dim], weights))
        for dim in (0, 1)
        for weights in WEIGHTS[ranks]
    ]
    return [Replicated(), Partial(), Split(0, on_first(SHAPE[0], ranks)), *splits]


def cases():
    return [
        pytest.param(ranks, src, dst, id=f"{ranks}-{name(src)}-{name(dst)}")
        for ranks in (1, 2, 3, 4)
        for src, dst in itertools.product(placements(ranks), repeat=2)
    ]


def name(placement):
    if isinstance(placement, Split):
        return f"S{placement.dim}{placement.bounds}".replace(" ", "")
    return type(placement).__name__


def scatter(whole, placement, ranks, rng):
    """Lay a tensor out by hand: slices, copies, or random summands."""
    if isinstance(placement, Partial):
        parts = [rng.standard_normal(whole.shape) for _ in range(ranks - 1)]
        return [*parts, whole - sum(parts, np.zeros_like(whole))]
    origin = Replicated().box(whole.shape, 0)
    return [whole[slices(placement.box(whole.shape, r), origin)] for r in range(ranks)]


def assemble(parts, placement, shape):
    if isinstance(placement, Partial):
        return sum(parts)
    if isinstance(placement, Replicated):
        return parts[0]
    whole = np.full(shape, np.nan)
    origin = Replicated().box(shape, 0)
    for r, part in enumerate(parts):
        whole[slices(placement.box(shape, r), origin)] = part
    return whole


def moved(move, parts):
    results = run_ranks(
        len(parts), lambda c: redistribute(Group(c), move, parts[c.Get_rank()], SHAPE).wait()
    )
    return [np.array(r) for r in results]


@pytest.mark.parametrize("ranks, src, dst", cases())
def test_move_keeps_the_tensor(ranks, src, dst):
    rng = np.random.default_rng(1)
    whole = rng.standard_normal(SHAPE)
    after = moved(Move(src, dst), scatter(whole, src, ranks, rng))
    assert [a.shape for a in after] == [box_shape(dst.box(SHAPE, r)) for r in range(ranks)]
    # Sums of at most four numbers of order one: a few units of the last place.
    np.testing.assert_allclose(assemble(after, dst, SHAPE), whole, rtol=0, atol=1e-14)
    if isinstance(dst, Replicated):
        for part in after:
            np.testing.assert_array_equal(part, after[0])


@pytest.mark.parametrize("ranks, src, dst", cases())
def test_adjoint_is_the_transpose(ranks, src, dst):
    rng = np.random.default_rng(2)
    move = Move(src, dst)
    x = [rng.standard_normal(box_shape(src.box(SHAPE, r))) for r in range(ranks)]
    y = [rng.standard_normal(box_shape(dst.box(SHAPE, r))) for r in range(ranks)]
    if isinstance(src, Replicated):
        x = [x[0]] * ranks
    if isinstance(dst.dual, Replicated):
        y = [y[0]] * ranks
    forward = sum(np.vdot(a, b) for a, b in zip(moved(move, x), y, strict=True))
    backward = sum(np.vdot(a, b) for a, b in zip(x, moved(move.adjoint, y), strict=True))
    # Summed over the ranks, a replicated tensor meets a partial gradient (or the reverse) once.
    assert forward == pytest.approx(backward, abs=1e-11)


@pytest.mark.parametrize("ranks, src, dst", cases())
def test_bytes_predicted_are_bytes_sent(ranks, src, dst):
    move = Move(src, dst)

    def main(comm):
        group = Group(comm)
        x = np.ones(box_shape(src.box(SHAPE, group.rank)), np.float32)
        redistribute(group, move, x, SHAPE).wait()
        return group.sent

    sent = run_ranks(ranks, main)
    expected = (4 * move.items_sent(SHAPE, ranks)).tolist()
    assert sent == pytest.approx(expected)


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        (Split(0, (0, 3, 7)), Replicated()),
        (Split(0, (0, 3, 7)), Split(1, (0, 2, 5))),
        (Partial(), Split(0, (0, 3, 7))),
        (Partial(), Split(1, (0, 2, 5))),
        (Partial(), Replicated()),
    ],
    ids=lambda placement: name(placement),
)
def test_memory_under_way_is_kept_until_the_end(src, dst):
    """MPI libraries read it late, mpi4py does not always keep it, and its owner may be gone."""
    ended, sent = [], []

    def begin(send, *_):
        sent.append(weakref.ref(send if send.base is None else send.base))
        return SimpleNamespace(Test=lambda: bool(ended))

    group = SimpleNamespace(
        size=2, rank=0, xp=np, flat=numpy.flat, engine=ProgressEngine(),
        allgather=begin, alltoall=begin, reduce_scatter=begin, allreduce=begin,
    )  # fmt: skip
    # Every other column, so that what is sent is a copy that nobody else has.
    shape = box_shape(src.box(SHAPE, 0))
    x = np.zeros((*shape[:-1], 2 * shape[-1]))[..., ::2]
    pending = redistribute(group, Move(src, dst), x, SHAPE)
    del x
    assert not pending.poll()
    assert sent[0]() is not None
    ended.append(True)
    assert pending.poll()
    assert isinstance(dst, Replicated) or sent[0]() is None


@pytest.mark.mpi(min_size=2)
def test_sums_of_memory_that_is_used_again(comm):
    """Large enough that MPI reads what is sent after the call that begins the sum."""
    rows = 300_000
    bounds = weighted_bounds(rows, (1,) * comm.size)
    move = Move(Partial(), Split(0, bounds))
    for turn in range(5):
        # A rank that comes late finds what the others sent long ago.
        if comm.rank == turn % comm.size:
            time.sleep(0.05)
        x = np.full((rows, 4), 1.0, np.float32)
        pending = redistribute(Group(comm), move, x, (rows, 4))
        del x
        others = [np.full((rows, 4), np.nan, np.float32) for _ in range(3)]
        assert (pending.wait() == comm.size).all()
        del others
