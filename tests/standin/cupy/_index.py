"""Indices of device arrays: which give views, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import numpy as np


def basic(key: Any) -> tuple[Any, ...]:
    """Return a key under which NumPy gives a view and never a scalar."""
    key = _parts(key)
    return key if any(part is Ellipsis for part in key) else (*key, ...)


def advanced(key: Any) -> bool:
    """Return whether a key picks items by number or by a mask, which makes a copy."""
    return any(isinstance(p, (list, np.ndarray, bool)) or _is_device(p) for p in _parts(key))


def uploaded(key: Any) -> tuple[Any, ...]:
    """Return a key with its lists and host arrays on the device, as CuPy puts them there."""
    from cupy import asarray

    return tuple(asarray(p) if isinstance(p, (list, np.ndarray)) else p for p in _parts(key))


def has_mask(key: tuple[Any, ...]) -> bool:
    """Return whether the result's shape depends on what is on the device."""
    return any(_is_device(part) and part.dtype == bool for part in key)


def on_host(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a key with its device arrays fetched, which waits for them."""
    return tuple(part.get() if _is_device(part) else part for part in key)


def _parts(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _is_device(part: Any) -> bool:
    return hasattr(part, "__cuda_array_interface__")
