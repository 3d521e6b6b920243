"""Which kernels a training step calls, with which arguments: found by watching one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mpi4py import MPI
from task import SEED, Ours, Task

from mpicnn.comm.mesh import Mesh
from mpicnn.division.presets import preset
from mpicnn.layers import AvgPool, Context, Conv, Layer, MaxPool
from mpicnn.ops.interface import MEMBERS, Backend
from mpicnn.ops.window import Window
from mpicnn.step.initial import initial_rows

_NOT_TIMED = (
    "Feed", "Timer", "adam", "channel_sums", "conv2d_methods", "descend", "fetch", "flat",
    "nesterov", "operand", "peak_bytes", "set_convolution", "set_precision", "set_threads",
    "synchronize", "topk_correct", "upload", "upload_labels",
)  # fmt: skip

# How many arguments to keep of kernels that may write over one: a call is timed many times.
_KEPT = {"activate": 3, "activate_dx": 4, "normalise": 4, "normalise_dx": 4}

# Layers beside those of the named networks, and the images that they are given.
OTHERS: dict[str, tuple[Layer, tuple[int, int, int]]] = {
    "1x1 widening": (Conv(256, 1), (64, 28, 28)),
    "1x1 narrowing": (Conv(64, 1), (256, 28, 28)),
    "1x1 strided": (Conv(256, 1, 2), (128, 28, 28)),
    "3x3 strided": (Conv(128, 3, 2, 1), (128, 28, 28)),
    "3x3 small images": (Conv(256, 3, padding=1), (256, 7, 7)),
    "7x7 strided": (Conv(64, 7, 2, 3), (3, 112, 112)),
    "depthwise": (Conv(128, 3, padding=1, groups=128), (128, 28, 28)),
    "depthwise strided": (Conv(128, 3, 2, 1, groups=128), (128, 28, 28)),
    "32 groups": (Conv(128, 3, padding=1, groups=32), (128, 28, 28)),
    "odd sizes": (Conv(37, (3, 5), (1, 2), (0, 3)), (19, 31, 29)),
    "dilated": (Conv(64, 3, padding=2, dilation=2), (64, 17, 17)),
    "max 3x3/2": (MaxPool(3, 2, 1), (64, 56, 56)),
    "max 3x3/1": (MaxPool(3, 1, 1), (96, 17, 17)),
    "mean of all": (AvgPool(7), (512, 7, 7)),
    "mean 3x3/1": (AvgPool(3, 1, 1, count_include_pad=False), (96, 17, 17)),
}


@dataclass(frozen=True)
class Call:
    """One kernel with its arguments, and how often a step calls it with arguments of such shapes.

    `flop` counts a multiply-add as 2; it is 0 where memory and not arithmetic is the limit.
    `bytes` are those of all arrays read and written.
    """

    op: str
    args: tuple[Any, ...]
    flop: int
    bytes: int
    times: int = 1

    @property
    def shapes(self) -> str:
        """Return the arrays' shapes and the other arguments, short."""
        return " ".join(_short(arg) for arg in self.args if arg is not None)


class Watched:
    """Be the module of kernels `ops` and remember, of every kernel and shape, the first call."""

    def __init__(self, ops: Backend) -> None:
        self._ops = ops
        self.calls: dict[tuple[str, str], Call] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ops, name)
        if name in _NOT_TIMED or name not in MEMBERS or not callable(found):
            return found
        return lambda *args: self._note(name, found, args[: _KEPT.get(name)])

    def _note(self, name: str, kernel: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        result = kernel(*args)
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        # sgd returns nothing and writes its first two arguments
        results = result if isinstance(result, tuple) else (result,)
        written = arrays[:2] if result is None else [a for a in results if a is not None]
        size = sum(a.nbytes for a in (*arrays, *written))
        call = Call(name, args, _flop(name, args, result), size)
        before = self.calls.get((name, call.shapes))
        self.calls[name, call.shapes] = replace(before, times=before.times + 1) if before else call
        return result


def of_task(ops: Backend, task: Task) -> list[Call]:
    """Return the kernels of one training step on one rank."""
    watched: Any = Watched(ops)
    Ours(Mesh(MPI.COMM_SELF), watched, task, preset("data", task.model, (1,))).step()
    return list(watched.calls.values())


def of_others(ops: Backend, batch: int) -> list[Call]:
    """Return the kernels of the layers in `OTHERS`."""
    watched: Any = Watched(ops)
    for number, (layer, shape) in enumerate(OTHERS.values()):
        x = np.random.default_rng(number).standard_normal((batch, *shape), np.float32)
        params = {
            short: initial_rows(spec, SEED, short, (0, spec.shape[0]), np.float32)
            for short, spec in layer.params(shape).items()
        }
        channels = (0, layer.out_shape(shape)[0])
        run = Context(True, 0, SEED, number, batch, np.arange(batch), channels)
        y, made = layer.forward(watched, x, params, run)
        layer.backward(watched, y, layer.tape(x, y, made), params, run)
    return list(watched.calls.values())


def _short(arg: Any) -> str:
    if isinstance(arg, np.ndarray):
        return "x".join(map(str, arg.shape))
    if isinstance(arg, Window):
        return f"{arg.stride}{arg.padding}{arg.dilation}{arg.groups}".replace(" ", "")
    if isinstance(arg, tuple):
        return str(arg).replace(" ", "")
    return f"{arg:g}" if isinstance(arg, float) else str(arg)


def _flop(name: str, args: tuple[Any, ...], result: Any) -> int:
    """Return the multiply-adds of a contraction times 2, 0 for any other kernel."""
    match name:
        case "conv2d":
            outputs, depth = result.size, args[1][0].size
        case "conv2d_dx":
            outputs, depth = args[0].size, args[1][0].size
        case "conv2d_dw":
            outputs, depth = args[1].size, result[0].size
        case "linear":
            outputs, depth = result.size, args[0].shape[1]
        case "linear_dx":
            outputs, depth = result.size, args[0].shape[1]
        case "linear_dw":
            outputs, depth = result.size, len(args[0])
        case _:
            return 0
    return int(2 * outputs * depth)
