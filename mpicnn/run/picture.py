"""Draw pictures by matplotlib, where it is installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mpicnn.errors import UserError


def figure(what: str, width: float, height: float) -> Any:
    """Return an empty figure (inches). Raises UserError, saying `what` needs it, without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"{what} need matplotlib: pip install 'mpicnn[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises UserError where that is not possible."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with warnings.catch_warnings():  # of characters that its font lacks
            warnings.simplefilter("ignore")
            drawn.savefig(unfinished, dpi=150, format="png")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
