"""Plans of known kinds, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpicnn.division.plan import INPUT, LOSS, PRESETS, LayerPlan, Plan, Shares, equal_shares
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.models import Model


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

    With two axes the first always divides the batch and the preset rules the second.
    Raises UserError for an unknown name, and for fc-output with another scheme than (a).
    """
    conv, fc, rest, home = {
        "data": ("n", "n", "", "use"),
        "owt": ("n", "o", "", "use"),
        "fc-output": ("n", "o", "", "use"),
        "fc-input": ("n", "c", "", "use"),
        "filter": ("o", "n", "n", "use"),
        "master-worker": ("o", "m", "m", "first"),
    }.get(name) or _unknown_preset(name)
    outer = "n" * (len(grid) - 1)
    layers: dict[str, LayerPlan] = {}
    if rest:
        layers[INPUT] = LayerPlan(outer + ("m" if rest == "m" else "r"))
        layers[LOSS] = LayerPlan(outer + rest)
    for layer_name, layer in model.layers:
        if layer.kind == "contraction":
            is_conv = len(model.shape_before(layer_name)) == 3
            layers[layer_name] = LayerPlan(
                outer + (conv if is_conv else fc), home=home if is_conv else "use"
            )
        elif rest == "m" or (rest and layer.kind == "examplewise"):
            layers[layer_name] = LayerPlan(outer + rest)
    if name == "fc-output" and scheme != "a":
        raise UserError(f"plan fc-output takes the batch at once; use owt for scheme {scheme}")
    return Plan(tuple(grid), shares or equal_shares(grid), layers, scheme, sync, name)


def _unknown_preset(name: str) -> tuple[str, str, str, str]:
    raise UserError(
        f"plan: there is no preset {name!r}; expected one of {', '.join(PRESETS)} or a FILE.toml"
    )
