"""The graph: described, validated, built, then executed on device addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hostgpu import memory, streams
from hostgpu.counts import counts

from cudnn._describe import NOT_SET, Description
from cudnn._enums import (
    build_plan_policy,
    cudnnGraphNotSupportedError,
    data_type,
    heur_mode,
    numerical_note,
)
from cudnn._handle import get_stream
from cudnn._plans import Plan, plans
from cudnn._tensor import tensor


class pygraph(Description):
    """Operations on tensors. The steps of making it ready must come in cuDNN's order."""

    def __init__(
        self,
        name: str = "test_graph",
        io_data_type: data_type = NOT_SET,
        intermediate_data_type: data_type = NOT_SET,
        compute_data_type: data_type = NOT_SET,
        handle: int | None = None,
        sm_count: Any = None,
        sm_version: Any = None,
        kernel_cache: Any = None,
        device_property: Any = None,
        is_dynamic_shape_enabled: bool = False,
        is_override_shape_enabled: bool = False,
    ) -> None:
        if handle is not None:
            get_stream(handle)
        super().__init__(compute_data_type)
        self._io, self._between = io_data_type, intermediate_data_type
        self._plans: list[Plan] | None = None
        self._chosen: int | None = None
        self._stage = "described"

    # making ready

    def _advance(self, need: str, reach: str) -> None:
        if self._stage != need:
            raise RuntimeError(f"the graph is {self._stage}, and must be {need} here")
        self._stage = reach

    def validate(self) -> None:
        used = {id(t) for node in self._nodes for t in node.operands}
        for node in self._nodes:
            node.infer()
            if node.out.virtual and id(node.out) not in used:
                raise ValueError(f"Nobody sees '{node.out.name}': set_output(True)")
        for one in self._tensors:
            if one.data_type is NOT_SET:
                one.data_type = self._between if one.virtual else self._io
            one.check()
        self._advance("described", "validated")

    def build_operation_graph(self) -> None:
        uids = [t.uid for t in self._tensors if t.uid is not None]
        for uid in uids:
            if uids.count(uid) > 1:
                raise RuntimeError(f"uid {uid} has been already assigned to another tensor.")
        for node in self._nodes:
            node.check()
        self._advance("validated", "built")

    def create_execution_plans(self, modes: list[heur_mode], /) -> None:
        self._advance("built", "planned")
        self._plans = plans(self._nodes, modes)

    def build(self, modes: list[heur_mode] | None = None, /) -> None:
        self.validate()
        self.build_operation_graph()
        self.create_execution_plans(modes or [heur_mode.A])
        self.check_support()
        self.build_plans()

    def _at(self, index: int) -> Plan:
        if self._plans is None or not 0 <= index < len(self._plans):
            raise RuntimeError(f"Plan index {index} is invalid.")
        return self._plans[index]

    def deselect_numeric_notes(self, notes: list[numerical_note], /) -> None:
        for plan in self._needed():
            plan.wanted &= not plan.notes & set(notes)

    def select_numeric_notes(self, notes: list[numerical_note], /) -> None:
        for plan in self._needed():
            plan.wanted &= set(notes) <= plan.notes

    def deselect_workspace_greater_than(self, size: int, /) -> None:
        for plan in self._needed():
            plan.wanted &= plan.workspace <= size

    def _needed(self) -> list[Plan]:
        if self._plans is None:
            raise RuntimeError("create execution plans first")
        return self._plans

    def check_support(self) -> None:
        if not any(plan.wanted and plan.supported for plan in self._needed()):
            raise cudnnGraphNotSupportedError("No plan is left")

    def build_plans(self, policy: build_plan_policy = build_plan_policy.HEURISTICS_CHOICE) -> None:
        for index, plan in enumerate(self._needed()):
            if plan.wanted and plan.supported:
                self.build_plan_at_index(index)
                if policy is build_plan_policy.HEURISTICS_CHOICE:
                    return
        if self._chosen is None:
            raise cudnnGraphNotSupportedError("No plan is left")

    def build_plan_at_index(self, index: int) -> None:
        plan = self._at(index)
        if not plan.wanted:
            raise cudnnGraphNotSupportedError("Deselecting execution plan")
        if not plan.supported:
            raise cudnnGraphNotSupportedError("CUDNN_STATUS_NOT_SUPPORTED")
        plan.built = True
        self._chosen = index if self._chosen is None else self._chosen

    def get_execution_plan_count(self) -> int:
        return len(self._plans or [])

    def get_plan_name_at_index(self, index: int) -> str:
        return self._at(index).name

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        if not self._at(index).built:
            raise RuntimeError(f"plan {index} is not built")
        return self._at(index).workspace

    def get_workspace_size(self) -> int:
        if self._chosen is None:
            raise RuntimeError("no plan is built")
        return self._at(self._chosen).workspace

    # executing

    def execute(
        self,
        tensor_to_device_buffer: Mapping[int | tensor, Any],
        workspace: Any,
        handle: int | None = None,
    ) -> None:
        if self._chosen is None:
            raise RuntimeError("no plan is built")
        self.execute_plan_at_index(tensor_to_device_buffer, workspace, self._chosen, handle)

    def execute_plan_at_index(
        self,
        tensor_to_device_buffer: Mapping[int | tensor, Any],
        workspace: Any,
        index: int,
        handle: int | None = None,
    ) -> None:
        plan = self._at(index)
        if not plan.built:
            raise RuntimeError(f"plan {index} is not built")
        if handle is None:
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: no handle")
        places = {
            key if isinstance(key, int) else key.uid: _pointer(value)
            for key, value in tensor_to_device_buffer.items()
        }
        real = [t for t in self._tensors if not t.virtual]
        if set(places) != {t.uid for t in real}:
            raise RuntimeError(f"pointers for {sorted(places)}, tensors {[t.uid for t in real]}")
        stored = {id(t): t.at(places[t.uid]) for t in real}
        outputs = [node.out for node in self._nodes if not node.out.virtual]
        for out in outputs:
            for other in real:
                if other is not out and np.may_share_memory(stored[id(out)], stored[id(other)]):
                    raise memory.AddressError(f"tensor {out.uid} lies on tensor {other.uid}")
        scratch = _scratch(_pointer(workspace), plan.workspace)

        def work() -> None:
            scratch.fill(0xFF)
            values = {id(t): t.load(stored[id(t)]) for t in real if t not in outputs}
            noise = plan.noise()
            for node in self._nodes:
                value = node.compute(values, plan.rounding)
                values[id(node.out)] = value * np.float32(noise) if noise != 1 else value
            for out in outputs:
                out.store(stored[id(out)], values[id(out)])

        counts.launched("cudnn", *stored.values())
        streams.find(get_stream(handle)).put(work)


def _pointer(value: Any) -> int:
    if type(value) is int:
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return int(value.data.ptr)
    raise TypeError(f"an address or a device array, not {value!r}")


def _scratch(address: int, size: int) -> np.ndarray:
    """Return the workspace, which the plan writes to."""
    if not size:
        return np.empty(0, np.uint8)
    block = memory.find(address, size)
    return block.bytes[address - block.address :][:size]
