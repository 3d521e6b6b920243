"""Packages that only some need, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mpicnn.errors import UserError

REMEDIES = {"torch": "pip install torch"}
"""What installs a package; the others are in the extra `onnx`."""


def needed(name: str, what: str) -> Any:
    """Return the module `name`, without which `what` ("ONNX files") cannot be read or written.

    Raises UserError, with what to install, where it is missing or cannot be loaded.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        remedy = REMEDIES.get(package, "pip install 'mpicnn[onnx]'")
        found = "" if error.name == package else f" ({error})"
        raise UserError(f"{what} need the package {package}{found}: {remedy}") from None
