"""The environment of this process: the one place where it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping

Environ = Mapping[str, str]


def environment() -> Environ:
    """Return the environment, read now."""
    return dict(os.environ)
