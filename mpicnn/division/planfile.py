"""Plans as TOML files: written with every run, read to divide layers by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, prod
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from mpicnn.division.plan import LayerPlan, Plan, Shares, equal_shares
from mpicnn.division.presets import BRANCHES, PRESETS, preset
from mpicnn.division.stages import cut
from mpicnn.division.strategy import all_letters
from mpicnn.documents import read_toml
from mpicnn.errors import UserError
from mpicnn.text import one_of

if TYPE_CHECKING:
    from mpicnn.models import Model
    from mpicnn.settings.plan_groups import PlanChoice

PARTS_PER_STAGE = 4
"""Micro-batches for each stage where none are asked for: a fifth of the time is then the filling
and draining of the pipeline (survey; Huang et al. 2019 advise at least as many)."""

_TOP = {
    "name": str,
    "preset": str,
    "scheme": str,
    "sync": str,
    "grid": list,
    "shares": list,
    "stages": list,
    "micro_batches": int,
    "order": str,
    "batch_norm": str,
    "layers": dict,
}
MOST_SHARE = 1e100
"""Shares are relative; sums and products of larger ones may not be finite."""

_LAYER = {"split": str, "shares": list, "home": str}


def load_plan(
    asked: PlanChoice, model: Model, ranks: int, speeds: Sequence[float] | None = None
) -> Plan:
    """Return the plan that the settings ask for: a preset, or a TOML file that starts from one.

    The file may set `name`, `preset` (default "data"), `scheme`, `sync`, `grid`, `shares`,
    `stages` (names of layers), `micro_batches`, `order`, `batch_norm`, and for any layer
    `[layers.NAME]` with `split`, `shares` and `home`, as in `mpicnn.division.plan.LayerPlan`.
    `shares` is one list of numbers, or one list per axis. What the file says goes before the
    settings, and `speeds`, one weight for each rank of the last axis, before the settings' shares.
    Raises UserError for anything that is not so, or does not suit the number of ranks.
    """
    if asked.plan == "auto":
        raise UserError(
            "plan auto is looked for when training starts and by mpicnn plan; here, name a preset "
            "or FILE.toml"
        )
    if not asked.plan.endswith(".toml"):
        return _divide({"preset": asked.plan}, asked, model, ranks, speeds)
    try:
        text = Path(asked.plan).read_text()
    except OSError as error:
        raise UserError(f"plan {asked.plan}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"plan {asked.plan}: cannot be read: not text") from None
    return parse_plan(text, asked.plan, asked, model, ranks, speeds)


def parse_plan(
    text: str,
    where: str,
    asked: PlanChoice,
    model: Model,
    ranks: int,
    speeds: Sequence[float] | None = None,
) -> Plan:
    """Return the plan that a TOML text says; see `load_plan`."""
    found = _read(text, where)
    start = _divide({"preset": "data"} | found, asked, model, ranks, speeds, where)
    layers = dict(start.layers)
    for layer, entry in found.get("layers", {}).items():
        at = f"{where}: layers.{layer}"
        if not isinstance(entry, dict):
            raise UserError(f"plan {at}: expected a table with split, shares or home")
        _check(at, entry, _LAYER)
        before = layers.get(layer)
        if before is None and "split" not in entry:
            known = ", ".join(all_letters())
            raise UserError(f"plan {at}: needs split, a letter per axis out of {known}")
        layers[layer] = LayerPlan(
            entry.get("split", before.split if before else ""),
            _shares(at, entry["shares"], start.grid) if "shares" in entry else None,
            entry.get("home", before.home if before else "use"),
        )
    own = start.name if "layers" not in found and "preset" in found else Path(where).stem
    return replace(start, layers=layers, name=found.get("name", own))


def saved_plan(text: str) -> dict[str, Any]:
    """Return the table of a plan that `plan_toml` wrote into a file that may come from anybody.

    Raises UserError where it lacks something. Whether it fits a network is not looked at.
    """
    where = "of the run"
    found = _read(text, where)
    if lacking := [key for key in _TOP if key not in ("preset", "layers") and key not in found]:
        raise UserError(f"plan {where}: no {lacking[0]}")
    if [len(row) for row in found["shares"] if isinstance(row, list)] != found["grid"]:
        raise UserError(f"plan {where}: shares do not fit the grid {short(found['grid'])}")
    _shares(where, found["shares"], found["grid"])
    return found


def plan_ranks(table: Mapping[str, Any]) -> int:
    """Return how many ranks the plan of `saved_plan` is for."""
    return (1 + len(table["stages"])) * prod(table["grid"])


def _read(text: str, where: str) -> dict[str, Any]:
    """Return the table of a plan, the type of every entry checked."""
    try:
        found = read_toml(text)
    except ValueError as error:
        raise UserError(f"plan {where}: not valid TOML: {error}") from None
    _check(where, found, _TOP)
    _check_items(where, found)
    return found


def _divide(
    found: Mapping[str, Any],
    asked: PlanChoice,
    model: Model,
    ranks: int,
    speeds: Sequence[float] | None,
    where: str = "",
) -> Plan:
    """Return a preset over the ranks: with what a file's table says, or else the settings."""
    stages = found["stages"] if "stages" in found else asked.stages.split(",")
    if len(stages) == 1 and str(stages[0]).isdigit():
        stages = cut(model, int(stages[0]))
    depth = 1 + len(stages)
    if ranks % depth:
        raise UserError(
            f"stages: {ranks} ranks cannot form {depth} stages of as many ranks each; "
            f"start a multiple of {depth}"
        )
    whole = ranks // depth
    grid = tuple(found.get("grid") or (int(n) for n in asked.grid.split("x") if n)) or (whole,)
    if prod(grid) != whole:
        lengths, each = "x".join(map(str, grid)), " in each stage" if stages else ""
        if "grid" in found:
            raise UserError(
                f"plan {where}: made for a grid of {lengths} ranks, this run has {whole}{each}; "
                "take out grid to divide anew"
            )
        raise UserError(f"grid {lengths} has {prod(grid)} places, but {whole} ranks run{each}")
    if "shares" in found:
        shares = _shares(where, found["shares"], grid)
    elif speeds or asked.shares != "equal":
        inner = speeds or [float(part) for part in asked.shares.split(",")]
        shares = (*equal_shares(grid[:-1]), tuple(inner))
    else:
        shares = equal_shares(grid)
    parts = found.get("micro_batches") or asked.micro_batches
    return replace(
        preset(
            found["preset"],
            model,
            grid,
            shares,
            found.get("scheme", asked.scheme),
            found.get("sync", asked.sync),
        ),
        stages=tuple(stages),
        micro_batches=parts or (1 if depth == 1 else PARTS_PER_STAGE * depth),
        order=found.get("order", asked.order),
        batch_norm=found.get("batch_norm", asked.batch_norm),
    )


