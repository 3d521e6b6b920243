"""Texts that are nearly right, by seed: what a parser must accept or refuse in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mpicnn import models
from mpicnn.devices.calibration import Calibration, Conditions, Speed, reuse
from mpicnn.devices.ranks import Rank
from mpicnn.division.compile import compile_all
from mpicnn.division.planfile import load_plan, plan_toml
from mpicnn.division.propagation import check_batch
from mpicnn.errors import UserError
from mpicnn.forecast.clusterfile import load_cluster
from mpicnn.forecast.machine import Link
from mpicnn.models.entry import TYPES
from mpicnn.settings.definitions import Settings, parse
from mpicnn.settings.plan_groups import PlanChoice

MODEL = models.load("cuda-convnet", (3, 32, 32), 10)
NOW = Conditions(
    "default", "12ab", (1, 28, 28), "float32", "auto", "0.1.0",
    (Rank("a", "cpu", "native", 1), Rank("b", "cpu", "native", 2)),
)  # fmt: skip
ODD = [
    0, -1, 1, 2, 3, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, True, False,
    0.0, -0.0, 0.5, 1.0, 1e-308, 1e9, 1e308, -1e308, float("inf"), float("nan"),
    "", "a", "auto", "equal", "measured", "classes", "n", "nn", "o", "m", "c", "mm", "0", "1,1",
    "2x2", "-1", "../..", "~", "\x00", "\x1b[31m", "é\u202e", "x" * 5000, "1" * 5000,
    [], [0], [1, 1], [1, 2, 3], [[1], 2], [[1, 1]], [[[1]]], ["a"], [True], [1e308, 1e308],
    [10**400], {}, {"a": 1}, {"split": "n"}, {"split": 3}, {"shares": [0, 0]},
]  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """What is fuzzed: how an input of that name is written, and what reads it."""

    write: Callable[[random.Random, Path], object]
    read: Callable[[Path], object]
    name: str


def written(make: Callable[[random.Random], str]) -> Callable[[random.Random, Path], object]:
    """Return what writes a text that is drawn."""

    def write(draw: random.Random, path: Path) -> None:
        path.write_text(make(draw), encoding="utf-8", errors="surrogateescape")

    return write


def toml(table: dict[str, Any]) -> str:
    """Return a table of tables and values as TOML, in which keys may be odd too."""
    lines, inner = [], []
    for key, value in table.items():
        name = json.dumps(key)
        if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()) and value:
            inner += [f"[{name}.{json.dumps(k)}]\n{toml(v)}" for k, v in value.items()]
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            inner += [f"[[{name}]]\n{toml(v)}" for v in value]
        else:
            lines.append(f"{name} = {literal(value)}")
    return "\n".join([*lines, *inner])


def literal(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def spoiled(draw: random.Random, text: str) -> str:
    """Return a text, often as it is, else cut, repeated, or with a character changed."""
    at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    return draw.choice(
        [text] * 6
        + [
            text[:at],
            text[:at] + draw.choice('[]{}"\\=\n\x00é,.0-') + text[at + 1 :],
            text[:to] + text[at:],
            text[:at] + text[to:],
            text + "[" * draw.choice([1, 2000, 100_000]),
        ]
    )


def settings_text(draw: random.Random) -> str:
    """Return a file of settings."""
    default = Settings()
    names = [each.name for _, each in Settings.options()]
    table = {name: getattr(default, name) for name in draw.sample(names, draw.randint(0, 8))}
    return spoiled(draw, toml(odd(draw, table)))


def odd(draw: random.Random, table: dict[str, Any]) -> dict[str, Any]:
    """Return a table in which some values and keys are odd."""
    table = dict(table)
    for key in list(table):
        if draw.random() < 0.3:
            table[key] = draw.choice(ODD)
        if draw.random() < 0.03:
            table[draw.choice(["", "a b", "é", key.upper(), f"{key}s"])] = table.pop(key)
    return table


def plan_text(draw: random.Random) -> str:
    """Return a plan for up to six ranks."""
    layers = {
        name: odd(draw, {"split": draw.choice("nocm"), "shares": [1, 2], "home": "use"})
        for name, _ in draw.sample(MODEL.layers, draw.randint(0, 3))
    }
    table = {
        "name": "mine", "preset": draw.choice(["data", "owt", "filter", "fc-input"]),
        "scheme": draw.choice("abc"), "sync": "allreduce", "grid": [2], "shares": [2, 1],
        "stages": draw.choice([[], ["conv2"], ["conv2", "conv3"]]), "micro_batches": 2,
        "order": "1f1b", "layers": layers,
    }  # fmt: skip
    keys = draw.sample(list(table), draw.randint(0, len(table)))
    return spoiled(draw, toml(odd(draw, {key: table[key] for key in keys})))


def network_text(draw: random.Random) -> str:
    """Return a network of a few layers."""
    layers = []
    for _ in range(draw.randint(0, 5)):
        kind = draw.choice(list(TYPES))
        known = [f.name for f in fields(TYPES[kind]) if f.init]  # type: ignore[arg-type]
        values = {name: draw.choice([1, 2, 3, 5, 0.5, [2, 2]]) for name in known}
        layers.append(odd(draw, {"type": kind} | values))
    ending = [{"type": "flatten"}, {"type": "linear", "o": "classes"}]
    return spoiled(draw, toml({"layer": layers + ending}))


def cluster_text(draw: random.Random) -> str:
    """Return a cluster of a few classes of nodes."""
    nodes = []
    for number in range(draw.choice([0, 1, 1, 2, 2, 3])):
        node = {
            "name": f"class {number}", draw.choice(["count", "weight"]): draw.randint(1, 9),
            "ranks": draw.randint(1, 4), "convolution_gflops": 10 ** draw.uniform(-2, 4),
            "memory_gb_per_s": draw.choice([1, 20.5]), "vary": [0.5, 1.5], "memory_gb": 2,
        }  # fmt: skip
        nodes.append(draw.choice([node, node, odd(draw, node)]))
    link = {"latency-us": 30, "gbit_per_s": draw.choice([1, 0.005]), "busy": 0.5}
    table = {"node": nodes, "link": draw.choice([link, odd(draw, link)]), "inside": {"busy": 1}}
    keys = draw.sample(list(table), draw.choice([3, 3, 3, 2]))
    return spoiled(draw, toml({key: table[key] for key in keys}))


def calibration_text(draw: random.Random) -> str:
    """Return a file of measured speeds."""
    speed = Speed((0.5,), (0.25,), 1.0, 1e-9, 0.0)
    made = Calibration(NOW, ("conv1 forward",), (speed, speed), Link(), Link(), "mpicnn 0.1.0")
    table = json.loads(made.to_json())
    table["ranks"] = [draw.choice([row, row, odd(draw, row)]) for row in table["ranks"]]
    return spoiled(draw, json.dumps(draw.choice([table, odd(draw, table)])))


def read_plan(path: Path) -> object:
    """Read a plan and compile it for all of its ranks, wherever it fits their number."""
    refusals = []
    for ranks in (1, 2, 4):
        try:
            plan = load_plan(PlanChoice(plan=str(path)), MODEL, ranks)
            check_batch(MODEL, plan, 8)
            compile_all(MODEL, plan, 8)
            plan_toml(plan)
        except UserError as error:
            check_line(error)
            refusals.append(error)
    if len(refusals) == 3:
        raise refusals[0]


def check_line(error: UserError) -> None:
    """Check that a refusal is one line of sensible length that shows on any terminal."""
    text = str(error)
    assert text and "\n" not in text and len(text) < 1000, text[:2000]
    assert text.isprintable(), repr(text)


TEXTS = {
    "settings": Parser(
        written(settings_text), lambda path: parse([str(path)], "train", {}), "input.toml"
    ),
    "plan": Parser(written(plan_text), read_plan, "input.toml"),
    "network": Parser(
        written(network_text), lambda path: models.load(path, (3, 16, 16), 10), "input.toml"
    ),
    "cluster": Parser(
        written(cluster_text), lambda path: load_cluster(str(path)).machine(9), "input.toml"
    ),
    "calibration": Parser(
        written(calibration_text),
        lambda path: reuse(path.read_text(), str(path), NOW),
        "input.json",
    ),
}
