"""In every precision GPU ranks train as a CPU does in float64, within the precision's bounds.

Every preset, scheme and stage, and random graph networks under random plans. TF32 keeps 11 bits of
every operand of a product, bf16 8, and of a convolution's result as well.
"""

from dataclasses import replace

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import BATCH, HYPER, RAGGED, make, network, train, whole
from random_cases import alone, draw, refusal

from mpicnn.devices.choice import Device, gpu
from mpicnn.division.planfile import load_plan
from mpicnn.division.presets import PRESETS, preset
from mpicnn.settings.plan_groups import PlanChoice

cuda = pytest.importorskip("mpicnn.ops.cuda", reason="CuPy is not installed", exc_type=ImportError)
wire_gpu = pytest.importorskip("mpicnn.comm.wire_gpu", reason="CuPy is not installed")

STEPS = 2
RATE = replace(HYPER, rate=0.01)  # small, so that roundings do not grow from step to step
# Of losses, relative; of each parameter, relative to its norm. Up to five times what was found.
BOUNDS = {"float32": 1e-6, "tf32": 1e-3, "bf16": 1e-2}
ROUNDED = 1e-4  # at least so far apart in bf16: it is what was asked for, and nothing better
SCHEMES = [(name, "a") for name in PRESETS] + [("owt", "b"), ("owt", "c")]


@pytest.fixture(autouse=True)
def cards(monkeypatch):
    """Show four GPUs where they are stood in for."""
    monkeypatch.setenv("STANDIN_GPUS", "4")


def on_gpus(plan, model=None):
    """Train in float32, each rank on a GPU."""

    def main(comm):
        gpu.use(comm.Get_rank() % gpu.count())
        line = wire_gpu.Line()
        device = Device(cuda, name="gpu", wires=lambda c: wire_gpu.StagedWire(c, line))
        return train(comm, plan, np.float32, model, device, steps=STEPS, hyper=RATE)

    return run_ranks(plan.ranks, main)


def on_cpu(plan, model=None):
    return run_ranks(1, lambda comm: train(comm, plan, model=model, steps=STEPS, hyper=RATE))


def distance(results, reference):
    """Return the largest relative difference of losses and of parameters."""
    losses, _, tested, *_ = reference[0]
    found = [abs(np.array(r[0]) / losses - 1).max() for r in results]
    found += [abs(r[2][0] / tested[0] - 1) for r in results]
    ours, theirs = whole(results), whole(reference)
    found += [
        np.linalg.norm(ours[name] - array) / max(1.0, np.linalg.norm(array))
        for name, array in theirs.items()
        if name.startswith("params/")
    ]
    return max(found)


@pytest.fixture(scope="module")
def reference():
    return on_cpu(preset("data", network(), (1,)))


@pytest.fixture(params=BOUNDS)
def bound(request):
    cuda.set_precision(request.param)
    return BOUNDS[request.param]


@pytest.mark.parametrize(
    "name, scheme, bound",
    [
        # in double precision test_gpu_plans has them all: others differ by their products alone,
        # and bf16 by the rounded copies that are kept, too
        *((name, scheme, bound) for name, scheme in SCHEMES[-1:] for bound in ("float32", "tf32")),
        *((name, scheme, "bf16") for name, scheme in SCHEMES),
    ],
    indirect=["bound"],
)
def test_every_preset_and_scheme(name, scheme, bound, reference):
    plan = make(name, (3,), ((1, 1, 2),), scheme, "allreduce")
    found = distance(on_gpus(plan), reference)
    assert found <= bound
    if bound == BOUNDS["bf16"]:
        assert found >= ROUNDED


def test_stages(bound):
    model = network(normalised=False)
    plan = load_plan(PlanChoice(stages="norm1,fc3", micro_batches=3), model, 3)
    found = distance(on_gpus(plan, model), on_cpu(preset("data", model, (1,)), model))
    assert found <= bound


@pytest.mark.parametrize("seed", range(2))
def test_random_graphs_under_random_plans(seed, bound):
    case = next(
        case
        for number in range(100 * seed, 100 * seed + 100)
        if not refusal(case := replace(draw(number, graph=True), batches=(BATCH, RAGGED)))
        and case.plan.ranks > 1
    )
    found = distance(on_gpus(case.plan, case.model), on_cpu(alone(case), case.model))
    assert found <= bound
