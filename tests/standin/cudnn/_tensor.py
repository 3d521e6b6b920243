"""The description of one tensor of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hostgpu import memory, numerics

from cudnn._enums import data_type

_TYPES = tuple(data_type)
DTYPES = {
    data_type.FLOAT: np.dtype("f4"),
    data_type.DOUBLE: np.dtype("f8"),
    data_type.BFLOAT16: np.dtype("u2"),
}


class tensor:
    """Shape, strides in values, and type; `uid` is what its pointer is passed under."""

    def __init__(self, name: str = "", virtual: bool = False) -> None:
        self.dim: list[int] = []
        self.stride: list[int] = []
        self.data_type = data_type.NOT_SET
        self.uid: int | None = None
        self.name = name
        self.virtual = virtual
        self.alignment = 16

    def set_dim(self, dim: Sequence[int], /) -> tensor:
        self.dim = integers(dim)
        return self

    def set_stride(self, stride: Sequence[int], /) -> tensor:
        self.stride = integers(stride)
        return self

    def set_data_type(self, data_type: data_type) -> tensor:
        if data_type not in _TYPES:
            raise TypeError(f"a data type, not {data_type!r}")
        self.data_type = data_type
        return self

    def set_uid(self, uid: int, /) -> tensor:
        self.uid = integers([uid])[0]
        return self

    def set_name(self, name: str, /) -> tensor:
        self.name = name
        return self

    def set_output(self, output: bool, /) -> tensor:
        self.virtual = not output
        return self

    def set_alignment(self, alignment: int, /) -> tensor:
        self.alignment = alignment
        return self

    def get_dim(self) -> list[int]:
        return list(self.dim)

    def get_stride(self) -> list[int]:
        return list(self.stride)

    def get_uid(self) -> int:
        return self.uid or 0

    def get_name(self) -> str:
        return self.name

    def get_data_type(self) -> data_type:
        return self.data_type

    def get_is_virtual(self) -> bool:
        return self.virtual

    def check(self) -> None:
        """Raise ValueError where the description is incomplete."""
        what = f"Tensor '{self.name}'"
        if not self.dim:
            raise ValueError(f"{what} does not have dims set.")
        if len(self.dim) != len(self.stride):
            raise ValueError(f"{what} does not equal dimensionality in dim and stride.")
        if self.data_type not in DTYPES:
            raise ValueError(f"{what} has no data type, or one that the stand-in does not know.")
        if not self.virtual and self.uid is None:
            raise ValueError(f"{what} has no uid.")

    def at(self, address: int) -> np.ndarray:
        """Return the array at an address, which must be aligned and lie in live memory."""
        if address % self.alignment:
            raise memory.AddressError(
                f"tensor {self.uid}: {address:#x} is not aligned to {self.alignment} bytes"
            )
        return numerics.strided(address, DTYPES[self.data_type], self.dim, self.stride)

    def load(self, stored: np.ndarray) -> np.ndarray:
        """Return what is stored as floats."""
        return numerics.from_bf16(stored) if self.data_type is data_type.BFLOAT16 else stored

    def store(self, stored: np.ndarray, value: np.ndarray) -> None:
        """Store floats."""
        stored[...] = numerics.to_bf16(value) if self.data_type is data_type.BFLOAT16 else value


def integers(values: Sequence[int]) -> list[int]:
    """Return the values as a list; TypeError for anything but ints, as the bindings raise."""
    if not isinstance(values, (list, tuple)) or not all(type(v) is int for v in values):
        raise TypeError(f"a list of ints, not {values!r}")
    return list(values)
