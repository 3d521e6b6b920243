"""The same training step in PyTorch: network, weights, loss and update taken over from mpicnn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from mpicnn import layers
from mpicnn.layers import BatchNorm, Conv, Linear
from mpicnn.models import Model
from mpicnn.step.optimiser import Hyper

# How PyTorch calls what mpicnn's layers call w, b, …
_NAMES = {
    "w": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def full_name(name: str) -> str:
    """Return PyTorch's name of mpicnn's parameter or buffer ("conv1.w": "conv1.weight")."""
    layer, short = name.rsplit(".", 1)
    return f"{layer}.{_NAMES[short]}"


class Graph(nn.Module):
    """Run modules in order, each on the values that it reads; the last one gives the logits.

    Modules are named as the layers of `model`. A value is let go of once its last reader has it.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.steps: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        for index, (entry, shape) in enumerate(zip(model.describe(), model.fed, strict=True)):
            sources = model.sources[index]
            self.add_module(entry["name"], _module(entry, shape, _overwrites(model, index)))
            done = tuple(value for value in set(sources) if model.last_read[value] == index)
            self.steps.append((entry["name"], sources, done))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values: dict[int, torch.Tensor] = {0: x}
        for at, (name, sources, done) in enumerate(self.steps, start=1):
            inputs = [values[value] for value in sources]
            for value in done:
                del values[value]
            values[at] = self.get_submodule(name)(*inputs)
            del inputs
        return values[len(self.steps)]


class Add(nn.Module):
    """Add inputs, in place where nothing else reads the first: as torchvision's networks do."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for at, other in enumerate(others):
            first = first.add_(other) if self.inplace or at else first + other
        return first


class Concat(nn.Module):
    """Lay the channels of all inputs one behind the other."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat(inputs, 1)


class Multiply(nn.Module):
    """Multiply images by gates."""

    def forward(self, first: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return first * gates


def _overwrites(model: Model, index: int) -> bool:
    """Say whether nothing but layer `index` reads its first input, not even PyTorch's backward."""
    value = model.sources[index][0]
    before = model.layers[value - 1][1] if value else None
    unread = isinstance(before, Conv | Linear | BatchNorm | layers.Add)
    return unread and model.readers[value] == 1


def network(model: Model, weights: Mapping[str, NDArray[Any]]) -> Graph:
    """Return `model` as PyTorch modules that hold copies of `weights`, by mpicnn's names.

    Raises ValueError for a kind of layer that has no counterpart here.
    """
    net = Graph(model)
    state = net.state_dict()
    state |= {full_name(name): torch.tensor(value) for name, value in weights.items()}
    net.load_state_dict(state)
    return net


def _module(entry: Mapping[str, Any], shape: Any, overwrites: bool) -> nn.Module:
    """Return one layer for examples of `shape`, which may write over its first input or not."""
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    name, kind = found.pop("name"), found.pop("type")
    found.pop("init", None)
    found.pop("inputs", None)
    match kind:
        case "conv":
            return nn.Conv2d(shape[0], found.pop("o"), found.pop("kernel"), **found)
        case "linear" if found.pop("groups") == 1:
            return nn.Linear(shape[0], found.pop("o"), **found)
        case "maxpool":
            return nn.MaxPool2d(found.pop("kernel"), **found)
        case "avgpool":
            # Where nothing is padded this changes nothing, but torch.compile's gradient of windows
            # that overhang the image is wrong without it.
            found["count_include_pad"] &= found["padding"] != (0, 0)
            return nn.AvgPool2d(found.pop("kernel"), **found)
        case "lrn":
            return nn.LocalResponseNorm(**found)
        case "batchnorm":
            return (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], **found)
        case "groupnorm":
            return nn.GroupNorm(found["groups"], shape[0], found["eps"])
        case "leakyrelu":
            return nn.LeakyReLU(found["slope"])
        case "hardswish" | "sigmoid" | "tanh" | "silu" | "gelu":
            names = {"silu": "SiLU", "gelu": "GELU"}
            return getattr(nn, names.get(kind, kind.capitalize()))()
        case "relu" | "relu6":
            # As PyTorch's own networks have it; only where nothing else reads what it overwrites.
            return {"relu": nn.ReLU, "relu6": nn.ReLU6}[kind](inplace=overwrites)
        case "globalavgpool":
            return nn.AdaptiveAvgPool2d(1)
        case "add":
            return Add(overwrites)
        case "concat":
            return Concat()
        case "multiply":
            return Multiply()
        case "dropout":
            return nn.Dropout(found["rate"])
        case "flatten":
            return nn.Flatten()
    raise ValueError(f"layer {name}: PyTorch has no counterpart for type {kind} here")


def multiply_in(precision: str) -> None:
    """Let PyTorch multiply float32 arrays of a GPU in float32, or in TF32 for the others.

    Engines for convolutions are chosen by trying them out.
    """
    rounds = precision != "float32"
    torch.set_float32_matmul_precision("high" if rounds else "highest")
    torch.backends.cudnn.allow_tf32 = rounds
    torch.backends.cudnn.benchmark = True


class Peer:
    """Train a network on one batch, in one variant, on one device.

    "eager" and "compiled" (`torch.compile`) keep n c h w in memory, "channels-last" and
    "compiled-cl" n h w c, into which the images are brought once, here. x is float32
    (n, c, h, w), labels int64 (n,). The update is that of
    `mpicnn.step.optimiser`, without its schedule.
    In precision "bf16" PyTorch casts automatically, activations too.
    """

    def __init__(
        self,
        variant: str,
        model: Model,
        weights: Mapping[str, NDArray[Any]],
        x: NDArray[Any],
        labels: NDArray[Any],
        hyper: Hyper,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        self.net = network(model, weights).train().to(device)
        self.x, self.labels = (torch.from_numpy(array).to(device) for array in (x, labels))
        self.cast = partial(torch.autocast, device, torch.bfloat16, precision == "bf16")
        if variant in ("channels-last", "compiled-cl"):
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        specs = {full_name(name): spec for name, spec in model.param_specs().items()}
        split: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.net.named_parameters():
            split[specs[name].bias].append(parameter)
        self.optimizer = torch.optim.SGD(
            [
                {"params": split[False], "weight_decay": hyper.decay},
                {"params": split[True], "weight_decay": 0.0},
            ],
            lr=hyper.rate,
            momentum=hyper.momentum,
            fused=True,
        )
        self.rates = {m: m.p for m in self.net.modules() if isinstance(m, nn.Dropout)}
        self.loss = self._loss
        if variant in ("compiled", "compiled-cl"):
            torch.compiler.reset()
            self.loss = torch.compile(self._loss, dynamic=False)

    def _loss(self) -> torch.Tensor:
        with self.cast():
            return cross_entropy(self.net(self.x), self.labels)

    def dropout(self, on: bool) -> None:
        """Drop activations at the network's rates from now on, or not at all."""
        for module, rate in self.rates.items():
            module.p = rate if on else 0.0

    def run(self) -> torch.Tensor:
        """Do one training step and return the batch's mean loss before it, wherever it lies."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def step(self) -> float:
        """Do one training step and return the batch's mean loss before it."""
        return float(self.run())
