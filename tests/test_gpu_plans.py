"""Ranks on GPUs, or on GPUs and CPUs together, train as one rank on a CPU does.

Every rank is a thread with a stream of its own. Where there is no GPU, a stand-in takes its place
(`standin/`): it computes what the kernels say, in their order, but knows no speed.
"""

import gc

import numpy as np
import pytest
from mpi4py import MPI
from oracle import run_ranks
from plan_cases import BATCH, CPU, SHARES, batches, compare, make, network, train

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.transport import choose_wires, cuda_aware
from mpicnn.devices.choice import Device, gpu
from mpicnn.division.planfile import load_plan
from mpicnn.division.presets import PRESETS, preset
from mpicnn.job.environment import environment
from mpicnn.models import freeze
from mpicnn.ops import _cuda_arrays
from mpicnn.run.distributed import DistributedModel
from mpicnn.settings.plan_groups import PlanChoice
from mpicnn.step.optimiser import Hyper, update

cuda = pytest.importorskip("mpicnn.ops.cuda", reason="CuPy is not installed", exc_type=ImportError)
wire_gpu = pytest.importorskip("mpicnn.comm.wire_gpu", reason="CuPy is not installed")

STEPS = 3  # the third batch is a small one; a stand-in is slow
STOOD_IN = "standin" in cuda.xp.__file__
WAYS = {"host": "MPI by way of host memory", "mpi": "MPI on GPU memory", "nccl": "NCCL"}


@pytest.fixture(autouse=True)
def cards(monkeypatch):
    """Show four GPUs where they are stood in for."""
    monkeypatch.setenv("STANDIN_GPUS", "4")
    cuda.set_precision("float64")


@pytest.fixture(scope="module")
def reference():
    plan = preset("data", network(), (1,))
    return run_ranks(1, lambda comm: train(comm, plan, steps=STEPS))


def device(number):
    """Return a device on a GPU for the rank that is the calling thread."""
    gpu.use(number % gpu.count())
    line = wire_gpu.Line()
    return Device(cuda, name="gpu", wires=lambda comm: wire_gpu.StagedWire(comm, line))


def run(plan, rule, progress="poll", **how):
    """Train with rank r on the device `rule[r]`: a GPU's number, or None for the CPU."""

    def main(comm):
        number = rule[comm.Get_rank() % len(rule)]
        on = CPU if number is None else device(number)
        return train(comm, plan, device=on, progress=progress, steps=STEPS, **how)

    return run_ranks(plan.ranks, main)


RULES = {"one card": (0,), "two cards": (0, 1), "cards and cores": (0, None, 1)}
SCHEMES = [(name, "a") for name in PRESETS] + [("owt", "b"), ("owt", "c")]


def test_one_gpu_trains_as_one_rank(reference):
    # Sums in another order: a few hundred roundings of 1e-16, over some steps.
    compare(run(preset("data", network(), (1,)), (0,)), reference, 1e-12)


