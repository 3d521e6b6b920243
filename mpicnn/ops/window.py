"""Say where the windows of a convolution or a pooling lie along one spatial axis."""

from __future__ import annotations


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the number of outputs along an axis of `size` values (below 1: nothing fits)."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def pool_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return the number of pooled values along an axis of `size` values (below 1: nothing fits).

    With `ceil_mode` a last window may hang over the end, but, as in PyTorch, only if it starts
    inside the values or the padding in front of them.
    """
    outputs = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (outputs - 1) * stride >= size + padding:
        outputs -= 1
    return outputs


def overlap(offset: int, stride: int, padding: int, size: int, outputs: int) -> tuple[slice, slice]:
    """Return which outputs see a value through the window's tap at `offset`, and which values.

    Output t sees value t * stride + offset - padding; the outputs whose tap falls on padding are
    left out. Both slices have the same length, which may be 0.
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
