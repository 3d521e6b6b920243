"""Convolve on the GPU by whatever is fastest for the shapes: an engine of cuDNN, or columns.

The first call for some shapes tries some engines, and columns, and waits for the GPU; later ones
use what was fastest then. So two runs may add in a different order; within one run they never do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from math import inf
from typing import Any

import cupy
from numpy.typing import DTypeLike

from mpicnn.ops import _cuda_columns as columns
from mpicnn.ops import _cudnn
from mpicnn.ops._cuda_arrays import Array, cells, empty_cells, zero_cells
from mpicnn.ops._cuda_gemm import finish
from mpicnn.ops._cuda_precision import precision_of, settings
from mpicnn.ops._cuda_rounded import Rounded, rounded
from mpicnn.ops._cuda_shape import ConvShape
from mpicnn.ops._cudnn_engines import engines
from mpicnn.ops._native_check import wide_shape, widened
from mpicnn.ops.interface import Shape
from mpicnn.ops.window import Window, inside

# A trial: runs of each way that is left, turn by turn. The first turn is cold, for a way may load
# its kernels from files then; one that takes `_LONG` is known well enough after the second.
_TURNS = (1, 1, 4)
_HOPELESS = 3.0  # times the best: such a way is in no further turn
_LOADING = 0.5  # seconds that a cold run may take beyond that
_LONG = 0.05
_AS_FAST = 1.05  # among the fastest up to this factor cuDNN's order decides
_KEPT = 4096  # convolutions, far more than a network has
_COLUMNS: dict[str, Callable[..., None]] = {
    "forward": columns.forward,
    "dx": columns.dx,
    "dw": columns.dw,
}


def conv2d(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    relu: bool = False,
) -> Array:
    """Cross-correlate x (n, c, h, w) with w (o, c/groups, kh, kw) and add b (o,)."""
    x, window = _widened(x, window)
    shape = ConvShape.of("x", x.shape, w.shape, window)
    _check(w, shape.w, x.dtype)
    if b is not None:
        _check(b, shape.w[:1], x.dtype)
    if shape.empty:
        y = zero_cells(shape.y, x.dtype)
        finish(y, b, relu)
        return y
    y = empty_cells(shape.y, x.dtype)
    b = b if b is None else cupy.ascontiguousarray(b)
    _way("forward", shape, x.dtype, b is not None)(_read(x), _read(w), y, b, relu)
    return y


def conv2d_dx(
    dy: Array,
    w: Array,
    x_shape: Shape,
    window: Window,
) -> Array:
    """Return the gradient of `conv2d` by x, given dy (n, o, oh, ow)."""
    if not window.even:
        wide = conv2d_dx(dy, w, wide_shape(x_shape, window), window.evened)
        return cells(wide[inside(x_shape, window)])
    shape = ConvShape.of("x_shape", x_shape, w.shape, window)
    _check(dy, shape.y, w.dtype)
    if shape.empty:
        return zero_cells(shape.x, dy.dtype)
    dx = empty_cells(shape.x, dy.dtype)
    _way("dx", shape, dy.dtype)(_read(dy), _read(w), dx)
    return dx


def conv2d_dw(
    x: Array,
    dy: Array,
    w_shape: Shape,
    window: Window,
) -> Array:
    """Return the gradient of `conv2d` by w, given dy (n, o, oh, ow)."""
    x, window = _widened(x, window)
    shape = ConvShape.of("w_shape", x.shape, w_shape, window)
    _check(dy, shape.y, x.dtype)
    if shape.empty:
        return zero_cells(shape.w, x.dtype)
    dw = empty_cells(shape.w, x.dtype)
    _way("dw", shape, x.dtype)(_read(x), _read(dy), dw)
    return dw


def conv2d_methods(
    x_shape: Shape,
    w_shape: Shape,
    window: Window,
    dtype: DTypeLike,
) -> tuple[str, str, str]:
    """Return how `conv2d`, with a bias, `conv2d_dx` and `conv2d_dw` compute for these shapes.

    "columns" makes products of columns, another name is that of an engine of cuDNN, and "none" says
    that there is nothing to multiply. What was not used yet is tried out now.
    """
    shape = ConvShape.of("x_shape", wide_shape(x_shape, window), w_shape, window.evened)
    if shape.empty:
        return "none", "none", "none"
    x, w, y = (zero_cells(dims, dtype) for dims in (shape.x, shape.w, shape.y))
    forward = _way("forward", shape, dtype, bias=True)
    dx, dw = _way("dx", shape, dtype), _way("dw", shape, dtype)
    forward(_read(x), _read(w), y, cupy.zeros(shape.w[0], dtype))
    dx(_read(y), _read(w), x)
    dw(_read(x), _read(y), w)
    return forward.name, dx.name, dw.name


class Fastest:
    """The fastest of some ways to compute the same; the first call finds out which.

    Ways have a name and are called `way(*operands, out)`, or with b and relu behind. The last one
    is that which always works. `decided` is called once the others are out of use.
    """

    def __init__(
        self, ways: Mapping[str, Callable[..., None]], decided: Callable[[], object] = bool
    ) -> None:
        self._ways = dict(ways)
        self._decided = decided

    @property
    def name(self) -> str:
        """What computes, once that is known."""
        return next(iter(self._ways))

    def __call__(self, *arguments: Any) -> None:
        """Compute on these arrays."""
        if len(self._ways) > 1:
            self._decide(arguments)
        self._ways[self.name](*arguments)

    def _decide(self, arguments: Sequence[Any]) -> None:
        """Keep the fastest way. One that takes `_HOPELESS` times the best runs once or twice."""
        left, beyond = dict(self._ways), _LOADING
        for runs in _TURNS:
            seconds = {name: _seconds(way, arguments, runs) for name, way in left.items()}
            best = min(seconds.values())
            left = {n: w for n, w in left.items() if seconds[n] <= _HOPELESS * best + beyond}
            if len(left) == 1 or (not beyond and best >= _LONG):
                break
            beyond = 0.0
        names = [name for name in left if seconds[name] <= _AS_FAST * best]
        # where all fail, the error of the last one says why
        name = names[0] if best < inf else next(reversed(self._ways))
        self._ways = {name: self._ways[name]}
        self._decided()


def _seconds(way: Callable[..., None], arguments: Sequence[Any], runs: int) -> float:
    """Return how long one of some calls takes on the GPU, infinity where it fails."""
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    try:
        begin.record()
        for _ in range(runs):
            way(*arguments)
        end.record()
        end.synchronize()
    except _cudnn.REFUSALS:
        return inf
    return float(cupy.cuda.get_elapsed_time(begin, end)) * 1e-3 / runs


def _read(x: Any) -> Any:
    """Return x as ways of convolving take it: rounded once for all of them, or channels last."""
    return rounded(x) if precision_of(x.dtype) == "bf16" else cells(x)


def _widened(x: Any, window: Window) -> tuple[Any, Window]:
    """Return x, rounded or not, with the surplus of its padding around it, and what is left."""
    if not isinstance(x, Rounded):
        return widened(cupy, x, window)
    bits, window = widened(cupy, x.bits, window)
    return (x if bits is x.bits else Rounded(cells(bits), x.dtype)), window


def _way(kind: str, shape: ConvShape, dtype: DTypeLike, bias: bool = False) -> Fastest:
    return _fastest(_cudnn.place(), kind, shape, precision_of(dtype), settings.transforms, bias)


@lru_cache(_KEPT)
def _fastest(place: tuple[int, int, int], *what: Any) -> Fastest:
    library = _cudnn.library(*place)
    return Fastest(ways(library, *what), library.release if library else bool)


def ways(
    library: _cudnn.Library | None,
    kind: str,
    shape: ConvShape,
    precision: str,
    transforms: bool,
    bias: bool,
) -> dict[str, Callable[..., None]]:
    """Return all that may compute one of cuDNN's `KINDS`, by name; columns are the last."""
    found: dict[str, Callable[..., None]] = {}
    if library is not None and precision != "float64":
        tried = engines(library, kind, shape, precision, transforms, bias)
        found |= {engine.name: engine for engine in tried}
    return found | {"columns": partial(_COLUMNS[kind], shape)}


def _check(array: Any, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    """Raise ValueError unless an array, of which kernels see bare memory, is what they expect."""
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{dtype} of shape {shape} expected, not {array.dtype} of {array.shape}")
