"""Least squares by Levenberg and Marquardt, for the few parameters of a model of a table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

STEP = 1e-6
"""By how much a parameter is changed to see what depends on it."""

LEAST_DAMPING = 1e-4
"""As a part of the damping, for parameters on which nothing depends."""


def least_squares(residuals: Callable[[Values], Values], start: Values, turns: int = 500) -> Values:
    """Return the parameters (k,) near `start` that make the sum of squares of `residuals` least.

    K. Levenberg 1944; D. W. Marquardt 1963. `residuals` gives (m,) for (k,).
    """
    found, damping = np.array(start, float), 1e-2
    left = residuals(found)
    for _ in range(turns):
        slope = np.stack([residuals(found + each) - left for each in STEP * np.eye(found.size)], 1)
        slope /= STEP
        square = slope.T @ slope
        damped = square + damping * (np.diag(np.diag(square)) + LEAST_DAMPING * np.eye(found.size))
        trial = found - np.linalg.solve(damped, slope.T @ left)
        with np.errstate(all="ignore"):  # too long a step may lead anywhere
            after = residuals(trial)
        if np.isfinite(after).all() and after @ after < left @ left:
            found, left, damping = trial, after, damping / 3
        elif damping > 1e12:
            break
        else:
            damping *= 4
    return found


def rms(residuals: Values) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(residuals**2)))
