"""Which array of a PyTorch state_dict is which parameter of a network: by name and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mpicnn.errors import UserError
from mpicnn.models.model import Model
from mpicnn.text import spans

Shapes = Mapping[str, tuple[int, ...]]

THEIRS: Mapping[str, str] = MappingProxyType(
    {
        "w": "weight", "gamma": "weight", "b": "bias", "beta": "bias",
        "mean": "running_mean", "var": "running_var",
    }
)  # fmt: skip
"""What torch.nn calls our parameters and buffers."""

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""What DistributedDataParallel, torch.compile and others put before all names."""

FAMILIES: Sequence[Sequence[tuple[str, str]]] = (
    (),  # our own names
    (  # torchvision's ResNet
        (r"conv1_bn", r"bn1"),
        (r"block(\d+)_(\d+)_conv(\d)_bn", r"layer\1.\2.bn\3"),
        (r"block(\d+)_(\d+)_conv(\d)", r"layer\1.\2.conv\3"),
        (r"block(\d+)_(\d+)_shortcut_bn", r"layer\1.\2.downsample.1"),
        (r"block(\d+)_(\d+)_shortcut", r"layer\1.\2.downsample.0"),
    ),
    (  # DenseNet
        (r"conv1_bn", r"features.norm0"),
        (r"conv1", r"features.conv0"),
        (r"dense(\d+)_(\d+)_1x1_bn", r"features.denseblock\1.denselayer\2.norm1"),
        (r"dense(\d+)_(\d+)_1x1", r"features.denseblock\1.denselayer\2.conv1"),
        (r"dense(\d+)_(\d+)_3x3_bn", r"features.denseblock\1.denselayer\2.norm2"),
        (r"dense(\d+)_(\d+)_3x3", r"features.denseblock\1.denselayer\2.conv2"),
        (r"transition(\d+)_bn", r"features.transition\1.norm"),
        (r"transition(\d+)", r"features.transition\1.conv"),
        (r"last_bn", r"features.norm5"),
        (r"fc", r"classifier"),
    ),
    (  # GoogLeNet
        (r"(conv\d)_bn", r"\1.bn"),
        (r"(conv\d)", r"\1.conv"),
        (r"(inception\d\w)_1x1_bn", r"\1.branch1.bn"),
        (r"(inception\d\w)_1x1", r"\1.branch1.conv"),
        (r"(inception\d\w)_3x3_reduce_bn", r"\1.branch2.0.bn"),
        (r"(inception\d\w)_3x3_reduce", r"\1.branch2.0.conv"),
        (r"(inception\d\w)_3x3_bn", r"\1.branch2.1.bn"),
        (r"(inception\d\w)_3x3", r"\1.branch2.1.conv"),
        (r"(inception\d\w)_5x5_reduce_bn", r"\1.branch3.0.bn"),
        (r"(inception\d\w)_5x5_reduce", r"\1.branch3.0.conv"),
        (r"(inception\d\w)_5x5_bn", r"\1.branch3.1.bn"),
        (r"(inception\d\w)_5x5", r"\1.branch3.1.conv"),
        (r"(inception\d\w)_pool_1x1_bn", r"\1.branch4.1.bn"),
        (r"(inception\d\w)_pool_1x1", r"\1.branch4.1.conv"),
    ),
)
"""Our names of layers, and those of torchvision's modules, family by family."""

_IN_ORDER = re.compile(r"(features|classifier)(\.(\d+|conv|squeeze|expand[13]x[13]))*")
_RANKS = ("features", "classifier", "squeeze", "expand1x1", "expand3x3")


@dataclass(frozen=True)
class Match:
    """Say which array of a file each of a network's is, by full names, and how that was found."""

    names: Mapping[str, str]
    by: str
    left: Sequence[str]


def match(model: Model, shapes: Shapes, ordered: bool) -> Match:
    """Return which of a file's arrays, told by `shapes`, are a network's parameters and buffers.

    Names are ours, or those of torchvision's network; else layers go by their order and shapes:
    that of the file where it is `ordered`, and otherwise that of numbered modules. Raises
    UserError where neither fits.
    """
    modules = modules_of(shapes)
    layers = model.weighted
    for family in FAMILIES:
        theirs = [_translated(name, family) for name in layers]
        if all(name in modules for name in theirs):
            return _matched(model, modules, dict(zip(layers, theirs, strict=True)), "name")
    order = list(modules)
    if len(order) != len(layers):
        raise UserError(
            f"has arrays of {len(order)} layers, {model.name} has {len(layers)}, and their names "
            f"differ: {spans(order, order, 3)} in the file, {spans(layers, layers, 3)} in "
            f"{model.name}"
        )
    order = order if ordered else _by_number(order)
    return _matched(model, modules, dict(zip(layers, order, strict=True)), "order and shape")


def modules_of(shapes: Shapes) -> dict[str, dict[str, str]]:
    """Return the names of a file's arrays by module and attribute, without what wraps them all."""
    names = {name: name for name in shapes if not name.endswith("num_batches_tracked")}
    while names and any(all(n.startswith(wrapper) for n in names) for wrapper in WRAPPERS):
        names = {name.partition(".")[2]: full for name, full in names.items()}
    found: dict[str, dict[str, str]] = {}
    for name, full in names.items():
        module, _, attribute = name.rpartition(".")
        found.setdefault(module, {})[attribute] = full
    return found


def _translated(name: str, family: Sequence[tuple[str, str]]) -> str:
    """Return what a family calls one of our layers."""
    for pattern, theirs in family:
        if re.fullmatch(pattern, name):
            found = re.sub(pattern, theirs, name)
            # we number stages as the paper does, from 2, and blocks from 1; they from 1 and 0
            if block := re.fullmatch(r"layer(\d+)\.(\d+)\.(.*)", found):
                found = f"layer{int(block[1]) - 1}.{int(block[2]) - 1}.{block[3]}"
            return found
    return name


def _by_number(names: list[str]) -> list[str]:
    """Return modules of `features` and `classifier` in the order of their numbers.

    Raises UserError where names do not tell the order.
    """
    for name in names:
        if not _IN_ORDER.fullmatch(name):
            raise UserError(
                f"the names are not the network's, such as {name!r}, and the file keeps no order "
                "of its arrays: save it as .pt, or export ONNX"
            )

    def place(name: str) -> list[int]:
        parts = name.split(".")
        return [int(p) if p.isdigit() else _RANKS.index(p) if p in _RANKS else 0 for p in parts]

    return sorted(names, key=place)


def _matched(
    model: Model, modules: Mapping[str, Mapping[str, str]], layers: Mapping[str, str], by: str
) -> Match:
    """Return the arrays of layers that are modules. Raises UserError where one is missing."""
    found = {}
    for full in model.param_specs() | model.buffer_specs():
        name, _, key = full.rpartition(".")
        module = modules[layers[name]]
        theirs = key if key in module else THEIRS.get(key, key)
        if theirs not in module:
            raise UserError(
                f"{full} of {model.name} has nothing in the file: {layers[name]} there has "
                f"{', '.join(sorted(module))}"
            )
        found[full] = module[theirs]
    used = set(found.values())
    left = [n for module in modules.values() for n in module.values() if n not in used]
    if left and by != "name":
        raise UserError(f"{left[0]} has no place in {model.name}")
    return Match(found, by, left)
