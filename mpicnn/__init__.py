"""Train convolutional networks over MPI ranks.

What is named here may be used from Python; everything is imported when it is first asked for.

fit       train a network, as `python -m mpicnn.train` does
load      a trained network from a run directory or a checkpoint file
Settings  the settings of a training run
models    networks by name, from a user's file, or built from layers
layers    what networks are made of
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpicnn import layers as layers
    from mpicnn import models as models
    from mpicnn.api import fit as fit
    from mpicnn.api import load as load
    from mpicnn.settings.definitions import Settings as Settings

__version__ = "0.1.0"

_PLACES = {"fit": "api", "load": "api", "Settings": "settings.definitions"}

__all__ = ["Settings", "fit", "layers", "load", "models"]


def __getattr__(name: str) -> Any:
    if name in ("layers", "models"):
        return import_module(f"mpicnn.{name}")
    if name in _PLACES:
        return getattr(import_module(f"mpicnn.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mpicnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
