"""What a backend is: the functions that every one has, their shapes and dtypes, written once.

A backend is a module. mypy holds the three modules against this protocol (`mpicnn.ops`), a test
holds their parameters against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpicnn.ops.device import Array as Array
from mpicnn.ops.device import OnDevice
from mpicnn.ops.window import Window

Pair = tuple[int, int]
Shape = tuple[int, ...]

Sizes = tuple[int, ...]
"""One number for every spatial axis."""


class Backend(OnDevice, Protocol):
    """Compute on local arrays of one kind of device.

    Arrays are float32 or float64 in logical order n c h w, whatever it is in memory; a result has
    the dtype of its first array. Any axis may have length 0. The same call returns the same bits.
    Arguments that do not fit each other raise ValueError in compiled backends. A function may
    return before a GPU has computed; `synchronize`, `fetch` and the timer wait.
    """

    NAME: str
    xp: Any
    """The module of its arrays: numpy or cupy."""

    def operand(self, x: Array) -> Any:
        """Return x as `conv2d`, `linear` and their gradients read it, who take it in place of x.

        Where products round what they read, it is rounded, once for all of them; elsewhere it is x.
        """
        ...

    def conv2d(
        self, x: Array, w: Array, b: Array | None, window: Window, relu: bool = False
    ) -> Array:
        """Cross-correlate x (n, c, h, w) with w (o, c/groups, kh, kw) and add b (o,).

        Returns (n, o, oh, ow). With `relu`, what is negative becomes 0 in the same pass.
        """
        ...

    def conv2d_dx(self, dy: Array, w: Array, x_shape: Shape, window: Window) -> Array:
        """Return the gradient of `conv2d` by x, given dy (n, o, oh, ow)."""
        ...

    def conv2d_dw(self, x: Array, dy: Array, w_shape: Shape, window: Window) -> Array:
        """Return the gradient of `conv2d` by w, given dy (n, o, oh, ow)."""
        ...

    def conv2d_methods(
        self, x_shape: Shape, w_shape: Shape, window: Window, dtype: DTypeLike
    ) -> tuple[str, str, str]:
        """Return by which methods `conv2d`, `conv2d_dx` and `conv2d_dw` compute these shapes.

        "none" says that there is nothing to multiply.
        """
        ...

    def linear(self, x: Array, w: Array, b: Array | None, relu: bool = False) -> Array:
        """Return y = x w^T + b for x (n, c), w (o, c) and b (o,); then ReLU of it with `relu`."""
        ...

    def linear_dx(self, dy: Array, w: Array) -> Array:
        """Return the gradient of `linear` by x, given dy (n, o)."""
        ...

    def linear_dw(self, x: Array, dy: Array, dw: Array | None = None) -> Array:
        """Return the gradient of `linear` by w, added to `dw`, in place, if that is given."""
        ...

    def bias_grad(self, dy: Array) -> Array:
        """Return the gradient of `conv2d` or `linear` by b, given dy (n, o) or (n, o, h, w)."""
        ...

    def activate(self, name: str, x: Array, slope: float = 0.0, over: bool = False) -> Array:
        """Return the function `name` of `mpicnn.ops.activations` of every value of x.

        `slope` is what leaky ReLU multiplies negative values by; others ignore it. With `over` the
        result may be written over x.
        """
        ...

    def activate_dx(
        self, name: str, dy: Array, saved: Array, slope: float = 0.0, over: bool = False
    ) -> Array:
        """Return the gradient by x of `activate`, given the x or y that its derivative reads.

        With `over` it may be written over dy.
        """
        ...

    def maxpool(
        self, x: Array, kernel: Sizes, window: Window, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """Return the largest value of every window of x (n, c, h, w), and where in it that is.

        The place is i * kw + j (uint8, or uint16 for windows of more than 256 values); the first of
        equal values wins and padding never does. A NaN in the window makes the value NaN; its
        place is then any one inside the image. `ceil_mode`: see `Window.pool_shape`.
        """
        ...

    def maxpool_dx(
        self, dy: Array, argmax: Array, x_shape: Shape, kernel: Sizes, window: Window
    ) -> Array:
        """Return the gradient of `maxpool` by x: dy goes to the place that won."""
        ...

    def avgpool(
        self, x: Array, kernel: Sizes, window: Window, ceil_mode: bool, count_include_pad: bool
    ) -> Array:
        """Return the mean of every window of x (n, c, h, w).

        The divisor is PyTorch's: with `count_include_pad` the part of the window inside the padded
        image, otherwise the part inside the image.
        """
        ...

    def avgpool_dx(
        self, dy: Array, x_shape: Shape, kernel: Sizes, window: Window, ceil_mode: bool,
        count_include_pad: bool,
    ) -> Array:  # fmt: skip
        """Return the gradient of `avgpool` by x."""
        ...

    def lrn(self, x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
        """Return y = x * scale**-beta and scale = k + alpha / size * (sum of x**2 over a window).

        The window of channel c is c - size // 2 … c + (size - 1) // 2, cut off at the ends
        (Krizhevsky et al. 2012, section 3.3, with PyTorch's alpha and placement).
        """
        ...

    def lrn_dx(
        self, dy: Array, x: Array, y: Array, scale: Array, size: int, alpha: float, beta: float
    ) -> Array:
        """Return the gradient of `lrn` by x, given what it returned."""
        ...

    def channel_sums(self, a: Array, b: Array | None = None) -> Array:
        """Return the sum of a, or of a * b, over all axes but 1, added in float64."""
        ...

    def moments(self, x: Array, planes: bool = False) -> tuple[Array, Array]:
        """Return the mean of every channel of x, and the sum of squares about it, in float64: (c,),
        or those of every example's channels, (n, c), with `planes`. Of nothing both are 0."""
        ...

    def normalise(
        self, x: Array, mean: Array, scale: Array, shift: Array, over: bool = False
    ) -> Array:
        """Return (x - mean) * scale + shift, all (c,) or all (n, c), maybe `over` x."""
        ...

    def normalise_sums(self, dy: Array, x: Array, mean: Array) -> tuple[Array, Array]:
        """Return the sums of dy and of dy * (x - mean), both (c,) or (n, c) as `mean` is."""
        ...

    def normalise_dx(
        self, dy: Array, x: Array, mean: Array, factors: Array, over: bool = False
    ) -> Array:
        """Return dy * scale - ((x - mean) * along + shift), maybe `over` dy; scale, along and shift
        are stacked in `factors`, (3, c) or (3, n, c)."""
        ...

    def mul(self, x: Array, mask: Array) -> Array:
        """Return x * mask."""
        ...

    def dropout(
        self, x: Array, rate: float, seed: int, layer: int, step: int,
        positions: NDArray[np.int64], first: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return x * mask and the mask, which is 0 with probability `rate`, else 1 / (1 - rate).

        x is (n, features…); `positions` are the places of its rows in the global batch and `first`
        is the global index of its first feature. The mask is that of `mpicnn.rng.dropout_mask`.
        """
        ...

    def softmax_xent(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        """Return the cross-entropy of every example (n,) and its gradient by the logits.

        Logits are (n, classes), `labels` as `upload_labels` gives them. The gradient, softmax -
        onehot, is not divided by anything.
        """
        ...

    def topk_correct(self, logits: Array, labels: Array, ks: Sequence[int]) -> Array:
        """Return, for every k, how many labels have fewer than k other logits not below theirs.

        Ties, and NaN, count against the network. The numbers are int64.
        """
        ...

    def sgd(self, w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
        """Update in place, v <- momentum * v - rate * (g + decay * w), then w <- w + v (OWT)."""
        ...

    def descend(self, w: Array, g: Array, rate: float, decay: float) -> None:
        """Update in place, w <- w - rate * (g + decay * w)."""
        ...

    def nesterov(
        self, w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float
    ) -> None:
        """Update in place as `sgd`, with Nesterov's momentum.

        v <- momentum * v - c with c = rate * (g + decay * w), then w <- w + momentum * v - c:
        Sutskever et al. 2013 seen from where the gradient is taken, as PyTorch has it.
        """
        ...

    def adam(
        self, m: Array, v: Array, g: Array, betas: tuple[float, float], eps: float, count: int
    ) -> None:
        """Update both moments in place by g, and make of g the direction of step `count` (from 1).

        m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g**2, then
        g <- m / (1 - b1**count) / (sqrt(v / (1 - b2**count)) + eps) (Kingma and Ba 2015,
        algorithm 1).
        """
        ...

    def images(
        self, batch: Array, tops: NDArray[np.int64], lefts: NDArray[np.int64],
        flips: NDArray[np.bool_], mean: Array, std: Array, size: Pair, dtype: DTypeLike,
    ) -> Array:  # fmt: skip
        """Return (image - mean) / std for a window of every image, (n, c, height, width).

        `batch` is (n, c, h, w). Image i is cut from line tops[i] and column lefts[i] on, which may
        lie outside it: there the mean stands. It is mirrored left to right where flips[i] says so.
        `mean` and `std` are (c,) in the images' units, `size` is (height, width).
        """
        ...


MEMBERS: tuple[str, ...] = tuple(
    name
    for name in (*Backend.__annotations__, *vars(Backend), *vars(OnDevice))
    if not name.startswith("_")
)
"""The names that every backend has."""
