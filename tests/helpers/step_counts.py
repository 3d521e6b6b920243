"""Count what a training step gives to a GPU, on the stand-in: launches, bytes, events, views.

`python tests/helpers/step_counts.py --models lenet5:4,cuda-convnet:4` prints a line per network and
precision: means over some steps behind the first two. All convolutions go by cuDNN's first engine
where there is one. `--by-name` adds how often each kernel, library function and copy was launched.
Bytes are those of the arrays that launches were given: what a card would have to move at least.
"""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mpi4py import MPI

TESTS = Path(__file__).parents[1]
FIRST = 2


@dataclass
class PerStep:
    """What a step launches, by name, and the bytes, events and views that go with it."""

    launches: Counter = field(default_factory=Counter)
    bytes: float = 0.0
    events: float = 0.0
    views: float = 0.0


def count(name, batch, precision, steps):
    """Return what a step of a network takes, on average over `steps`."""
    from hostgpu.counts import counts
    from task import Ours, Task

    from mpicnn import ops
    from mpicnn.comm.mesh import Mesh
    from mpicnn.devices import gpu
    from mpicnn.division.presets import preset
    from mpicnn.ops import _cuda_conv

    # the stand-in's speed says nothing: cuDNN's first engine is taken where there is one
    _cuda_conv._seconds = lambda way, *_: float(hasattr(way, "func"))
    gpu.use(0)
    backend = ops.load("cuda")
    backend.set_precision(precision)
    task = Task.draw(name, batch)
    plan = preset("data", task.model, (1,))
    ours = Ours(Mesh(MPI.COMM_SELF), backend, task, plan, backend.upload)
    for _ in range(FIRST):
        ours.step()
    backend.synchronize()
    counts.clear()
    for _ in range(steps):
        ours.step()
    backend.synchronize()
    mean = Counter({key: n / steps for key, n in counts.launches.items()})
    found = PerStep(mean, counts.bytes / steps, counts.events / steps, counts.views / steps)
    backend.set_precision("float32")
    return found


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="lenet5:4,cuda-convnet:4,marques-50-500:4,vgg11:1")
    parser.add_argument("--precisions", default="float32,bf16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--by-name", action="store_true")
    options = parser.parse_args()
    print(f"{'network':<18}{'precision':>10}{'launches':>10}{'events':>8}{'views':>8}{'MB':>10}")
    for model in options.models.split(","):
        name, _, batch = model.partition(":")
        for precision in options.precisions.split(","):
            found = count(name, int(batch), precision, options.steps)
            total = sum(found.launches.values())
            numbers = f"{total:>10.1f}{found.events:>8.1f}{found.views:>8.1f}"
            print(f"{model:<18}{precision:>10}{numbers}{found.bytes / 1e6:>10.3f}", flush=True)
            if options.by_name:
                print("  " + ", ".join(f"{n:g} {k}" for k, n in found.launches.most_common()))


if __name__ == "__main__":
    os.environ.setdefault("STANDIN_GPUS", "1")
    sys.path[:0] = [str(TESTS / "standin"), str(TESTS.parent / "bench")]
    main()
