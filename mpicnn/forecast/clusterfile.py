"""Clusters as TOML files: classes of nodes, the link between nodes, and that inside a node."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

from mpicnn.documents import read_toml
from mpicnn.errors import UserError
from mpicnn.forecast.cluster import MOST_RANKS, SHARED_MEMORY, Cluster, NodeClass
from mpicnn.forecast.machine import Device, Link


class _Number(NamedTuple):
    """Say in which bounds a number is, and what it is where a table lacks it: None, required."""

    least: float
    most: float
    default: float | None = None
    whole: bool = False

    @property
    def expected(self) -> str:
        noun = "a whole number" if self.whole else "a number"
        return f"{noun} from {self.least:g} to {self.most:g}"

    def fits(self, value: object) -> bool:
        """Say whether a value of a TOML file is such a number."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.least <= value <= self.most and isfinite(value)


class _Text(NamedTuple):
    """Describe a short text."""

    default: str = ""
    expected: str = "a text of 1 to 60 characters"

    def fits(self, value: object) -> bool:
        """Say whether a value of a TOML file is such a text."""
        return isinstance(value, str) and 0 < len(value) <= 60 and value.isprintable()


class _Range(NamedTuple):
    """Describe the least and the most of what is drawn."""

    default: tuple[float, float] = (1.0, 1.0)
    expected: str = "least and most, numbers from 0.001 to 1000, like [0.8, 1.2]"

    def fits(self, value: object) -> bool:
        """Say whether a value of a TOML file is such a range."""
        factor = _Number(1e-3, 1e3)
        pair = isinstance(value, list) and len(value) == 2 and all(map(factor.fits, value))
        return pair and value[0] <= value[1]  # type: ignore[index]


_Known = Mapping[str, _Number | _Text | _Range]

_RATE = _Number(1e-6, 1e9)
_FILE = {"name": _Text(), "node": None, "link": None, "inside": None}
_NODE: _Known = {
    "name": _Text(),
    "count": _Number(1, MOST_RANKS, 0, whole=True),
    "weight": _Number(1e-6, 1e6, 0.0),
    "ranks": _Number(1, MOST_RANKS, 1, whole=True),
    "convolution_gflops": _RATE,
    "linear_gflops": _RATE._replace(default=0.0),
    "memory_gb_per_s": _RATE,
    "start_us": _Number(0, 1e9, 0.0),
    "watts": _Number(1e-6, 1e9, 0.0),
    "memory_gb": _Number(1e-6, 1e9, 0.0),
    "vary": _Range(),
}
_LINK: _Known = {
    "latency_us": _Number(0, 1e9),
    "gbit_per_s": _RATE,
    "busy": _Number(0, 1, 0.0),
}
_INSIDE: _Known = {
    "latency_us": _Number(0, 1e9, 1e6 * SHARED_MEMORY.latency),
    "gbit_per_s": _RATE._replace(default=8e-9 * SHARED_MEMORY.bandwidth),
    "busy": _Number(0, 1, SHARED_MEMORY.busy),
}


def load_cluster(path: str) -> Cluster:
    """Return the cluster that a TOML file describes; see `parse_cluster`.

    Raises UserError where it cannot be read, too.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cluster {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"cluster {path}: cannot be read: not text in UTF-8") from None
    return parse_cluster(text, path)


def parse_cluster(text: str, path: str) -> Cluster:
    """Return the cluster that a TOML text says: [[node]] tables, [link] and perhaps [inside].

    Keys may have - for _. Raises UserError, with the file's name and the table, for whatever is
    not so.
    """
    where = f"cluster {path}"
    try:
        found = read_toml(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None
    _refuse_unknown(where, found, _FILE)
    tables = found.get("node")
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise UserError(f"{where}: no [[node]] tables; expected one for each class of nodes")
    if not tables:
        raise UserError(f"{where}: no nodes; expected a [[node]] table for each class of nodes")
    classes = tuple(_node(where, number, table) for number, table in enumerate(tables, start=1))
    _check(where, classes)
    if "link" not in found:
        raise UserError(
            f"{where}: no [link] table; expected latency_us and gbit_per_s of the link between "
            "nodes"
        )
    name = _table(where, {key: found[key] for key in found if key == "name"}, {"name": _Text()})
    return Cluster(
        name["name"] or Path(path).stem,
        classes,
        _link(f"{where}: link", found["link"], _LINK),
        _link(f"{where}: inside", found.get("inside", {}), _INSIDE),
    )


def _node(where: str, number: int, table: Mapping[str, Any]) -> NodeClass:
    """Return the class of nodes of a table, the `number`th of the file."""
    name = table.get("name")
    called = f" ({name})" if _Text().fits(name) else ""
    at = f"{where}: node {number}{called}"
    of = _table(at, table, _NODE)
    if bool(of["count"]) == bool(of["weight"]):
        raise UserError(
            f"{at}: expected count, how many such nodes there are, or weight, their proportion: "
            "one of the two"
        )
    device = Device(
        1e9 * of["convolution_gflops"],
        1e9 * (of["linear_gflops"] or of["convolution_gflops"]),
        1e9 * of["memory_gb_per_s"],
        of["start_us"] / 1e6,
    )
    return NodeClass(
        of["name"] or f"node{number}", device, of["ranks"], of["count"], of["weight"],
        of["watts"], 1e9 * of["memory_gb"], tuple(of["vary"]),
    )  # fmt: skip


def _check(where: str, classes: tuple[NodeClass, ...]) -> None:
    """Raise UserError where classes do not go together."""
    names = [each.name for each in classes]
    for number, name in enumerate(names, start=1):
        if name in names[: number - 1]:
            raise UserError(f"{where}: node {number}: there is a class {name} already")
    silent = [each.name for each in classes if not each.watts]
    if silent and len(silent) < len(classes):
        raise UserError(
            f"{where}: watts are given for some classes but not for {silent[0]}; give them for all"
        )


def _link(where: str, table: object, known: _Known) -> Link:
    if not isinstance(table, dict):
        raise UserError(f"{where}: expected a table with {', '.join(known)}")
    of = _table(where, table, known)
    return Link(of["latency_us"] / 1e6, of["gbit_per_s"] * 1e9 / 8, of["busy"])


def _table(where: str, found: Mapping[str, Any], known: _Known) -> dict[str, Any]:
    """Return the value of every known key, checked, with the default of what is not there."""
    _refuse_unknown(where, found, known)
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name in values:
            raise UserError(f"{where}: {key}: is there twice, with - and with _; keep one")
        if not known[name].fits(value):
            raise UserError(f"{where}: {key} = {short(value)}, expected {known[name].expected}")
        values[name] = value
    for name, entry in known.items():
        if name not in values:
            if entry.default is None:
                raise UserError(f"{where}: no {name}; expected {entry.expected}")
            values[name] = entry.default
    return values


def _refuse_unknown(where: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise UserError for a key that is not known, with the one that was probably meant."""
    for key in found:
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(known)}"
            raise UserError(f"{where}: unknown key {short(key)}; {hint}")