def test_frozen_layers_stay_as_they_are_on_gpus_too():
    model = freeze(network(), "conv1,bn*,fc4")
    alone = preset("data", model, (1,))
    reference = run_ranks(1, lambda comm: train(comm, alone, steps=STEPS, model=model))
    plan = make("filter", (2,), SHARES[2][:1], "a", "sharded")
    compare(run(plan, (0, None), model=model), reference, 1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name, scheme", SCHEMES)
def test_plan_trains_as_one_rank(name, scheme, rule, reference):
    ranks = 2 if rule == "two cards" else 3
    shares = (1, 0, 3)[:ranks] if rule == "cards and cores" else (1, 1, 2)[:ranks]
    sync = "sharded" if rule == "two cards" and name in ("data", "owt", "filter") else "allreduce"
    results = run(make(name, (ranks,), (shares,), scheme, sync), RULES[rule])
    compare(results, reference, 1e-12)
    for *_, sent, predicted in results:
        assert sent == pytest.approx(predicted)


@pytest.mark.parametrize("progress", ["none", "poll", "thread"])
def test_who_makes_progress_changes_nothing(progress, reference):
    plan = make("owt", (4,), ((0, 1, 2, 4),), "c", "sharded")
    compare(run(plan, RULES["cards and cores"], progress), reference, 1e-12)


@pytest.mark.parametrize("transport", ["host", "mpi", "nccl"])
@pytest.mark.parametrize("name, scheme", [("data", "a"), ("filter", "a"), ("owt", "c")])
def test_ways_of_travelling_train_as_one_rank_over_mpi(
    subcomms, name, scheme, transport, reference, monkeypatch
):
    size, rank = subcomms.Get_size(), subcomms.Get_rank()
    if transport == "mpi" and not STOOD_IN and not cuda_aware(environment()):
        pytest.skip("this MPI does not take addresses of GPU memory")
    if transport == "nccl" and (size == 1 or size > gpu.count()):
        pytest.skip("NCCL needs several ranks and a GPU for each")
    gpu.use(rank % gpu.count())
    identity = gpu.describe(rank % gpu.count())[1]
    wires, way = choose_wires(Mesh(subcomms), identity, transport, environment())
    assert way == WAYS[transport] or size == 1
    shares = SHARES[size][-1]
    plan = make(name, (size,), (shares,), scheme, ("allreduce", "sharded")[size % 2])
    results = subcomms.allgather(
        train(subcomms, plan, device=Device(cuda, wires=wires), steps=STEPS)
    )
    compare(results, reference, 1e-12)
    *_, sent, predicted = results[rank]
    assert sent == pytest.approx(predicted)


def test_a_grid_of_gpus_trains_as_one_rank(reference):
    plan = make("owt", (2, 2), ((2, 1), (1, 3)), "b", "sharded")
    compare(run(plan, RULES["two cards"]), reference, 1e-12)


def test_stages_on_gpus_and_cpus_train_as_one_rank():
    model = network(normalised=False)
    plain = run_ranks(1, lambda c: train(c, preset("data", model, (1,)), model=model, steps=STEPS))
    plan = load_plan(PlanChoice(stages="norm1,fc3", micro_batches=3), model, 3)
    compare(run(plan, RULES["cards and cores"], model=model), plain, 1e-12)


def test_single_precision_stays_close():
    cuda.set_precision("float32")
    plan = make("owt", (3,), ((1, 0, 3),), "b", "allreduce")
    one = run_ranks(1, lambda c: train(c, preset("data", network(), (1,)), np.float32, steps=STEPS))
    # Roundings of 6e-8, a few hundred to a sum, grow over some steps of momentum.
    compare(run(plan, RULES["cards and cores"], dtype=np.float32), one, 1e-4)


def steps(count, watch):
    """Do so many steps on one GPU; call `watch` before each and after, with the totals."""
    gpu.use(0)
    comm, model = MPI.COMM_SELF, network()
    distributed = DistributedModel(
        comm, Device(cuda), model, preset("data", model, (1,)), "float32"
    )
    state, program = distributed.initial(), distributed.program(BATCH)
    _, x, labels = next(iter(batches(np.float32)))
    x = cuda.upload(x)
    for step in range(count):
        before = watch(None)
        grads, totals = distributed.executor.train(program, state, x, labels, step)
        specs = model.param_specs()
        update(cuda, state, grads, specs, Hyper(0.01, 0.9, 0.01), 0.01)
        watch(before)
        totals.read()


def test_the_host_does_not_wait_within_a_step():
    if not STOOD_IN:
        pytest.skip("a real GPU may be done before it is asked: only the stand-in waits to be told")

    waited = []

    def watch(begun):
        if begun is None:
            cuda.activate("relu", cuda.xp.ones(3))
            return cuda.xp.cuda.get_current_stream().record()
        waited.append(begun.done)
        return None

    cuda.set_precision("float32")
    steps(4, watch)
    # the first step times engines
    assert not any(waited[1:]), waited


def test_steps_leave_no_memory_behind():
    cuda.set_precision("float32")
    pool, used = cuda.xp.get_default_memory_pool(), []

    def watch(before):
        cuda.synchronize()
        gc.collect()
        used.append(pool.used_bytes())
        return 0

    steps(8, watch)
    # the first steps make what is kept: scratch memory, the engines of a shape
    assert len(set(used[4::2])) == 1 and len(set(used[5::2])) == 1, used


def test_a_step_transposes_what_is_flattened_only(monkeypatch):
    cuda.set_precision("float32")
    transpose, transposed = _cuda_arrays._transpose, []

    def watch(before):
        if before is None:
            transposed.clear()
        return 0

    def noted(x, *rest):
        transposed.append(x.shape)
        return transpose(x, *rest)

    monkeypatch.setattr(_cuda_arrays, "_transpose", noted)
    steps(2, watch)
    # on the way to the features and on the way back: neither images nor weights nor gradients
    assert transposed == [(BATCH, 9, 1, 2)] * 2
