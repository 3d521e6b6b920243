"""Start kernels: check arguments against the compiled signature, queue the call, check guards."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from hostgpu import compile, memory, streams
from hostgpu.counts import counts

MAX_SHARED = 48 << 10  # bytes of dynamic shared memory unless a kernel's attribute raises it
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)


class LaunchError(RuntimeError):
    """Say what a kernel did that a device would punish, or never return from."""


class Module:
    """A compiled source."""

    def __init__(self, source: str, options: tuple[str, ...]) -> None:
        self.library = compile.library(source, options)
        self.names = compile.kernels(source)


# Kernels run one at a time: their arguments lie in variables that all libraries share.
_running = threading.Lock()


class Kernel:
    """One kernel of a module."""

    def __init__(self, module: Module, name: str) -> None:
        if name not in module.names:
            raise KeyError(name)
        self.name = name
        self.max_shared = MAX_SHARED
        self._launch = getattr(module.library, f"standin_launch_{name}")
        self._launch.restype = None
        text = ctypes.create_string_buffer(4096)
        with _running:
            getattr(module.library, f"standin_signature_{name}")(text)
        self.parameters = text.value.decode().split(",")[:-1]

    def launch(
        self,
        queue: streams.Queue,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        arguments: Sequence[Any],
    ) -> None:
        """Queue a launch. `arguments` are NumPy scalars or device arrays (see `Argument`)."""
        self._check_shape(grid, block, shared)
        if len(arguments) != len(self.parameters):
            raise TypeError(
                f"{self.name} takes {len(self.parameters)} arguments, not {len(arguments)}"
            )
        values, blocks = [], []
        for place, (want, value) in enumerate(zip(self.parameters, arguments, strict=True)):
            scalar, block_of = _argument(f"argument {place} of {self.name}", want, value)
            values.append(scalar)
            blocks.append(block_of)
        held = [b for b in blocks if b is not None]

        def work() -> None:
            pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
            text = ctypes.create_string_buffer(512)
            with _running:
                self._launch(
                    (ctypes.c_uint * 3)(*grid),
                    (ctypes.c_uint * 3)(*block),
                    ctypes.c_size_t(shared),
                    pointers,
                    text,
                    ctypes.c_size_t(len(text)),
                )
            if text.value:
                raise LaunchError(f"{self.name}: {text.value.decode()}")
            for one in held:
                try:
                    one.check()
                except memory.AddressError as fault:
                    raise memory.AddressError(f"{self.name}: {fault}") from None

        given = [v for v in arguments if hasattr(v, "__cuda_array_interface__")]
        counts.launched(self.name, *given)
        queue.put(work)

    def _check_shape(self, grid: Sequence[int], block: Sequence[int], shared: int) -> None:
        if any(not 1 <= g <= most for g, most in zip(grid, _MAX_GRID, strict=True)):
            raise LaunchError(f"{self.name}: no device takes a grid of {tuple(grid)} blocks")
        sizes = zip(block, _MAX_BLOCK, strict=True)
        if any(not 1 <= b <= most for b, most in sizes) or np.prod(block, dtype=object) > 1024:
            raise LaunchError(f"{self.name}: no device takes a block of {tuple(block)} threads")
        if shared > self.max_shared:
            raise LaunchError(
                f"{self.name}: {shared} bytes of shared memory, {self.max_shared} are allowed"
            )


def _argument(what: str, want: str, value: Any) -> tuple[np.ndarray, memory.Block | None]:
    """Return an argument as a 0-d array of what the kernel reads, and the block it points into."""
    if want.startswith("P"):
        address = _address(what, want[1:], value)
        held = memory.find(address) if address else None
        return np.array(address, np.uint64), held
    if not isinstance(value, np.generic):
        raise TypeError(f"{what} must be a NumPy scalar of {want}, not {type(value).__name__}")
    if value.dtype != np.dtype(want):
        raise TypeError(f"{what} must be {np.dtype(want)}, not {value.dtype}")
    return np.array(value), None


def _address(what: str, item: str, value: Any) -> int:
    if isinstance(value, np.uint64):
        return int(value)
    if not hasattr(value, "__cuda_array_interface__"):
        raise TypeError(f"{what} must be a device array or np.uint64, not {type(value).__name__}")
    have = value.dtype
    # bytes and vectors may be read from any array; a float32 where a float64 is meant may not
    if re.fullmatch(r"[fiu][248]", item):
        want = np.dtype(item)
        if (have.itemsize, have.kind == "f") != (want.itemsize, want.kind == "f"):
            raise TypeError(f"{what} must point to {want}, not to {have}")
    return int(value.data.ptr)
