"""Stand in for cupy.cuda.nccl."""

from cupy_backends.cuda.libs.nccl import *  # noqa: F403
