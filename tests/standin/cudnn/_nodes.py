"""The operations of a graph: the shapes that they infer and refuse, and their numbers in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cudnn._enums import data_type, reduction_mode
from cudnn._tensor import tensor

Round = Callable[[np.ndarray], np.ndarray]


def channels_last(dim: list[int]) -> list[int]:
    """Return the strides of a dense tensor with its channels last in memory."""
    n, c, *space = dim
    steps = [math.prod(space[i + 1 :]) * c for i in range(len(space))]
    return [math.prod(space) * c, 1, *steps]


@dataclass
class Convolution:
    """One of "fprop", "dgrad" and "wgrad": x, w and y of it, of which one is the result."""

    kind: str
    x: tensor
    w: tensor
    y: tensor
    before: list[int]
    after: list[int]
    stride: list[int]
    dilation: list[int]

    @property
    def out(self) -> tensor:
        return {"fprop": self.y, "dgrad": self.x, "wgrad": self.w}[self.kind]

    @property
    def operands(self) -> tuple[tensor, tensor]:
        return {"fprop": (self.x, self.w), "dgrad": (self.y, self.w), "wgrad": (self.x, self.y)}[
            self.kind
        ]

    @property
    def groups(self) -> int:
        return self.x.dim[1] // self.w.dim[1]

    def infer(self) -> None:
        """Give the result of a forward pass its dims; those of gradients are not determined."""
        if self.kind != "fprop":
            if not self.out.dim:
                raise ValueError(
                    f"For {self.kind} node, output dimension inferencing is not possible."
                )
        elif not self.out.dim:
            self.out.dim = [self.x.dim[0], self.w.dim[0], *self._space()]
        if not self.out.stride:
            self.out.stride = channels_last(self.out.dim)

    def _space(self) -> list[int]:
        window = (self.x.dim[2:], self.w.dim[2:], self.before, self.after)
        return [
            (size + low + high - step * (kernel - 1) - 1) // stride + 1
            for size, kernel, low, high, step, stride in zip(
                *window, self.dilation, self.stride, strict=True
            )
        ]

    def check(self) -> None:
        """Raise RuntimeError where the library refuses to make the operation."""
        for what in (self.before, self.after, self.stride, self.dilation):
            if len(what) != 2:
                raise RuntimeError("CUDNN_STATUS_BAD_PARAM: is_valid_convolution")
        x, w, y = self.x.dim, self.w.dim, self.y.dim
        if any(len(dim) != 4 or min(dim) < 1 for dim in (x, w, y)):
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: dims must be four, and at least 1")
        if x[1] % w[1] or w[0] % self.groups:
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: 0 != xDimA[1] % wDimA[1]")
        if y != [x[0], w[0], *self._space()]:
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: is_valid_spatial_dim")

    def compute(self, values: dict[int, np.ndarray], rounding: Round) -> np.ndarray:
        first, second = (rounding(values[id(t)]) for t in self.operands)
        groups, out = self.groups, np.zeros(self.out.dim, first.dtype)
        (_, c, h, w), (o, _, kh, kw) = self.x.dim, self.w.dim
        oh, ow = self.y.dim[2:]
        (top, left), (bottom, right) = self.before, self.after
        margins = ((0, 0), (0, 0), (top, bottom), (left, right))
        if self.kind == "dgrad":
            dx = np.zeros((self.x.dim[0], c, h + top + bottom, w + left + right), first.dtype)
        else:
            padded = np.pad(first, margins)
        for g in range(groups):
            ci, co = c // groups, o // groups
            inside, outside = slice(g * ci, g * ci + ci), slice(g * co, g * co + co)
            for i in range(kh):
                for j in range(kw):
                    rows = _steps(i * self.dilation[0], oh, self.stride[0])
                    columns = _steps(j * self.dilation[1], ow, self.stride[1])
                    place = (slice(None), inside, rows, columns)
                    if self.kind == "fprop":
                        taps = second[outside, :, i, j]
                        out[:, outside] += np.einsum("nchw,oc->nohw", padded[place], taps)
                    elif self.kind == "dgrad":
                        taps = second[outside, :, i, j]
                        dx[place] += np.einsum("nohw,oc->nchw", first[:, outside], taps)
                    else:
                        loss = second[:, outside]
                        out[outside, :, i, j] = np.einsum("nchw,nohw->oc", padded[place], loss)
        return dx[:, :, top : top + h, left : left + w] if self.kind == "dgrad" else out


def _steps(start: int, count: int, step: int) -> slice:
    return slice(start, start + (count - 1) * step + 1, step)


@dataclass
class Pointwise:
    """An operation on every value: "add" of a tensor that is broadcast, or "relu"."""

    kind: str
    operands: tuple[tensor, ...]
    out: tensor

    def infer(self) -> None:
        if not self.out.dim:
            self.out.dim = list(self.operands[0].dim)
        if not self.out.stride:
            self.out.stride = list(self.operands[0].stride)

    def check(self) -> None:
        first = self.operands[0].dim
        for other in self.operands[1:]:
            fits = all(b in (1, a) for a, b in zip(first, other.dim, strict=True))
            if not fits:
                raise RuntimeError(f"CUDNN_STATUS_BAD_PARAM: {other.dim} for {first}")
        if self.out.dim != first:
            raise RuntimeError(f"CUDNN_STATUS_BAD_PARAM: {self.out.dim} of {first}")

    def compute(self, values: dict[int, np.ndarray], rounding: Round) -> np.ndarray:
        first, *rest = (values[id(t)] for t in self.operands)
        return first + rest[0] if self.kind == "add" else np.maximum(first, 0)


@dataclass
class Reduction:
    """A sum over the axes along which the result has length 1."""

    operands: tuple[tensor]
    out: tensor
    mode: reduction_mode

    def infer(self) -> None:
        if not self.out.dim:
            raise ValueError("For reduction node, output dimension inferencing is not possible.")
        if not self.out.stride:
            self.out.stride = channels_last(self.out.dim)

    def check(self) -> None:
        if self.mode is not reduction_mode.ADD:
            raise NotImplementedError("the stand-in adds only")

    def compute(self, values: dict[int, np.ndarray], rounding: Round) -> np.ndarray:
        axes = tuple(i for i, size in enumerate(self.out.dim) if size == 1)
        return values[id(self.operands[0])].sum(axis=axes, keepdims=True)


Node = Convolution | Pointwise | Reduction


def types(node: Node) -> set[data_type]:
    """Return the data types of a node's operands."""
    return {t.data_type for t in node.operands}
