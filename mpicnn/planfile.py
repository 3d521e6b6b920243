"""Plans as TOML: written with every run, read where any layer is to be divided by hand."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpicnn.errors import UserError
from mpicnn.plan import LayerPlan, Plan, Weights, preset

if TYPE_CHECKING:
    from mpicnn.models import Model

_TOP = {
    "name": str,
    "preset": str,
    "scheme": str,
    "sync": str,
    "grid": list,
    "shares": list,
    "layers": dict,
}
_LAYER = {"split": str, "shares": list, "home": str}


def load_plan(
    name: str,
    model: Model,
    grid: Sequence[int],
    shares: tuple[Weights, ...] | None,
    scheme: str = "a",
    sync: str = "allreduce",
) -> Plan:
    """Return the plan called `name`: a preset, or a TOML file that starts from one.

    The file may set `name`, `preset` (default "data"), `scheme`, `sync`, `grid`, `shares`, and for
    any layer `[layers.NAME]` with `split`, `shares` and `home`, as in `mpicnn.plan.LayerPlan`.
    `shares` is one list of numbers, or one list per axis. What the file says goes before what is
    passed here. Raises UserError for anything that is not so.
    """
    if not name.endswith(".toml"):
        return preset(name, model, grid, shares, scheme, sync)
    try:
        text = Path(name).read_text()
    except OSError as error:
        raise UserError(f"plan {name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"plan {name}: cannot be read: not text") from None
    return parse_plan(text, name, model, grid, shares, scheme, sync)


def parse_plan(
    text: str,
    where: str,
    model: Model,
    grid: Sequence[int],
    shares: tuple[Weights, ...] | None = None,
    scheme: str = "a",
    sync: str = "allreduce",
) -> Plan:
    """Return the plan that a TOML text says; see `load_plan`."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"plan {where}: not valid TOML: {error}") from None
    _check(where, found, _TOP)
    if tuple(found.get("grid", grid)) != tuple(grid):
        raise UserError(
            f"plan {where}: made for a grid of {'x'.join(map(str, found['grid']))} ranks, "
            f"this run has {'x'.join(map(str, grid))}; take out grid to divide anew"
        )
    start = preset(
        found.get("preset", "data"),
        model,
        grid,
        _shares(where, found["shares"], grid) if "shares" in found else shares,
        found.get("scheme", scheme),
        found.get("sync", sync),
    )
    layers = dict(start.layers)
    for layer, entry in found.get("layers", {}).items():
        at = f"{where}: layers.{layer}"
        if not isinstance(entry, dict):
            raise UserError(f"plan {at}: expected a table with split, shares or home")
        _check(at, entry, _LAYER)
        before = layers.get(layer)
        if before is None and "split" not in entry:
            raise UserError(f"plan {at}: needs split, a letter per axis out of n, o, c, m")
        layers[layer] = LayerPlan(
            entry.get("split", before.split if before else ""),
            _shares(at, entry["shares"], grid) if "shares" in entry else None,
            entry.get("home", before.home if before else "use"),
        )
    own = start.name if "layers" not in found and "preset" in found else Path(where).stem
    return replace(start, layers=layers, name=found.get("name", own))


def _check(where: str, found: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for key, value in found.items():
        if key not in known:
            raise UserError(f"plan {where}: unknown key {key!r}; expected {', '.join(known)}")
        if not isinstance(value, known[key]):
            kinds: dict[type, str] = {str: "text", list: "a list of numbers", dict: "a table"}
            raise UserError(f"plan {where}: {key} = {value!r}, expected {kinds[known[key]]}")


def _shares(where: str, found: list[Any], grid: Sequence[int]) -> tuple[Weights, ...]:
    rows = found if found and isinstance(found[0], list) else [found]
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for r in rows for n in r)
    if not numbers:
        raise UserError(f"plan {where}: shares = {found!r}, expected a number per rank")
    if len(rows) == 1 and len(grid) > 1:
        rows = [[1.0] * n for n in grid[:-1]] + rows
    return tuple(tuple(float(n) for n in row) for row in rows)


def plan_toml(plan: Plan) -> str:
    """Return the plan as TOML that `parse_plan` reads back as the same division."""
    lines = [
        f"name = {json.dumps(plan.name)}",
        f'scheme = "{plan.scheme}"',
        f'sync = "{plan.sync}"',
        f"grid = {list(plan.grid)}",
        f"shares = {_lists(plan.shares)}",
    ]
    for name, layer in plan.layers.items():
        lines += ["", f"[layers.{name}]", f'split = "{layer.split}"']
        if layer.shares is not None:
            lines.append(f"shares = {_lists(layer.shares)}")
        if layer.home != "use":
            lines.append(f'home = "{layer.home}"')
    return "\n".join(lines) + "\n"


def _lists(shares: tuple[Weights, ...]) -> str:
    return str([list(weights) for weights in shares])
