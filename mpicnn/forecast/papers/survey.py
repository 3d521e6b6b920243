"""Two claims on which the plans rest, for every network with a name.

Marques (section 4) has of convolutions: 60 to 90 % of the time and 5 to 10 % of the parameters;
Krizhevsky: 90 to 95 % and 5 %. A review of Ben-Nun and Hoefler's survey has of layers: data
parallelism is best where the ratio of activations to weights is high, and dividing the layer itself
where it is low.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from mpicnn import models
from mpicnn.division.compile import compile_all
from mpicnn.division.presets import preset
from mpicnn.division.work import whole_layer_work
from mpicnn.forecast.machine import Device, Link, Machine
from mpicnn.forecast.papers.replay import Curve, Panel, Replay, Table, share
from mpicnn.forecast.timeline import timeline
from mpicnn.models import Model
from mpicnn.models.zoo import ZOO, made_for
from mpicnn.text import figure, spans

TIME = (0.60, 0.90)
"""The part of the time that convolutions take (Marques)."""
PARAMETERS = (0.05, 0.10)
"""The part of the parameters that they have (Marques)."""

BATCH = 128
DEVICE = Device(150e9, 100e9, 12e9, 20e-6)
"""What a time is forecast for: a core of a laptop, as in docs/cluster.toml."""

BY_BATCH, BY_OUTPUT = "n", "o"


@dataclass(frozen=True)
class Layer:
    """Count what a layer with weights computes and holds for a batch of 128.

    `activations` are the items of its input and output, `weights` those of its parameters.
    """

    name: str
    convolves: bool
    multiply_adds: int
    activations: int
    weights: int

    @property
    def ratio(self) -> float:
        """Return the activations for each weight."""
        return self.activations / self.weights

    @property
    def letter(self) -> str:
        """Return the letter that the ratio suggests: what is less is what should travel."""
        return BY_BATCH if self.ratio >= 1 else BY_OUTPUT


@dataclass(frozen=True)
class Claims:
    """Hold a network's shares of convolutions, and its layers."""

    name: str
    layers: tuple[Layer, ...]
    time: float
    parameters: float

    @property
    def work(self) -> float:
        """Return the convolutions' part of the multiplications."""
        whole = sum(layer.multiply_adds for layer in self.layers)
        return sum(layer.multiply_adds for layer in self.layers if layer.convolves) / whole

    @property
    def as_owt(self) -> bool:
        """Say whether the letters are those of plan owt."""
        return all(layer.letter == (BY_BATCH if layer.convolves else BY_OUTPUT)
                   for layer in self.layers)  # fmt: skip


def layers_of(model: Model) -> tuple[Layer, ...]:
    """Return the layers of a network that multiply by weights."""
    found = []
    for (name, layer), fed in zip(model.layers, model.fed, strict=True):
        if layer.kind == "contraction":
            work = whole_layer_work(layer, fed)
            found.append(
                Layer(
                    name, layer.convolves, BATCH * work.multiply_adds, BATCH * work.activations,
                    work.weights,
                )
            )  # fmt: skip
    return tuple(found)


@lru_cache
def claims(name: str) -> Claims:
    """Return what holds for a network with a name; its time is forecast for one core."""
    model = models.load(name, *made_for(name))
    found = layers_of(model)
    held = sum(weights_of(model).values())
    programs = compile_all(model, preset("data", model, (1,)), BATCH)
    took = timeline(programs, Machine((DEVICE,), (0,), Link(), Link()), 4)
    time = float(took.by_category()["convolution"][0]) / took.seconds
    parameters = sum(each.weights for each in found if each.convolves) / held
    return Claims(name, found, time, parameters)


def weights_of(model: Model) -> dict[str, int]:
    """Return the number of items of every parameter."""
    sizes = {}
    for name, spec in model.param_specs().items():
        sizes[name] = 1
        for length in spec.shape:
            sizes[name] *= length
    return sizes


def survey(model: str = "") -> Replay:
    """Return the claims for every network with a name, and the layers of one, if it is named."""
    every = [claims(name) for name in ZOO]
    tables = [shares_table(every), letters_table(every)]
    if model:
        tables.append(layers_table(claims(model)))
    curves = tuple(
        Curve(each.name, range(1, len(each.layers) + 1), [layer.ratio for layer in each.layers])
        for each in every
        if each.name in (model, "alexnet-owt", "vgg16", "resnet50", "marques-500-1500")
    )
    panel = Panel("Activations for each weight", "layer", "batch 128", curves, log=True)
    return Replay("Two claims, for every network that has a name", tuple(tables), (panel,))


def shares_table(every: list[Claims]) -> Table:
    """Return the convolutions' shares."""
    rows = tuple(
        (
            each.name, share(each.work), share(each.time), _within(each.time, TIME),
            share(each.parameters), _within(each.parameters, PARAMETERS),
        )
        for each in every
    )  # fmt: skip
    kept = [each.name for each in every if _within(each.parameters, PARAMETERS) == "yes"]
    return Table(
        "Convolutions: 60 to 90 % of the time and 5 to 10 % of the parameters?",
        ("network", "of multiplications", "of time", "60-90 %", "of parameters", "5-10 %"),
        rows,
        (
            "Time is forecast for a step at batch 128 on one core of 150 GFLOP/s in convolutions, "
            "100 in fully connected layers and 12 GB/s. The claim on parameters is one of networks "
            "of its time, with large fully connected layers, and holds for "
            f"{len(kept)} of {len(every)}: {', '.join(kept) or 'none'}.",
        ),
    )


def _within(part: float, bounds: tuple[float, float]) -> str:
    low, high = bounds
    return "yes" if low <= round(part, 2) <= high else "more" if part > high else "less"


def letters_table(every: list[Claims]) -> Table:
    """Return which layers of each network the ratio would have divided by output."""
    rows = []
    for each in every:
        names = [layer.name for layer in each.layers]
        few = [layer.name for layer in each.layers if layer.letter == BY_OUTPUT]
        ratios = [layer.ratio for layer in each.layers]
        rows.append(
            (
                each.name, str(len(names)), figure(min(ratios)), figure(max(ratios)),
                "yes" if each.as_owt else "no", spans(few, names, 3) or "none",
            )
        )  # fmt: skip
    return Table(
        "Activations for each weight of a layer at batch 128: above 1 letter n, below letter o",
        ("network", "layers", "least", "most", "as plan owt", "letter o"),
        tuple(rows),
        ("All layers of one network: mpicnn reproduce survey --model NAME.",),
        words=True,
    )


def layers_table(found: Claims) -> Table:
    """Return every layer's ratio and letter."""
    rows = tuple(
        (
            layer.name, figure(layer.multiply_adds / 1e9), figure(layer.activations / 1e6),
            figure(layer.weights / 1e6), figure(layer.ratio), layer.letter,
        )
        for layer in found.layers
    )  # fmt: skip
    return Table(
        f"Layers of {found.name}, batch {BATCH}",
        ("layer", "G multiplications", "M activations", "M weights", "ratio", "letter"),
        rows,
    )
