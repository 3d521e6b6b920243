"""How a kernel moves over an image: along every spatial axis, however many there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

Sides = tuple[int, int]
"""Zeros in front of an axis, and behind it."""


@dataclass(frozen=True)
class Window:
    """Say how a kernel moves: one entry for every spatial axis.

    `padding` are the zeros on each side of an axis, `dilation` the distance between the kernel's
    values. `groups` divide the channels into parts that do not see each other (convolution only).
    """

    stride: tuple[int, ...]
    padding: tuple[Sides, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @classmethod
    @lru_cache(4096)
    def of(
        cls,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> Window:
        """Return the window whose padding is one number per axis, for both sides, or two."""
        sides = padding if len(padding) > len(stride) else [p for p in padding for _ in range(2)]
        return cls(stride, tuple(zip(sides[::2], sides[1::2], strict=True)), dilation, groups)

    @cached_property
    def even(self) -> bool:
        """Say whether every axis has as many zeros in front as behind."""
        return all(front == behind for front, behind in self.padding)

    @cached_property
    def margins(self) -> tuple[int, ...]:
        """Return the zeros that both sides of each axis have."""
        return tuple(min(sides) for sides in self.padding)

    @cached_property
    def evened(self) -> Window:
        """Return the window that is left when the surplus of one side is part of the image."""
        return replace(self, padding=tuple((p, p) for p in self.margins))

    @cached_property
    def surplus(self) -> tuple[Sides, ...]:
        """Return what each side of an axis has more than the other."""
        sides = zip(self.padding, self.margins, strict=True)
        return tuple((front - p, behind - p) for (front, behind), p in sides)

    def grouped(self, groups: int) -> Window:
        """Return the same window for another number of groups."""
        return self if groups == self.groups else _grouped(self, groups)

    def conv_shape(self, space: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many outputs a convolution has along each axis (below 1: none fits)."""
        axes = zip(space, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(conv_size(*axis) for axis in axes)

    def pool_shape(
        self, space: tuple[int, ...], kernel: tuple[int, ...], ceil_mode: bool
    ) -> tuple[int, ...]:
        """Return how many outputs a pooling has along each axis (below 1: none fits)."""
        axes = zip(space, self.reach(kernel), self.stride, self.padding, strict=True)
        return tuple(pool_size(*axis, ceil_mode) for axis in axes)

    def reach(self, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many values the kernel covers along each axis, those in between included."""
        return tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True))

    def touches(
        self, space: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]
    ) -> bool:
        """Say whether each of `out` windows takes a value inside the image, along every axis.

        Padding is less than the kernel, so that without dilation each does.
        """
        if set(self.dilation) == {1}:
            return True
        axes = zip(space, kernel, out, self.stride, self.padding, self.dilation, strict=True)
        return all(
            any(0 <= place < size for place in range(start, start + k * d, d))
            for size, k, outputs, stride, (front, _), d in axes
            for start in range(-front, outputs * stride - front, stride)
        )


@lru_cache(4096)
def _grouped(window: Window, groups: int) -> Window:
    return replace(window, groups=groups)


def even_out(xp: Any, x: Any, window: Window, fill: float = 0.0) -> tuple[Any, Window]:
    """Return x with the surplus of its padding around it, and the window that is left.

    For kernels that know one padding for both sides of an axis. `xp` is the module of x (n, c, …),
    `fill` the value of the padding.
    """
    if window.even:
        return x, window
    wide = xp.full(even_shape(x.shape, window), fill, x.dtype)
    wide[inside(x.shape, window)] = x
    return wide, window.evened


def even_shape(shape: tuple[int, ...], window: Window) -> tuple[int, ...]:
    """Return the shape of `even_out`'s array for x of `shape`."""
    space = zip(shape[2:], window.surplus, strict=True)
    return (*shape[:2], *(n + front + behind for n, (front, behind) in space))


def inside(shape: tuple[int, ...], window: Window) -> tuple[slice, ...]:
    """Return where x of `shape` lies in `even_out`'s array."""
    space = zip(shape[2:], window.surplus, strict=True)
    return (slice(None), slice(None), *(slice(front, front + n) for n, (front, _) in space))


def first_places(xp: Any, out: tuple[int, ...], kernel: tuple[int, ...], window: Window) -> Any:
    """Return the first place of each window that lies inside the image, of shape `out`.

    Places are counted through the kernel, the last axis first: i * kw + j.
    """
    places = xp.zeros((), np.int64)
    axes = zip(out, kernel, window.stride, window.padding, window.dilation, strict=True)
    for outputs, k, stride, (front, _), d in axes:
        steps = xp.maximum(0, (front - xp.arange(outputs) * stride + d - 1) // d)
        places = places[..., None] * k + steps
    return places


def conv_size(size: int, kernel: int, stride: int, padding: Sides, dilation: int) -> int:
    """Return the number of outputs along an axis of `size` values (below 1: nothing fits)."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def pool_size(size: int, reach: int, stride: int, padding: Sides, ceil_mode: bool) -> int:
    """Return the number of pooled values along an axis of `size` values (below 1: nothing fits).

    `reach` is how many values a window covers. With `ceil_mode` a last window may hang over the
    end, but, as in PyTorch, only if it starts inside the values or the padding in front of them.
    """
    outputs = (size + sum(padding) - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (outputs - 1) * stride >= size + padding[0]:
        outputs -= 1
    return outputs


def overlap(offset: int, stride: int, padding: int, size: int, outputs: int) -> tuple[slice, slice]:
    """Return which outputs see a value through the window's tap at `offset`, and which values.

    `padding` are the zeros in front. Output t sees value t * stride + offset - padding; the outputs
    whose tap falls on padding are left out. Both slices have the same length, which may be 0.
    """
    shift = offset - padding
    first = max(0, -(shift // stride))
    stop = min(outputs, (size - 1 - shift) // stride + 1)
    stop = max(stop, first)
    start = first * stride + shift
    # an empty range may start outside the axis, where a slice would count from its end
    if stop == first:
        return slice(0, 0), slice(0, 0)
    return slice(first, stop), slice(start, start + (stop - first - 1) * stride + 1, stride)
