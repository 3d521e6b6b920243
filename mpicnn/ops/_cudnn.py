"""Describe a convolution to cuDNN as a graph, and find the plans that can compute it.

The graphs are those of cuDNN Frontend. Images and kernels are float32 and have their channels last
in memory. In "float32" no engine may use tensor cores, which would round the operands; in "tf32"
it may; for "bf16" the operands are rounded before, and the engine adds in float32 and writes bf16:
for float32 results there is one engine, compiled when it is first used. What adds in an order of
its own every time is never used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from threading import get_ident
from time import perf_counter
from typing import Any

import cupy

from mpicnn.ops._cuda_shape import ConvShape
from mpicnn.ops.interface import Shape

with suppress(ImportError, RuntimeError):
    # pip, conda or the system may have put cuDNN where its frontend does not look
    import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cudnn")
try:
    import cudnn

    _ABSENT = ""
except ImportError:  # every convolution then goes by columns
    cudnn, _ABSENT = None, "is not installed"
except (OSError, AssertionError) as error:
    # the frontend opens cuDNN as it is imported: what it finds may be unfit, or there twice
    cudnn, _ABSENT = None, f"cannot be imported ({error})"

# What cuDNN Frontend raises where a graph, a plan or a call is not for this device. The last is
# derived from Exception alone.
REFUSALS: tuple[type[Exception], ...] = RuntimeError, ValueError, MemoryError
if cudnn is not None:
    REFUSALS += (cudnn.cudnnGraphNotSupportedError,)

KINDS = ("forward", "dx", "dw")
WORKSPACE_BYTES = 1 << 30  # engines that need more are not tried
FIRST, SECOND, OUT, BIAS = 1, 2, 3, 4  # what tensors are called in a graph
_BUILDING = 3.0  # seconds: then no more plans are built for a graph that has one
_EIGHT = 8  # engines for bf16 read channels in eights


class Library:
    """cuDNN for one stream of one thread: its handle, and scratch memory, as much as was needed."""

    def __init__(self, stream: int) -> None:
        self.handle = cudnn.create_handle()
        cudnn.set_stream(self.handle, stream)
        self._scratch = cupy.empty(0, "uint8")

    def scratch(self, size: int) -> int:
        """Return the address of so many bytes, which the next call may hand out again."""
        if self._scratch.size < size:
            self._scratch = cupy.empty(size, "uint8")
        return int(self._scratch.data.ptr) if size else 0

    def release(self) -> None:
        """Give the scratch memory back, for other arrays of the stream: the next call takes anew.

        So what an engine needed that was tried and not chosen is not held for good.
        """
        self._scratch = cupy.empty(0, "uint8")


def place() -> tuple[int, int, int]:
    """Return the current device, thread and stream, for which `library` has a handle each."""
    stream = cupy.cuda.get_current_stream()
    return cupy.cuda.runtime.getDevice(), get_ident(), int(stream.ptr)


@cache
def library(device: int, thread: int, stream: int) -> Library | None:
    """Return cuDNN for a stream of the current thread and device, or None where it is missing."""
    if cudnn is None:
        return None
    try:
        return Library(stream)
    except REFUSALS:  # the frontend is there and the library that it calls is not
        return None


def missing() -> str:
    """Return why convolutions do without cuDNN here, "" where they have it."""
    if cudnn is None:
        return f"cuDNN Frontend {_ABSENT or 'is not installed'}"
    return "" if library(*place()) else "cuDNN Frontend finds no cuDNN"


def describe(kind: str, shape: ConvShape, precision: str, bias: bool, **device: Any) -> Any:
    """Return the graph of one of `KINDS` for a device: handle=…, or device_property=….

    With `bias`, which goes with "forward" alone, a sum with a bias follows.
    """
    types = cudnn.data_type
    io = types.BFLOAT16 if precision == "bf16" else types.FLOAT
    graph = cudnn.pygraph(
        io_data_type=io,
        intermediate_data_type=types.FLOAT,
        compute_data_type=types.FLOAT,
        **device,
    )
    *operands, out = operand_shapes(kind, shape)
    first, second = (
        graph.tensor(dim=list(dims), stride=_strides(dims), data_type=io, uid=uid)
        for uid, dims in zip((FIRST, SECOND), operands, strict=True)
    )
    window = {
        "padding": list(shape.padding),
        "stride": list(shape.stride),
        "dilation": list(shape.dilation),
    }
    if kind == "forward":
        result = graph.conv_fprop(image=first, weight=second, **window)
    elif kind == "dx":
        result = graph.conv_dgrad(loss=first, filter=second, **window)
    else:
        result = graph.conv_wgrad(image=first, loss=second, **window)
    if bias:
        dims = (1, out[1], 1, 1)
        b = graph.tensor(dim=list(dims), stride=_strides(dims), data_type=types.FLOAT, uid=BIAS)
        result = graph.bias(input=result, bias=b)
    result.set_output(True).set_dim(list(out)).set_stride(_strides(out))
    result.set_data_type(io).set_uid(OUT)
    return graph


def plans(graph: Any, precision: str, transforms: bool) -> Iterator[int]:
    """Yield the indices of the graph's plans that may be used and can be built, and build them.

    Building checks each plan, and compiles some, for seconds each. `check_support` would ask CUDA's
    runtime too, and fails where two versions of that are installed.
    """
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes(_unwanted(precision, transforms))
        graph.deselect_workspace_greater_than(WORKSPACE_BYTES)
    except REFUSALS:
        return
    spent, found = 0.0, False
    for index in range(graph.get_execution_plan_count()):
        if found and spent > _BUILDING:
            return
        since = perf_counter()
        try:
            graph.build_plan_at_index(index)
        except REFUSALS:  # ruled out above, or not for this device after all
            continue
        finally:
            spent += perf_counter() - since
        found = True
        yield index


def _unwanted(precision: str, transforms: bool) -> list[Any]:
    """Return the notes on engines that may not be used."""
    notes = cudnn.numerical_note
    found = [notes.DOWN_CONVERT_INPUTS, notes.REDUCED_PRECISION_REDUCTION, notes.NONDETERMINISTIC]
    if precision == "float32":
        found.append(notes.TENSOR_CORE)
    if not transforms:
        found += [
            notes.FFT, notes.WINOGRAD, notes.WINOGRAD_TILE_4x4, notes.WINOGRAD_TILE_6x6,
            notes.WINOGRAD_TILE_13x13,
        ]  # fmt: skip
    return found


def in_eights(kind: str, shape: ConvShape) -> ConvShape:
    """Return the shape with the channels of one group, if there is one, filled up to eights.

    Then more engines that use tensor cores take it. The forward pass takes any number of outputs.
    """
    if shape.groups > 1:
        return shape
    (n, c, h, w), (o, _, kh, kw) = shape.x, shape.w
    c = -(-c // _EIGHT) * _EIGHT
    if kind != "forward":
        o = -(-o // _EIGHT) * _EIGHT
    return replace(shape, x=(n, c, h, w), w=(o, c, kh, kw), y=(n, o, *shape.y[2:]))


def operand_shapes(kind: str, shape: ConvShape) -> tuple[Shape, Shape, Shape]:
    """Return the shapes of both operands and of the result."""
    x, w, y = shape.x, shape.w, shape.y
    return {"forward": (x, w, y), "dx": (y, w, x), "dw": (x, y, w)}[kind]


def _strides(dims: Shape) -> list[int]:
    """Return the strides, in values, of an array that has its channels last in memory."""
    _, c, h, w = dims
    return [h * w * c, 1, w * c, c]
