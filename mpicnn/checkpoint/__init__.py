"""Checkpoints: whole arrays in one HDF5 file that is there entirely or not at all.

A file says nothing about ranks: a run may go on with another number of them and other shares.
What is inside, and how to read it without this package: docs/checkpoint-format.md.
"""

from mpicnn.checkpoint.blocks import Tensor
from mpicnn.checkpoint.file import (
    Outline,
    compare,
    fill,
    read_meta,
    read_outline,
    read_tensors,
    verify,
)
from mpicnn.checkpoint.store import Checkpoints

__all__ = [
    "Checkpoints",
    "Outline",
    "Tensor",
    "compare",
    "fill",
    "read_meta",
    "read_outline",
    "read_tensors",
    "verify",
]
