"""Which weights a run starts with: those of an earlier run, by name and shape.

They come from one checkpoint, whatever ranks and plan it was written under; each rank reads its
own part of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpicnn.checkpoint import Outline, read_outline, verify
from mpicnn.data.layout import some
from mpicnn.errors import UserError
from mpicnn.job.agreement import from_root
from mpicnn.models.model import layer_of
from mpicnn.run.load import find_checkpoint
from mpicnn.run.meta import check_meta
from mpicnn.text import spans

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.models import Model

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Start:
    """Hold the checkpoint `path` of this `digest`, and what is taken from it.

    `sources` are the arrays to take, as section and name in the file, by their name in the network.
    `rows` tell, by a title, what is taken and what is not, `notes` what may not be meant.
    """

    path: str
    digest: str
    sources: dict[str, str]
    rows: dict[str, str]
    notes: list[str]


def starting(comm: MPI.Intracomm, init: str, model: Model, classes: Collection[str]) -> Start:
    """Return what a network for these `classes` takes from a run or checkpoint `init`. Collective.

    Of a run it is the best checkpoint, if there is one, else the newest. The mean of the weights is
    taken where the run kept one: what evaluation uses. Arrays are told by name and shape. The last
    layer with weights may have another shape, and starts anew then.
    Raises UserError on all ranks where there is no whole checkpoint, where other shapes differ, and
    where nothing is in common.
    """
    return Start(**json.loads(from_root(comm, _choose, init, model, tuple(classes))))


@dataclass(frozen=True)
class _Weights:
    """Hold the shapes of parameters and buffers by name, layer by layer."""

    shapes: Shapes
    params: Collection[str]

    def told(self, group: Collection[str]) -> str:
        """Return some of them as text: how many parameters, and of which layers.

        A layer of which only some arrays are meant is told by these.
        """
        order: list[str] = []
        chosen: set[str] = set()
        for layer in dict.fromkeys(map(layer_of, self.shapes)):
            own = [name for name in self.shapes if layer_of(name) == layer]
            inside = [name for name in own if name in group]
            whole = len(inside) in (0, len(own))
            order += [layer] if whole else own
            chosen.update([layer] if whole and inside else inside)
        count = sum(prod(self.shapes[name]) for name in group if name in self.params)
        more = " and running statistics" if any(n not in self.params for n in group) else ""
        return f"{count:,} parameters{more}: {spans(chosen, order)}"


def _choose(init: str, model: Model, classes: tuple[str, ...]) -> str:
    path = _file(init)
    try:
        digest, meta, outline = read_outline(path)
        settings = check_meta(meta, path)
    except UserError as error:
        raise UserError(f"init: {error}") from None
    sources = sources_of(outline, bool(settings.ema))
    there = _Weights(
        _by_layer(
            (str(layer.get("name")) for layer in meta["model"]),
            {n: outline[s][0] for n, s in sources.items()},
        ),
        [name for name in sources if f"params/{name}" in outline],
    )
    specs = model.param_specs()
    shapes = {name: spec.shape for name, spec in (specs | model.buffer_specs()).items()}
    here = _Weights(_by_layer(model.weighted, shapes), specs)
    taken = _taken(path, model, there, here, meta["input_shape"])
    mean = f" (mean of the weights, ema {settings.ema:g})" if settings.ema else ""
    rows = {"init": f"{path}, step {meta['step']}{mean}", "taken": here.told(taken)}
    if fresh := shapes.keys() - taken:
        other = [n for n in here.shapes if n in fresh and n in there.shapes]
        was = f" ({_text(there.shapes[other[0]])} in the file)" if other else ""
        rows["new"] = f"{here.told(fresh)}{was}"
    if left := there.shapes.keys() - shapes.keys():
        rows["left"] = there.told(left)
    notes = _notes(model, taken, tuple(meta["classes"]), classes)
    found = {name: sources[name] for name in here.shapes if name in taken}
    return json.dumps(asdict(Start(os.fspath(path), digest, found, rows, notes)))


def _file(init: str) -> Path:
    """Return the checkpoint that is meant, after reading all of it."""
    path = Path(init)
    if not path.exists():
        raise UserError(f"init {path}: no such file; expected a run directory or a checkpoint")
    try:
        found = Path(find_checkpoint(path, "auto"))
    except UserError as error:
        raise UserError(f"init: {error}") from None
    if found == path:  # in a directory only what is whole is found
        try:
            verify(path)
        except UserError as error:
            raise UserError(
                f"init: {error}; expected a run directory or one of its checkpoints"
            ) from None
    return found


def sources_of(outline: Outline, averaged: bool) -> dict[str, str]:
    """Return section and name in the file of what a network answers with, by name.

    Of what does not learn there is no mean.
    """
    found: dict[str, str] = {}
    for section in ("params", "buffers", *(["ema"] if averaged else [])):
        found |= {
            full.partition("/")[2]: full for full in outline if full.startswith(f"{section}/")
        }
    return found


def _taken(
    path: Path, model: Model, there: _Weights, here: _Weights, images: Collection[int]
) -> set[str]:
    """Return the names that both have in one shape; none of the last layer if one there differs.

    Raises UserError where another layer differs, and where nothing is in common. `images` is the
    shape of those that the file's network takes.
    """
    last = model.weighted[-1]
    both = [name for name in here.shapes if name in there.shapes]
    other = [name for name in both if there.shapes[name] != here.shapes[name]]
    for name in other:
        if layer_of(name) != last:
            seen = f"; images are {_text(images)} there, {_text(model.input_shape)} here"
            raise UserError(
                f"init {path}: {name} is {_text(there.shapes[name])} in the file, "
                f"{_text(here.shapes[name])} in {model.name}"
                f"{seen if tuple(images) != model.input_shape else ''}; only the last layer with "
                f"weights, {last}, may differ: use network and images like the file's, or give "
                "layers that are to start anew other names"
            )
    taken = {name for name in both if not other or layer_of(name) != last}
    if not taken:
        raise UserError(
            f"init {path}: has nothing in common with {model.name}: the file has "
            f"{there.told(there.shapes)}, {model.name} {here.told(here.shapes)}; use a network "
            "with layers of the same names"
        )
    return taken


def _notes(
    model: Model, taken: set[str], before: tuple[str, ...], classes: tuple[str, ...]
) -> list[str]:
    """Return what of a start is possible but may not be meant."""
    notes = []
    known = set(map(layer_of, taken))
    if fresh := [name for name in model.weighted if name in model.frozen - known]:
        notes.append(f"{spans(fresh, model.weighted)}: frozen, but new: will not learn anything")
    last = model.weighted[-1]
    if before != classes and last in known:
        notes.append(
            f"{last}: taken as it is, though its outputs were for other classes: {some(before)}; "
            f"now {some(classes)}"
        )
    return notes


def _by_layer(layers: Iterable[Any], shapes: Shapes) -> Shapes:
    """Return shapes in the order of their layers."""
    places = {name: at for at, name in enumerate(layers)}
    return dict(sorted(shapes.items(), key=lambda item: places.get(layer_of(item[0]), len(places))))


def _text(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
