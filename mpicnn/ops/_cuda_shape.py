"""Describe a convolution to the GPU's ways of computing it, and see that its arguments fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np

from mpicnn.ops._native_check import conv_y_shape, shape4
from mpicnn.ops.interface import Shape
from mpicnn.ops.window import Window


@dataclass(frozen=True)
class ConvShape:
    """The shapes x (n, c, h, w), w (o, c/groups, kh, kw) and y (n, o, oh, ow), and the window,
    whose padding is the same on both sides of an axis."""

    x: Shape
    w: Shape
    y: Shape
    window: Window

    @classmethod
    @lru_cache(4096)  # convolutions, far more than a network has
    def of(
        cls,
        name: str,
        x: Shape,
        w: Shape,
        window: Window,
    ) -> ConvShape:
        """Return the description. Raises ValueError, about `name`, where arguments do not fit."""
        y = conv_y_shape(name, x, w, window)
        return cls(shape4("x", x), shape4("w", w), y, window)

    @property
    def stride(self) -> tuple[int, ...]:
        """The window's stride."""
        return self.window.stride

    @property
    def padding(self) -> tuple[int, ...]:
        """The zeros on both sides of each axis."""
        return self.window.margins

    @property
    def dilation(self) -> tuple[int, ...]:
        """The window's dilation."""
        return self.window.dilation

    @property
    def groups(self) -> int:
        """The groups of channels."""
        return self.window.groups

    @property
    def empty(self) -> bool:
        """Whether there is nothing to multiply."""
        return 0 in (*self.x, *self.w, *self.y)

    @property
    def pointwise(self) -> bool:
        """Whether every output sees one pixel, and every pixel is seen by one output."""
        return self.w[2:] == self.stride == (1, 1) and self.padding == (0, 0)

    @property
    def taps(self) -> int:
        """The number of values that one output of one group sees."""
        return prod(self.w[1:])

    @cached_property
    def sizes(self) -> tuple[Any, ...]:
        """The sizes in the order of SHAPE in columns.cu."""
        window = (*self.w[2:], *self.stride, *self.padding, *self.dilation)
        sizes = (*self.x[1:], *self.y[2:], self.groups, *window)
        return tuple(np.int32(size) for size in sizes)
