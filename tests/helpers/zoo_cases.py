"""Named networks, narrower, under every kind of plan: each trains as one rank does.

There are 648 plans for each of them, 1,944 where there is no batch norm. This tries as many as it
can in an order drawn by --seed, for all networks or those named, and says how many were right,
refused and wrong:

    python tests/helpers/zoo_cases.py --seconds 3600
    python tests/helpers/zoo_cases.py --seconds 600 --seed 2 resnet20 squeezenet
"""

import argparse
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from time import monotonic

import numpy as np
from random_cases import CLASSES, Case, compare_with_one_rank, one_rank

from mpicnn.division.branches import branches
from mpicnn.division.presets import BRANCHES, PRESETS, preset
from mpicnn.layers import BatchNorm
from mpicnn.layers.base import Param
from mpicnn.models import NAMES, Model, load

BATCHES = (7, 7)
# name: images, how much narrower; others: 33x33 images and 16 times
SIZES = {
    "default": ((1, 20, 20), 4),
    "lenet5": ((1, 20, 20), 1),
    "cuda-convnet": ((3, 16, 16), 4),
    "alexnet-cifar": ((3, 16, 16), 4),
    "alexnet": ((3, 67, 67), 16),
    "alexnet-owt": ((3, 67, 67), 16),
    "alexnet-owt-code": ((3, 67, 67), 16),
    "resnet20": ((3, 16, 16), 4),
    "resnet56": ((3, 16, 16), 4),
    "googlenet": ((3, 48, 48), 16),
    "densenet121": ((3, 64, 64), 8),
    "mobilenet-v2": ((3, 33, 33), 8),
}
FACTORS = {
    "layout": [
        ((1,), 1), ((2,), 1), ((3,), 1), ((4,), 1), ((2, 2), 1),
        ((1,), 2), ((1,), 3), ((1,), 4), ((2,), 2),
    ],  # the grid of a stage, and the number of stages
    "preset": (*PRESETS, BRANCHES),
    "scheme": ["a", "b", "c"],
    "shares": ["equal", "unequal", "empty"],
    "sync": ["allreduce", "sharded"],
    "turns": [(1, "1f1b"), (3, "1f1b"), (3, "gpipe")],  # micro-batches
}  # fmt: skip
FEEDING = ("data", "owt", "fc-input")  # presets whose head a scheme can feed
SHARES = {
    "equal": {1: (1.0,), 2: (1.0, 1.0), 3: (1.0,) * 3, 4: (1.0,) * 4},
    "unequal": {1: (1.0,), 2: (3.0, 1.0), 3: (1.0, 4.0, 2.0), 4: (2.0, 1.0, 3.0, 1.0)},
    "empty": {1: (1.0,), 2: (0.0, 1.0), 3: (1.0, 0.0, 3.0), 4: (0.0, 1.0, 2.0, 4.0)},
}


class Drawn(BatchNorm):
    """Batch normalisation that starts away from 0 and 1: no ReLU stands on the edge."""

    def params(self, shape):
        return {key: Param((shape[0],), 0.5, bias=True) for key in ("gamma", "beta")}