def _check(where: str, found: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for key, value in found.items():
        if key not in known:
            raise UserError(f"plan {where}: unknown key {key!r}; expected {', '.join(known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            kinds: dict[type, str] = {
                str: "text", int: "a whole number", list: "a list", dict: "a table"
            }  # fmt: skip
            raise UserError(f"plan {where}: {key} = {short(value)}, expected {kinds[known[key]]}")


def _check_items(where: str, found: Mapping[str, Any]) -> None:
    """Check the entries of the lists that a file's table holds."""
    known = (*PRESETS, BRANCHES)
    if found.get("preset", "data") not in known:
        raise UserError(
            f"plan {where}: preset = {short(found['preset'])}, expected {one_of(known)}"
        )
    if not all(type(n) is int and n > 0 for n in found.get("grid", [])):
        raise UserError(
            f"plan {where}: grid = {short(found['grid'])}, expected whole numbers above 0"
        )
    if not all(isinstance(name, str) for name in found.get("stages", [])):
        raise UserError(
            f"plan {where}: stages = {short(found['stages'])}, expected names of layers"
        )
    if found.get("micro_batches", 1) < 1:
        raise UserError(
            f"plan {where}: micro_batches = {found['micro_batches']}, expected 1 or more"
        )


def _is_share(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return not MOST_SHARE < abs(value) < inf


def _shares(where: str, found: list[Any], grid: Sequence[int]) -> tuple[Shares, ...]:
    rows = found if found and isinstance(found[0], list) else [found]
    if not all(isinstance(row, list) and all(map(_is_share, row)) for row in rows):
        raise UserError(
            f"plan {where}: shares = {short(found)}, expected a number per rank, at most "
            f"{MOST_SHARE:g}"
        )
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
        f"stages = {json.dumps(plan.stages)}",
        f"micro_batches = {plan.micro_batches}",
        f'order = "{plan.order}"',
        f'batch_norm = "{plan.batch_norm}"',
    ]
    for name, layer in plan.layers.items():
        lines += ["", f"[layers.{name}]", f'split = "{layer.split}"']
        if layer.shares is not None:
            lines.append(f"shares = {_lists(layer.shares)}")
        if layer.home != "use":
            lines.append(f'home = "{layer.home}"')
    return "\n".join(lines) + "\n"


def _lists(shares: tuple[Shares, ...]) -> str:
    return str([list(weights) for weights in shares])
