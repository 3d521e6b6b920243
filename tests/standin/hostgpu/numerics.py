"""The formats of tensor cores in NumPy, and arrays at device addresses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hostgpu import memory


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bf16, nearest even, as the bits in uint16."""
    return (_rounded_bits(np.asarray(x, np.float32), 16) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_tf32(x: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to TF32, which keeps 10 bits after the leading one."""
    bits = _rounded_bits(np.asarray(x, np.float32), 13)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _rounded_bits(x: np.ndarray, dropped: int) -> np.ndarray:
    bits = np.ascontiguousarray(x).view(np.uint32)
    odd = (bits >> np.uint32(dropped)) & np.uint32(1)
    rounded = bits + (np.uint32((1 << (dropped - 1)) - 1) + odd)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, bits | np.uint32(1 << 22), rounded).reshape(x.shape)


def strided(
    address: int, dtype: np.dtype, shape: Sequence[int], strides: Sequence[int]
) -> np.ndarray:
    """Return the array at a device address, strides in values; it must lie in one block."""
    dtype = np.dtype(dtype)
    if 0 in shape:
        return np.empty(shape, dtype)
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(strides, default=0) < 0:
        raise ValueError(f"negative strides {tuple(strides)}")
    if address % dtype.itemsize:
        raise memory.AddressError(f"address {address:#x} is not aligned for {dtype}")
    block = memory.find(address, (last + 1) * dtype.itemsize)
    if block.pinned:
        raise memory.AddressError(f"address {address:#x} is host memory")
    start = address - block.address
    steps = [step * dtype.itemsize for step in strides]
    return np.ndarray(tuple(shape), dtype, block.bytes, start, tuple(steps))