def narrow(name, image, classes, divisor, dropout=True):
    """Return a named network with so many times fewer channels everywhere but at its end."""
    description = load(name, image, classes).describe()
    widths = [entry for entry in description if "o" in entry]
    for entry in widths[:-1]:
        alone = entry.get("groups", 1) == entry["o"]
        entry["o"] = max(4, entry["o"] // divisor)
        if alone:  # every channel by itself stays so
            entry["groups"] = entry["o"]
    if not dropout:
        description = [dict(e, rate=0.0) if e["type"] == "dropout" else e for e in description]
    return Model.from_description(name, image, description)


@cache
def drawn(name):
    """Return a small form of a named network, and what one rank makes of it."""
    image, divisor = SIZES.get(name, ((3, 33, 33), 16))
    model = narrow(name, image, CLASSES, divisor)
    names = ("input", *(name for name, _ in model.layers))
    layers = [
        (name, Drawn(layer.momentum, layer.eps) if isinstance(layer, BatchNorm) else layer,
         [names[value] for value in values])
        for (name, layer), values in zip(model.layers, model.sources, strict=True)
    ]  # fmt: skip
    model = Model(name, image, tuple(layers))
    return model, one_rank(Case(model, preset("data", model, (1,)), BATCHES))


def choices(name):
    """Return all choices out of FACTORS that a named network has a use for."""
    branched = bool(branches(load(name, (3, 224, 224), CLASSES)))
    every = [dict(zip(FACTORS, values, strict=True)) for values in product(*FACTORS.values())]
    return [
        chosen
        for chosen in every
        if chosen["scheme"] == "a" or (chosen["preset"] in FEEDING and name != "squeezenet")
        if chosen["preset"] != BRANCHES or (branched and chosen["scheme"] == "a")
    ]


def make(model, chosen, seed):
    """Return the plan of these values of FACTORS, with stages that begin at any layers."""
    grid, depth = chosen["layout"]
    shares = tuple(SHARES[chosen["shares"]][n] for n in grid)
    if chosen["shares"] == "empty" and len(grid) == 2:
        shares = (shares[0], SHARES["unequal"][grid[1]])
    plan = preset(chosen["preset"], model, grid, shares, chosen["scheme"], chosen["sync"])
    names = [name for name, _ in model.layers]
    within = len(names) if plan.scheme == "a" else model.fc_start  # rounds are of a whole head
    borders = np.random.default_rng(seed).choice(range(1, within), depth - 1, replace=False)
    parts, order = chosen["turns"]
    stages = tuple(names[at] for at in sorted(borders))
    normalised = any(isinstance(layer, BatchNorm) for _, layer in model.layers)
    cut = "micro" if normalised and parts > 1 else "batch"
    return replace(plan, stages=stages, micro_batches=parts, order=order, batch_norm=cut)


def compare(name, chosen, seed):
    """Check that a plan trains as one rank does; return the line that refuses it, else ""."""
    model, reference = drawn(name)
    plan = make(model, chosen, seed)
    known = reference if plan.batch_norm == "batch" else None
    return compare_with_one_rank(Case(model, plan, BATCHES), known)


def pairwise(seed):
    """Return few choices in which every two values of two factors meet."""
    rng = np.random.default_rng(seed)

    def pairs(chosen):
        return set(combinations(((key, str(value)) for key, value in chosen.items()), 2))

    every = [*choices("vgg16"), *(c for c in choices("googlenet") if c["preset"] == BRANCHES)]
    missing = {pair for chosen in every for pair in pairs(chosen)}
    found = []
    while missing:
        tries = [every[at] for at in rng.integers(len(every), size=100)]
        best = max(tries, key=lambda chosen: len(pairs(chosen) & missing))
        if pairs(best) & missing:
            missing -= pairs(best)
            found.append(best)
    return found


def main():
    """Try plans until the time is up, and say how many were right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="names; all without any")
    parser.add_argument("--seconds", type=float, default=600, help="how long; 600 unless given")
    parser.add_argument("--seed", type=int, default=1, help="of the order; 1 unless given")
    asked = parser.parse_args()
    cases = [(name, chosen) for name in asked.networks or NAMES for chosen in choices(name)]
    order = np.random.default_rng(asked.seed).permutation(len(cases))
    found, lines = Counter(), Counter()
    end = monotonic() + asked.seconds
    for at in order:
        if monotonic() > end:
            break
        name, chosen = cases[at]
        try:
            line = compare(name, chosen, int(at))
        except Exception as error:
            found[name, "wrong"] += 1
            print(f"wrong: {name} {chosen} seed {at}: {error!r}"[:500], flush=True)
        else:
            found[name, "refused" if line else "right"] += 1
            lines[line] += bool(line)
    print(f"{found.total()} of {len(cases)} plans")
    for (name, verdict), count in sorted(found.items()):
        print(f"{count:6} {verdict:8} {name}")
    for line, count in lines.most_common():
        print(f"{count:6} {line}"[:200])


if __name__ == "__main__":
    main()
