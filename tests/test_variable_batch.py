"""OWT's variable batch size: FC weights change after every round, the others once a step."""

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import BATCH, SEED, batches, network, whole

from mpicnn import ops as backends
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import Options, compile
from mpicnn.division.placement import region, weighted_bounds
from mpicnn.division.presets import preset
from mpicnn.layers import SoftmaxCrossEntropy
from mpicnn.layers.base import Context
from mpicnn.step.executor import Executor
from mpicnn.step.initial import initial_rows
from mpicnn.step.optimiser import Hyper, update
from mpicnn.step.state import State, initial_state

OPS = backends.load("numpy")
RATE, FC_RATE, MOMENTUM, DECAY = 0.05, 0.02, 0.9, 0.01
MODEL = network()
SPECS = MODEL.param_specs()
HEAD = tuple(f"{name}." for name, _ in MODEL.layers[MODEL.fc_start :])


def learn(params, velocity, grads):
    for name, g in grads.items():
        rate = FC_RATE if name.startswith(HEAD) else RATE
        update(OPS, State(params, velocity), {name: g}, SPECS, Hyper(rate, MOMENTUM, DECAY), rate)


def rounds_of(count, shares, scheme):
    """Return the examples of every round, by hand: rank k's, or a part of every rank's."""
    bounds = weighted_bounds(count, shares)
    own = [np.arange(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    if scheme == "b":
        return own
    equal = [np.array_split(rows, len(shares)) for rows in own]
    return [np.concatenate([parts[k] for parts in equal]) for k in range(len(shares))]


class Serial:
    """One process that does the same, straight from the layers."""

    def __init__(self):
        draw = {n: initial_rows(p, SEED, n, (0, p.shape[0]), np.float64) for n, p in SPECS.items()}
        self.params = draw
        self.velocity = {name: np.zeros_like(w) for name, w in draw.items()}
        self.buffers = {
            n: initial_rows(p, SEED, n, (0, p.shape[0]), np.float64)
            for n, p in MODEL.buffer_specs().items()
        }

    def weights(self, name):
        every = self.params | self.buffers
        return {n.rpartition(".")[2]: w for n, w in every.items() if n.startswith(f"{name}.")}

    def run(self, index, step, count, rows, channels):
        return Context(True, step, SEED, index, count, rows, (0, channels))

    def forward(self, x, indices, step, count, rows):
        tape = []
        for index in indices:
            name, layer = MODEL.layers[index]
            run = self.run(index, step, count, rows, MODEL.shapes[index + 1][0])
            y, made = layer.forward(OPS, x, self.weights(name), run)
            tape.append((index, layer.tape(x, y, made), run))
            x = y
        return x, tape

    def backward(self, dy, tape):
        grads = {}
        for index, saved, run in reversed(tape):
            name, layer = MODEL.layers[index]
            dy, of_layer = layer.backward(OPS, dy, saved, self.weights(name), run)
            grads |= {f"{name}.{short}": g for short, g in of_layer.items()}
        return dy, grads

    def step(self, x, labels, step, rounds):
        count, split, loss = len(x), MODEL.fc_start, 0.0
        y, tape = self.forward(x, range(split), step, count, np.arange(count))
        dy = np.zeros_like(y)
        for rows in rounds:
            if not len(rows):
                continue
            head = range(split, len(MODEL.layers))
            logits, head_tape = self.forward(y[rows], head, step, count, rows)
            (lost, *_), saved = SoftmaxCrossEntropy().forward(OPS, logits, labels[rows])
            loss += lost
            dlogits = SoftmaxCrossEntropy().backward(OPS, saved, len(rows))
            d, grads = self.backward(dlogits, head_tape)
            dy[rows] = d * (len(rows) / count)
            learn(self.params, self.velocity, grads)
        _, grads = self.backward(dy, tape)
        learn(self.params, self.velocity, grads)
        return loss / count


def parallel(comm, plan):
    mesh = Mesh(comm, plan.grid)
    runner = Executor(mesh, OPS, SEED)
    options = Options(64, by_round=True)
    weights = compile(MODEL, plan, BATCH).weights
    state = initial_state(weights, mesh.coords, SEED, np.float64)
    losses = []
    for step, x, labels in batches(np.float64):
        program = compile(MODEL, plan, len(x), options=options).at(mesh.coords)
        mine = x[program.positions]
        grads, totals = runner.train(
            program, state, mine, labels, step,
            lambda found: learn(state.params, state.velocity, found),
        )  # fmt: skip
        learn(state.params, state.velocity, grads)
        losses.append(mesh.sum(totals.read()).wait()[0] / len(x))
    parts = {
        w.name: (w.param.shape, region(w.param.shape, w.home, mesh.coords), state.params[w.name])
        for w in weights
        if not w.buffer
    }
    return losses, parts


@pytest.mark.parametrize("sync", ["allreduce", "sharded"])
@pytest.mark.parametrize("scheme", ["b", "c"])
@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 1), (1, 0, 2), (1, 1, 1, 1)])
def test_variable_batches_equal_a_serial_loop(shares, scheme, sync):
    serial = Serial()
    losses = [
        serial.step(x, labels, step, rounds_of(len(x), shares, scheme))
        for step, x, labels in batches(np.float64)
    ]
    plan = preset("owt", MODEL, (len(shares),), (shares,), scheme, sync)
    results = run_ranks(len(shares), lambda comm: parallel(comm, plan))
    # As for the exact variant: sums in another order over 20 steps.
    for result in results:
        np.testing.assert_allclose(result[0], losses, rtol=1e-12)
    ours = whole(results)
    for name, w in serial.params.items():
        assert np.linalg.norm(ours[name] - w) <= 1e-12 * np.linalg.norm(w), name
