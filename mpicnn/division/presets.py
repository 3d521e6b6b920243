"""Plans of known kinds, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpicnn.division.branches import owners
from mpicnn.division.plan import INPUT, LOSS, LayerPlan, Plan, Shares, equal_shares
from mpicnn.division.strategy import DEFAULT
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.layers.base import Layer
    from mpicnn.models import Model


@dataclass(frozen=True)
class _Letters:
    """The letters of a preset by kind of layer; "" leaves layers to follow those before them."""

    convolution: str
    fully_connected: str
    channelwise: str = ""
    examplewise: str = ""
    input: str = ""
    home: str = "use"

    def of(self, layer: Layer) -> str:
        """Return the letter of a layer, "" for none."""
        if layer.kind == "contraction":
            return self.convolution if layer.convolves else self.fully_connected
        return self.channelwise if layer.kind == "channelwise" else self.examplewise


_PRESETS = {
    "data": _Letters("n", "n"),
    "owt": _Letters("n", "o"),
    "filter": _Letters("o", "n", examplewise="n", input="r"),
    "master-worker": _Letters("o", "m", "m", "m", input="m", home="first"),
    "fc-output": _Letters("n", "o"),
    "fc-input": _Letters("n", "c"),
}
PRESETS = tuple(_PRESETS)
"""Presets for any network."""
BRANCHES = "branches"


def preset(
    name: str,
    model: Model,
    grid: Sequence[int],
    shares: tuple[Shares, ...] | None = None,
    scheme: str = "a",
    sync: str = "allreduce",
) -> Plan:
    """Return a plan of a known kind for `model` on `grid`.

    data           every layer divides the batch (survey)
    owt            convolutions divide the batch, FC layers their outputs, fed by `scheme` (OWT)
    fc-output      the same with scheme (a) in the survey's terms
    fc-input       convolutions divide the batch, FC layers their inputs (survey)
    filter         convolutions divide their kernels, all else the batch (Marques, extended)
    master-worker  convolutions divide their kernels, the first rank does and holds all else
                   (Marques, algorithms 1 and 2)
    branches       every branch of the network on a rank of its own, all else divides the batch
                   (survey)

    With two axes the first always divides the batch and the preset rules the second.
    Raises UserError for an unknown name, for fc-output with another scheme than (a), and for
    branches of a network that has none.
    """
    if name not in (*PRESETS, BRANCHES):
        known = ", ".join((*PRESETS, BRANCHES))
        raise UserError(
            f"plan: there is no preset {name!r}; expected one of {known} or a FILE.toml"
        )
    if name == "fc-output" and scheme != "a":
        raise UserError(f"plan fc-output takes the batch at once; use owt for scheme {scheme}")
    if name == BRANCHES:
        layers = _branches(model, grid)
        return Plan(tuple(grid), shares or equal_shares(grid), layers, scheme, sync, name)
    chosen = _PRESETS[name]
    outer = DEFAULT * (len(grid) - 1)
    layers = {}
    for layer_name, letter in ((INPUT, chosen.input), (LOSS, chosen.examplewise)):
        if letter:
            layers[layer_name] = LayerPlan(outer + letter)
    for layer_name, layer in model.layers:
        if letter := chosen.of(layer):
            home = chosen.home if layer.convolves else "use"
            layers[layer_name] = LayerPlan(outer + letter, home=home)
    return Plan(tuple(grid), shares or equal_shares(grid), layers, scheme, sync, name)


def _branches(model: Model, grid: Sequence[int]) -> dict[str, LayerPlan]:
    """Return every layer's division: its branch's rank, or all ranks by the batch.

    Images that branches read are read by every rank.
    """
    outer = DEFAULT * (len(grid) - 1)
    found = owners(model, grid[-1])
    layers = {
        name: LayerPlan(f"{outer}m@{found[name]}" if name in found else outer + DEFAULT)
        for name, _ in model.layers
    }
    first = {
        name for (name, _), values in zip(model.layers, model.sources, strict=True) if 0 in values
    }
    if first & set(found):
        layers[INPUT] = LayerPlan(outer + "r")
    return layers
