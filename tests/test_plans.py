"""Every plan computes the same training as one rank, by ranks that are threads and by MPI's."""

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import CASES, GRIDS, SHARES, compare, make, network, train

from mpicnn.division.presets import PRESETS, preset


def one_rank(dtype):
    plan = preset("data", network(), (1,))
    return run_ranks(1, lambda comm: train(comm, plan, dtype))


@pytest.fixture(scope="module")
def reference():
    return one_rank(np.float64)


@pytest.mark.parametrize("name, sync, scheme, grid, shares", CASES + GRIDS)
def test_plan_trains_as_one_rank(name, sync, scheme, grid, shares, reference):
    plan = make(name, grid, shares, scheme, sync)
    results = run_ranks(plan.ranks, lambda comm: train(comm, plan))
    # Sums in another order: a few hundred roundings of 1e-16, over some steps.
    compare(results, reference, 1e-12)
    for *_, sent, predicted in results:
        assert sent == pytest.approx(predicted)


@pytest.mark.parametrize("shares", [0, 1])
@pytest.mark.parametrize("name, scheme", [*((p, "a") for p in PRESETS), ("owt", "b"), ("owt", "c")])
def test_plan_trains_as_one_rank_over_mpi(subcomms, name, scheme, shares, reference):
    size = subcomms.Get_size()
    weights = SHARES[size][min(shares, len(SHARES[size]) - 1)]
    plan = make(name, (size,), (weights,), scheme, ("allreduce", "sharded")[shares])
    results = subcomms.allgather(train(subcomms, plan))
    compare(results, reference, 1e-12)
    *_, sent, predicted = results[subcomms.Get_rank()]
    assert sent == pytest.approx(predicted)


@pytest.mark.parametrize("scheme", ["a", "b", "c"])
def test_a_grid_of_ranks_trains_as_one_rank_over_mpi(subcomm, scheme, reference):
    comm = subcomm(4)
    plan = make("owt", (2, 2), ((2, 1), (1, 3)), scheme, "sharded")
    compare(comm.allgather(train(comm, plan)), reference, 1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_single_precision_stays_close(name):
    plan = make(name, (3,), ((1, 0, 3),), "a", "allreduce")
    results = run_ranks(3, lambda comm: train(comm, plan, np.float32))
    # Roundings of 6e-8, a few hundred to a sum, grow over some steps of momentum.
    compare(results, one_rank(np.float32), 1e-4)


@pytest.mark.parametrize("name, scheme", [("data", "a"), ("owt", "b"), ("owt", "c")])
def test_who_makes_progress_changes_no_number(subcomm, name, scheme):
    comm = subcomm(3)
    plan = make(name, (3,), ((1, 2, 1),), scheme, "sharded")
    runs = [train(comm, plan, progress=progress) for progress in ("none", "poll", "thread")]
    for losses, parts, *_ in runs[1:]:
        assert losses == runs[0][0]
        for key, (*_, part) in parts.items():
            np.testing.assert_array_equal(part, runs[0][1][key][2], err_msg=key)
