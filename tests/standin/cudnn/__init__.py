"""Stand in for cuDNN Frontend 1.23 where there is no GPU (see `hostgpu`): graphs of convolutions.

A graph is checked as the real one checks it, and offers a few plans of the kinds that a device
has: some round their operands, some are not deterministic, need much memory, or turn out not to
be supported when built. What each computes shows which one was taken. Real engines, what they
support and how fast they are is not checked.
"""

from cudnn._enums import (  # noqa: F401
    build_plan_policy,
    cudnnGraphNotSupportedError,
    data_type,
    heur_mode,
    numerical_note,
    reduction_mode,
)
from cudnn._graph import pygraph  # noqa: F401
from cudnn._handle import (  # noqa: F401
    backend_version,
    backend_version_string,
    create_handle,
    destroy_handle,
    get_stream,
    set_stream,
)
from cudnn._tensor import tensor  # noqa: F401

__version__ = "1.23.0"
