"""Find the module that computes on one kind of device: one backend, the same functions.

Layers are handed such a module and never ask which one it is.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from mpicnn.errors import DeviceError, UserError
from mpicnn.ops.interface import Backend

if TYPE_CHECKING:
    from mpicnn.ops import cuda, native, numpy

    # the type checker holds each module against the protocol here
    _ALL: tuple[Backend, ...] = (numpy, native, cuda)

BACKENDS = ("numpy", "native", "cuda")


def load(name: str) -> Backend:
    """Return the backend `name`: "numpy", "native", "cuda", or "auto".

    "auto" is native where it was built and numpy elsewhere; a GPU is only used when asked for.
    Raises UserError for an unknown name and DeviceError for a backend that is not there.
    """
    if name == "auto":
        return load("native" if missing("native") is None else "numpy")
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise UserError(f"backend {name!r} is not known: choose one of {known}")
    problem = missing(name)
    if problem is not None:
        raise DeviceError(f"backend {name} cannot be used here: {problem}")
    return cast(Backend, import_module(f"mpicnn.ops.{name}"))


def available() -> tuple[str, ...]:
    """Return the names of the backends that can be loaded here."""
    return tuple(name for name in BACKENDS if missing(name) is None)


def missing(name: str) -> str | None:
    """Return why a backend cannot be imported here, None where it can."""
    module = f"mpicnn.ops.{name}"
    if find_spec(module) is None:
        return "it is not part of this installation"
    try:
        import_module(module)
    except ImportError as error:
        return str(error)
    return None
