"""Which steps are timed layer by layer, and what the others do without."""

import numpy as np
import pytest
from mpi4py import MPI

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.job.activity import Activity
from mpicnn.layers import Conv, Flatten, Linear, ReLU
from mpicnn.models import Model
from mpicnn.step.executor import Executor
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.state import initial_state
from mpicnn.step.timing import StepTimer, sampled


def test_one_step_in_ten_is_sampled_whatever_comes_in_turn():
    assert not sampled(0) and sampled(1)
    for every in range(1, 100):
        found = np.mean([sampled(every * turn) for turn in range(1, 2001)])
        assert 0.05 < found < 0.15, every
    assert np.mean([sampled(number) for number in range(10000)]) == pytest.approx(0.1, abs=0.002)


def test_a_timer_that_is_not_marked_asks_the_device_for_nothing():
    class Nothing:
        """A timer whose marks must not be made."""

        free = False

    told = Activity()
    timer = StepTimer(Nothing(), activity=told, marked=False)
    timer.end(timer.begin("conv1", "convolution", "forward"))
    assert told.name == "conv1"
    assert not any(timer.by_category.values()) and not timer.by_name


def steps(backend, depth, marked):
    """Yield before every step of a network of so many convolutions, and after the last."""
    layers = [(f"conv{i}", Conv(8, 3, padding=1)) for i in range(depth)]
    layers += [("relu", ReLU()), ("flat", Flatten()), ("fc", Linear(3))]
    model = Model("deep", (8, 5, 5), tuple(layers))
    program = compile(model, preset("data", model, (1,)), 4).at((0,))
    state = initial_state(program.weights, (0,), 0, np.float32).on(backend)
    executor = Executor(Mesh(MPI.COMM_SELF), backend, 0)
    optimiser = Optimiser(backend, state, model.param_specs(), Hyper(0.01), 10)
    x = backend.upload(np.ones((4, 8, 5, 5), np.float32))
    for number in range(4):
        yield
        executor.time_step(marked)
        executor.step(program, optimiser, x, np.arange(4) % 3, number)
    backend.synchronize()
    yield


def test_events_of_a_step_that_is_not_timed_do_not_depend_on_its_layers():
    hostgpu = pytest.importorskip("hostgpu.counts", reason="there is a real GPU, or no stand-in")
    backend, counts, found = ops.load("cuda"), hostgpu.counts, {}
    for depth in (1, 5):
        for marked in (True, False):
            events = []
            for _ in steps(backend, depth, marked):
                events.append(counts.events)
            found[depth, marked] = events[-1] - events[-2]
    assert found[1, False] == found[5, False] == 1  # for the loss that the host reads
    assert found[5, True] > found[1, True] + 4 * 2 > 10
