"""PyTorch's counterpart of every kernel, called with the same arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from calls import Call
from numpy.typing import NDArray
from torch.nn import functional

from mpicnn.ops.window import Window

Array = NDArray[Any]
Tensor = torch.Tensor
aten = torch.ops.aten

VARIANTS = ("eager", "channels-last")


def counterpart(call: Call, variant: str) -> Callable[[], Any] | None:
    """Return a function that does in PyTorch what `call` does; None where the variant is no other.

    Under "channels-last" images lie as n h w c in memory.
    """
    laid_out = variant == "channels-last"
    if laid_out and not any(isinstance(a, np.ndarray) and a.ndim == 4 for a in call.args):
        return None

    def tensor(array: Array) -> Tensor:
        # a copy: sgd changes its arguments
        found = torch.tensor(array)
        return (
            found.contiguous(memory_format=torch.channels_last)
            if found.ndim == 4 and laid_out
            else found
        )

    args = [tensor(a) if isinstance(a, np.ndarray) else a for a in call.args]
    return _MAKERS[call.op](*args)


def _conv2d(
    x: Tensor, w: Tensor, b: Tensor | None, window: Window, relu: bool
) -> Callable[[], Any]:
    how = window.stride, window.margins, window.dilation, window.groups
    return _finished(lambda: functional.conv2d(x, w, b, *how), relu)


def _linear(x: Tensor, w: Tensor, b: Tensor | None, relu: bool) -> Callable[[], Any]:
    return _finished(lambda: functional.linear(x, w, b), relu)


def _finished(product: Callable[[], Tensor], relu: bool) -> Callable[[], Tensor]:
    return (lambda: torch.relu_(product())) if relu else product


def _conv2d_gradient(
    dy: Tensor, x: Tensor, w: Tensor, wanted: list[bool], window: Window
) -> Tensor:
    how = window.stride, window.margins, window.dilation
    found = aten.convolution_backward(dy, x, w, None, *how, False, [0, 0], window.groups, wanted)
    return found[wanted.index(True)]


def _conv2d_dx(dy: Tensor, w: Tensor, x_shape: Any, window: Window) -> Callable[[], Any]:
    x = torch.empty(x_shape, memory_format=_format(dy))
    return lambda: _conv2d_gradient(dy, x, w, [True, False, False], window)


def _conv2d_dw(x: Tensor, dy: Tensor, w_shape: Any, window: Window) -> Callable[[], Any]:
    w = torch.empty(w_shape, memory_format=_format(x))
    return lambda: _conv2d_gradient(dy, x, w, [False, True, False], window)


def _maxpool(x: Tensor, kernel: Any, window: Window, ceil_mode: bool) -> Callable[[], Any]:
    how = kernel, window.stride, window.margins, window.dilation, ceil_mode
    return lambda: aten.max_pool2d_with_indices(x, *how)


def _maxpool_dx(
    dy: Tensor, place: Tensor, x_shape: Any, kernel: Any, window: Window
) -> Callable[[], Any]:
    stride, padding = window.stride, window.margins
    x = torch.empty(x_shape, memory_format=_format(dy))
    oh, ow = dy.shape[2:]
    line = torch.arange(oh)[:, None] * stride[0] - padding[0] + place.long() // kernel[1]
    column = torch.arange(ow) * stride[1] - padding[1] + place.long() % kernel[1]
    index = (line * x_shape[3] + column).contiguous(memory_format=_format(dy))
    ceil_mode = window.pool_shape(x_shape[2:], kernel, False) != (oh, ow)
    return lambda: aten.max_pool2d_with_indices_backward(
        dy, x, kernel, stride, padding, [1, 1], ceil_mode, index
    )


def _avgpool(x: Tensor, kernel: Any, window: Window, *flags: bool) -> Callable[[], Any]:
    return lambda: functional.avg_pool2d(x, kernel, window.stride, window.margins, *flags)


def _avgpool_dx(
    dy: Tensor, x_shape: Any, kernel: Any, window: Window, *flags: bool
) -> Callable[[], Any]:
    x = torch.empty(x_shape, memory_format=_format(dy))
    how = kernel, window.stride, window.margins, *flags
    return lambda: aten.avg_pool2d_backward(dy, x, *how, None)


def _lrn_dx(
    dy: Tensor, x: Tensor, y: Tensor, scale: Tensor, size: int, alpha: float, beta: float
) -> Callable[[], Any]:
    window = x[0, : (size - 1) // 2 + 1, 0, 0]
    k = float(scale[0, 0, 0, 0] - alpha / size * (window**2).sum())
    x.requires_grad_()
    again = functional.local_response_norm(x, size, alpha, beta, k)
    return lambda: torch.autograd.grad(again, x, dy, retain_graph=True)[0]


def _softmax_xent(logits: Tensor, labels: Tensor) -> Callable[[], Any]:
    logits.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return losses, torch.autograd.grad(losses.sum(), logits)[0]

    return step


def _dropout(x: Tensor, rate: float, *_: Any) -> Callable[[], Any]:
    return lambda: aten.native_dropout(x, rate, True)


def _sgd(
    w: Tensor, v: Tensor, g: Tensor, rate: float, momentum: float, decay: float
) -> Callable[[], Any]:
    return lambda: torch._fused_sgd_(
        [w], [g], [v], weight_decay=decay, momentum=momentum, lr=rate, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


def _format(like: Tensor) -> torch.memory_format:
    """Return the memory order of images."""
    channels_last = not like.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _sums(a: Tensor, b: Tensor | None = None) -> Callable[[], Any]:
    axes = [axis for axis in range(a.ndim) if axis != 1]
    return lambda: (a if b is None else a * b).sum(axes)


def _moments(x: Tensor, planes: bool = False) -> Callable[[], Any]:
    axes = [axis for axis in range(x.ndim) if axis != 1 and not (planes and axis == 0)]
    return lambda: torch.var_mean(x, axes)[::-1]


def _normalise(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Callable[[], Any]:
    mean, scale, shift = (_spread(a, x) for a in (mean, scale, shift))
    return lambda: torch.addcmul(shift, x - mean, scale)


def _normalise_sums(dy: Tensor, x: Tensor, mean: Tensor) -> Callable[[], Any]:
    axes = [axis for axis in range(x.ndim) if axis != 1 and not (mean.ndim == 2 and axis == 0)]
    mean = _spread(mean, x)
    return lambda: (dy.sum(axes), (dy * (x - mean)).sum(axes))


def _normalise_dx(dy: Tensor, x: Tensor, mean: Tensor, factors: Tensor) -> Callable[[], Any]:
    mean, scale, along, shift = (_spread(a, x) for a in (mean, *factors))
    return lambda: dy * scale - torch.addcmul(shift, x - mean, along)


def _spread(each: Tensor, x: Tensor) -> Tensor:
    return each.reshape(*each.shape, *(1,) * (x.ndim - 2))


_ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda x, _: torch.relu(x),
    "relu6": lambda x, _: functional.relu6(x),
    "leakyrelu": functional.leaky_relu,
    "hardswish": lambda x, _: functional.hardswish(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "tanh": lambda x, _: torch.tanh(x),
    "silu": lambda x, _: functional.silu(x),
    "gelu": lambda x, _: functional.gelu(x),
}
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "relu": lambda dy, y, _: aten.threshold_backward(dy, y, 0),
    "relu6": lambda dy, y, _: aten.hardtanh_backward(dy, y, 0, 6),
    "leakyrelu": lambda dy, y, slope: aten.leaky_relu_backward(dy, y, slope, True),
    "hardswish": lambda dy, x, _: aten.hardswish_backward(dy, x),
    "sigmoid": lambda dy, y, _: aten.sigmoid_backward(dy, y),
    "tanh": lambda dy, y, _: aten.tanh_backward(dy, y),
    "silu": lambda dy, x, _: aten.silu_backward(dy, x),
    "gelu": lambda dy, x, _: aten.gelu_backward(dy, x),
}

_MAKERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "conv2d": _conv2d,
    "conv2d_dx": _conv2d_dx,
    "conv2d_dw": _conv2d_dw,
    "linear": _linear,
    "linear_dx": lambda dy, w: lambda: dy @ w,
    "linear_dw": lambda x, dy, _: lambda: dy.t() @ x,
    "bias_grad": _sums,
    "moments": _moments,
    "normalise": _normalise,
    "normalise_sums": _normalise_sums,
    "normalise_dx": _normalise_dx,
    "maxpool": _maxpool,
    "maxpool_dx": _maxpool_dx,
    "avgpool": _avgpool,
    "avgpool_dx": _avgpool_dx,
    "lrn": lambda x, *how: lambda: functional.local_response_norm(x, *how),
    "lrn_dx": _lrn_dx,
    "activate": lambda name, x, slope: lambda: _ACTIVATIONS[name](x, slope),
    "activate_dx": lambda name, dy, saved, slope: lambda: _DERIVATIVES[name](dy, saved, slope),
    "mul": lambda x, mask: lambda: x * mask,
    "dropout": _dropout,
    "softmax_xent": _softmax_xent,
    "sgd": _sgd,
}
