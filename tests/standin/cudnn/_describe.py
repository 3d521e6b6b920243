"""Describing a graph: its tensors, and the operations between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cudnn._enums import convolution_mode, data_type, reduction_mode
from cudnn._nodes import Convolution, Node, Pointwise, Reduction
from cudnn._tensor import integers, tensor

NOT_SET = data_type.NOT_SET


class Description:
    """The tensors and operations of a graph, in the order in which they were named."""

    def __init__(self, compute: data_type) -> None:
        self._compute = compute
        self._tensors: list[tensor] = []
        self._nodes: list[Node] = []

    def tensor(
        self,
        dim: Sequence[int],
        stride: Sequence[int],
        data_type: data_type = NOT_SET,
        is_virtual: bool = False,
        is_pass_by_value: bool = False,
        ragged_offset: Any = None,
        reordering_type: Any = None,
        name: str = "",
        uid: int = -1,
    ) -> tensor:
        made = tensor(name, is_virtual).set_dim(dim).set_stride(stride).set_data_type(data_type)
        if uid >= 0:
            made.set_uid(uid)
        self._tensors.append(made)
        return made

    def _convolution(
        self, kind: str, x: tensor, w: tensor, y: tensor, out: tensor, window: Mapping[str, Any]
    ) -> tensor:
        window = dict(window)
        padding = integers(window.pop("padding", []))
        before = integers(window.pop("pre_padding", padding))
        after = integers(window.pop("post_padding", padding))
        stride = integers(window.pop("stride", []))
        dilation = integers(window.pop("dilation", []))
        compute = window.pop("compute_data_type", NOT_SET)
        mode = window.pop("convolution_mode", convolution_mode.CROSS_CORRELATION)
        out.name = window.pop("name", "") or kind
        if window:
            raise TypeError(f"incompatible arguments: {', '.join(window)}")
        if mode is not convolution_mode.CROSS_CORRELATION:
            raise NotImplementedError("the stand-in knows cross-correlation only")
        if NOT_SET is compute is self._compute:
            raise ValueError("no compute data type")
        self._nodes.append(Convolution(kind, x, w, y, before, after, stride, dilation))
        return out

    def conv_fprop(self, image: tensor, weight: tensor, **window: Any) -> tensor:
        out = self._result()
        return self._convolution("fprop", image, weight, out, out, window)

    def conv_dgrad(self, loss: tensor, filter: tensor, **window: Any) -> tensor:
        out = self._result()
        return self._convolution("dgrad", out, filter, loss, out, window)

    def conv_wgrad(self, image: tensor, loss: tensor, **window: Any) -> tensor:
        out = self._result()
        return self._convolution("wgrad", image, out, loss, out, window)

    def bias(
        self,
        input: tensor,
        bias: tensor,
        compute_data_type: data_type = NOT_SET,
        name: str = "",
    ) -> tensor:
        return self._node(Pointwise("add", (input, bias), self._result(name)))

    def add(
        self, a: tensor, b: tensor, compute_data_type: data_type = NOT_SET, name: str = ""
    ) -> tensor:
        return self._node(Pointwise("add", (a, b), self._result(name)))

    def relu(
        self,
        input: tensor,
        negative_slope: float | None = None,
        lower_clip: float | None = None,
        upper_clip: float | None = None,
        compute_data_type: data_type = NOT_SET,
        name: str = "",
    ) -> tensor:
        if (negative_slope, lower_clip, upper_clip) != (None, None, None):
            raise NotImplementedError("the stand-in knows plain relu only")
        return self._node(Pointwise("relu", (input,), self._result(name)))

    def reduction(
        self,
        input: tensor,
        mode: reduction_mode,
        compute_data_type: data_type = NOT_SET,
        name: str = "",
    ) -> tensor:
        return self._node(Reduction((input,), self._result(name), mode))

    def _result(self, name: str = "") -> tensor:
        made = tensor(name, virtual=True)
        self._tensors.append(made)
        return made

    def _node(self, node: Node) -> tensor:
        self._nodes.append(node)
        return node.out
