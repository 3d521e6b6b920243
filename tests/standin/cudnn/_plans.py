"""The plans that a graph is offered: engines with their notes, memory and rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from hostgpu import numerics

from cudnn._enums import cudnnGraphNotSupportedError, data_type, heur_mode, numerical_note
from cudnn._nodes import Convolution, Node, types


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(x.dtype)


def _coarse(x: np.ndarray) -> np.ndarray:
    return np.round(x * 4) / 4


@dataclass
class Plan:
    """One engine: what it does to its operands, and to its sums from one call to the next."""

    name: str
    notes: frozenset[numerical_note]
    workspace: int = 0
    rounding: Callable[[np.ndarray], np.ndarray] = _same
    supported: bool = True
    wanted: bool = True
    built: bool = field(default=False, init=False)
    calls: int = field(default=0, init=False)

    def noise(self) -> float:
        """Return the factor that makes sums differ from call to call, or 1."""
        self.calls += 1
        unsteady = numerical_note.NONDETERMINISTIC in self.notes
        return 1 + 1e-6 * (self.calls % 2) if unsteady else 1


def plans(nodes: list[Node], modes: Sequence[heur_mode]) -> list[Plan]:
    """Return the plans for a graph, fast ones first; raise where there are none."""
    convolutions = [node for node in nodes if isinstance(node, Convolution)]
    if len(convolutions) != 1 or nodes[0] is not convolutions[0]:
        raise cudnnGraphNotSupportedError("No valid engine configs for this graph")
    node = convolutions[0]
    found: list[Plan] = []
    if types(node) == {data_type.FLOAT} and node.out.data_type is data_type.FLOAT:
        found = _float_plans(node, modes)
    elif types(node) == {data_type.BFLOAT16}:
        found = _bf16_plans(node, modes)
    if not found:
        raise cudnnGraphNotSupportedError("No valid engine configs for this convolution")
    return found


def _float_plans(node: Convolution, modes: Sequence[heur_mode]) -> list[Plan]:
    found: list[Plan] = []
    if heur_mode.A in modes:
        found += [
            _plan("eng0_unbuildable", "TENSOR_CORE", supported=False),
            _plan("eng1_half", "TENSOR_CORE DOWN_CONVERT_INPUTS", rounding=_half),
            _plan("eng2_tf32", "TENSOR_CORE", workspace=768, rounding=numerics.round_tf32),
            _plan("eng3_huge", "", workspace=1 << 40),
        ]
        if node.kind != "fprop":
            found.append(_plan("eng4_unsteady", "NONDETERMINISTIC"))
        if node.w.dim[2:] == [3, 3] and node.stride == node.dilation == [1, 1]:
            found.append(_plan("eng5_winograd", "WINOGRAD WINOGRAD_TILE_4x4", workspace=4096))
    if heur_mode.FALLBACK in modes:
        found.append(_plan("eng6_plain", "", workspace=1000))
    return found


def _bf16_plans(node: Convolution, modes: Sequence[heur_mode]) -> list[Plan]:
    """Return one plan where float32 is to be written, several for bf16, with any channels too."""
    eights, found = _in_eights(node), list[Plan]()
    if heur_mode.A in modes and eights:
        found = [
            _plan("eng0_unbuildable", "TENSOR_CORE", supported=False),
            _plan("eng1_bf16", "TENSOR_CORE", workspace=512),
        ]
    if node.out.data_type is data_type.BFLOAT16:
        if heur_mode.A in modes:
            found.append(_plan("eng2_reduced", "REDUCED_PRECISION_REDUCTION", rounding=_coarse))
            found += [_plan(f"eng{n}_any", "TENSOR_CORE", workspace=64 * n) for n in range(3, 9)]
        if heur_mode.FALLBACK in modes:
            found.append(_plan("eng9_plain", "", workspace=1000))
    return found


def _plan(name: str, notes: str, **details: object) -> Plan:
    return Plan(name, frozenset(numerical_note[note] for note in notes.split()), **details)


def _in_eights(node: Convolution) -> bool:
    """Return whether channels come in eights, as engines for bf16 want them.

    A forward pass may have any number of outputs.
    """
    counts = [node.w.dim[1]] + ([] if node.kind == "fprop" else [node.w.dim[0] // node.groups])
    return not any(count % 8 for count in counts)
