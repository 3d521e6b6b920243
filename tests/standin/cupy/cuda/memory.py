"""Stand in for cupy.cuda.memory."""

from cupy._memory import (  # noqa: F401
    Memory,
    MemoryPointer,
    MemoryPool,
    OutOfMemoryError,
)
