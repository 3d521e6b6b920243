"""Convolve by cuDNN's engines: start them, and do before and after what they leave out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mpicnn.ops import _cudnn
from mpicnn.ops._cuda_arrays import Array, empty_cells
from mpicnn.ops._cuda_gemm import finish, finish_bf16
from mpicnn.ops._cuda_rounded import BF16, rounded
from mpicnn.ops._cuda_shape import ConvShape
from mpicnn.ops._cudnn import BIAS, FIRST, OUT, SECOND, Library
from mpicnn.ops.interface import Shape

CANDIDATES = 8  # engines that are tried for a convolution
_ALIGNMENT = 16  # bytes


@dataclass(frozen=True, eq=False)
class Engine:
    """One way of cuDNN to compute a graph: `call(first, second, out)`, or with b and relu behind.

    `adds_bias` says whether the graph adds it, else it is added afterwards. ReLU always comes
    afterwards: that of cuDNN need not keep NaN.
    """

    name: str
    library: Library
    graph: Any
    index: int
    workspace: int
    adds_bias: bool

    def start(self, first: Array, second: Array, out: Array, b: Array | None = None) -> None:
        """Start what the graph says on the library's stream."""
        tensors = {FIRST: _aligned(first), SECOND: _aligned(second), OUT: out}
        if b is not None and self.adds_bias:
            tensors[BIAS] = _aligned(b)
        self.graph.execute_plan_at_index(
            {uid: int(tensor.data.ptr) for uid, tensor in tensors.items()},
            self.library.scratch(self.workspace),
            self.index,
            self.library.handle,
        )

    def __call__(
        self, first: Array, second: Array, out: Array, b: Array | None = None, relu: bool = False
    ) -> None:
        """Start the whole computation."""
        self.start(first, second, out, b)
        finish(out, None if self.adds_bias else b, relu)


@dataclass(frozen=True, eq=False)
class Rounding:
    """An engine for bf16 and the shapes that it wants: it is called as an `Engine` is."""

    name: str
    engine: Engine
    first: Shape
    second: Shape
    out: Shape

    def __call__(
        self, first: Any, second: Any, out: Array, b: Array | None = None, relu: bool = False
    ) -> None:
        """Round operands that are not, start the engine, and make float32 of what it writes."""
        bits = empty_cells(self.out, BF16)
        operands = (rounded(first).filled(self.first), rounded(second).filled(self.second))
        self.engine.start(*operands, bits)
        finish_bf16(bits, out, b, relu)


def engines(
    library: Library, kind: str, shape: ConvShape, precision: str, transforms: bool, bias: bool
) -> Iterator[Engine | Rounding]:
    """Yield what computes one of cuDNN's `KINDS`, up to `CANDIDATES` of them, likely ones first.

    There may be none. For a sum with a bias, those that add it themselves come first; in bf16 none
    does, and those for channels in eights come before those that take any number of them.
    """
    if precision == "bf16":
        yield from _halves(library, kind, shape, transforms)
        return
    found = (
        replace(engine, name=f"{engine.name} + bias") if bias and not fused else engine
        for fused in ((True, False) if bias else (False,))
        for engine in _built(library, kind, shape, precision, transforms, fused)
    )
    yield from islice(found, CANDIDATES)


def _halves(library: Library, kind: str, shape: ConvShape, transforms: bool) -> Iterator[Rounding]:
    """Yield the engines for bf16: where channels are filled up, as many that need not be."""
    shapes = dict.fromkeys((_cudnn.in_eights(kind, shape), shape))
    for each in shapes:
        found = _built(library, kind, each, "bf16", transforms, False)
        for engine in islice(found, CANDIDATES // len(shapes)):
            name = engine.name if each == shape else f"{engine.name} in eights"
            yield Rounding(name, engine, *_cudnn.operand_shapes(kind, each))


def _built(
    library: Library, kind: str, shape: ConvShape, precision: str, transforms: bool, bias: bool
) -> Iterator[Engine]:
    """Yield an engine for every plan that can be built."""
    try:
        graph = _cudnn.describe(kind, shape, precision, bias, handle=library.handle)
    except _cudnn.REFUSALS:
        return
    for index in _cudnn.plans(graph, precision, transforms):
        name = f"cudnn {graph.get_plan_name_at_index(index)}"
        size = graph.get_workspace_size_plan_at_index(index)
        yield Engine(name, library, graph, index, size, bias)


def _aligned(x: Array) -> Array:
    """Return x, or a copy that lies alike, at an address from which engines can read wide."""
    return x if x.data.ptr % _ALIGNMENT == 0 else x.copy(order="K")
