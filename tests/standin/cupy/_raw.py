"""Kernels from source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hostgpu import compile, kernel, streams

from cupy.cuda.compiler import CompileException


class RawKernel:
    """A kernel that can be launched; of a module, or compiled from a source of its own."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        *,
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        jitify: bool | None = None,
    ) -> None:
        self.name = name
        self._kernel = RawModule(code=code, options=options, backend=backend)._get(name)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        queue = streams.current() if stream is None else streams.find(stream.ptr)
        # CuPy launches one block for a grid of none
        sizes = [tuple(max(1, n) for n in (*shape, 1, 1)[:3]) for shape in (grid, block)]
        self._kernel.launch(queue, *sizes, shared_mem, args)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._kernel.max_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count: int) -> None:
        if count > 227 << 10:
            raise ValueError(f"no device has {count} bytes of shared memory for a block")
        self._kernel.max_shared = count


class RawModule:
    """Kernels compiled together, when the first of them is asked for."""

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: bool | None = None,
    ) -> None:
        if code is None:
            raise TypeError("the stand-in compiles sources only: give code")
        if not isinstance(options, tuple):
            raise TypeError(f"options must be a tuple, not {type(options).__name__}")
        if name_expressions is not None or backend != "nvrtc":
            raise NotImplementedError("the stand-in knows no name_expressions, and only nvrtc")
        self.code = code
        self.options = options
        self._module: kernel.Module | None = None

    def compile(self, log_stream: Any = None) -> None:
        if self._module is None:
            try:
                self._module = kernel.Module(self.code, self.options)
            except compile.CompileError as error:
                raise CompileException(str(error), self.code, "kernel.cu", self.options) from None

    def _get(self, name: str) -> kernel.Kernel:
        from cupy_backends.cuda.api.driver import CUDADriverError

        self.compile()
        if name not in self._module.names:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        return kernel.Kernel(self._module, name)

    def get_function(self, name: str) -> RawKernel:
        found = object.__new__(RawKernel)
        found.name, found._kernel = name, self._get(name)
        return found
