"""The precisions that a network can be computed in, and the numbers its arrays hold."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from mpicnn.errors import DeviceError

Name = Literal["float32", "float64", "tf32", "bf16"]
NAMES: tuple[Name, ...] = get_args(Name)


def dtype_of(precision: str) -> np.dtype[np.floating]:
    """Return the dtype of all arrays between layers, of parameters and of what ranks exchange.

    "tf32" (10 bits of fraction) and "bf16" (7) are only what the products of convolutions and
    fully connected layers round their operands to: their sums and everything else is float32. In
    bf16 on a GPU, results of convolutions, gradients of weights among them, are rounded as well.
    """
    return np.dtype("float64" if precision == "float64" else "float32")


def refuse(precision: str, device: str, lacking: str) -> DeviceError:
    """Return the error of a device that has no products of a precision."""
    return DeviceError(f"precision {precision}: {device} has no {lacking}; use precision float32")
