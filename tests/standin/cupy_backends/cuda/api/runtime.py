"""Stand in for cupy_backends.cuda.api.runtime."""

from cupy.cuda.runtime import *  # noqa: F403
