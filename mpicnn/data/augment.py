"""Crop, flip and normalise images; the result depends on the image and the seed alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpicnn import rng
from mpicnn.data.layout import Array, ImageShape, Index
from mpicnn.errors import UserError
from mpicnn.ops.interface import Backend

if TYPE_CHECKING:
    from mpicnn.settings.groups import Augmentation


@dataclass(frozen=True)
class Windows:
    """Say what is cut from each of n images: where, in padded pixels, and whether mirrored."""

    tops: Index
    lefts: Index
    flips: NDArray[np.bool_]


@dataclass(frozen=True)
class Augment:
    """Describe how images are varied in training: pad, crop, mirror.

    `pad` pixels of the mean colour (zero once normalised) are put around the image, a window of
    `crop` (height, width; None: the image's own size) is cut out, at random or centred, and
    `flip` mirrors half of the images left to right. OWT's setting is 256 x 256 images with
    `Augment(crop=(224, 224), flip=True)`; He et al. 2015 (arXiv 1512.03385) use
    `Augment(pad=4, flip=True)` on CIFAR-10.
    """

    crop: tuple[int, int] | None = None
    pad: int = 0
    flip: bool = False
    random: bool = True

    def for_evaluation(self) -> Augment:
        """Return the same augmentation without randomness: centred crops, not mirrored."""
        return replace(self, flip=False, random=False)

    def out_shape(self, shape: ImageShape) -> ImageShape:
        """Return the shape (c, h, w) that images of `shape` have afterwards.

        Raises UserError where the window does not fit.
        """
        c, h, w = shape
        height, width = self.crop or (h, w)
        if self.pad < 0 or not 0 < height <= h + 2 * self.pad or not 0 < width <= w + 2 * self.pad:
            raise UserError(
                f"augmentation: a crop of {height} x {width} does not fit images of {h} x {w}"
                f" padded by {self.pad}; expected 0 < crop <= size + 2 pad and pad >= 0"
            )
        return c, height, width

    def windows(self, shape: ImageShape, seed: int, epoch: int, index: Index) -> Windows:
        """Return the windows for the images at the global places `index` in their data set.

        They depend on (seed, epoch, place) alone. The bias of scaling a 32-bit draw to r places
        is below r / 2**32.
        """
        _, height, width = self.out_shape(shape)
        rows = shape[1] + 2 * self.pad - height + 1
        columns = shape[2] + 2 * self.pad - width + 1
        if not self.random:
            centred = np.zeros(len(index), np.int64)
            return Windows(centred + (rows - 1) // 2, centred + (columns - 1) // 2, centred > 0)
        words = rng.draws(seed, "augment", epoch, index).astype(np.uint64)
        tops, lefts = (
            ((words[:, i] * np.uint64(r)) >> np.uint64(32)).astype(np.int64)
            for i, r in enumerate((rows, columns))
        )
        return Windows(tops, lefts, (words[:, 2] >= 2**31) & self.flip)

    def apply(
        self,
        ops: Backend,
        images: Array,
        windows: Windows,
        mean: Array,
        std: Array,
        dtype: DTypeLike,
    ) -> Array:
        """Return (image - mean) / std, cut as `windows` say: (n, *out_shape) of `dtype`.

        `images` are (n, c, h, w) on the device of `ops`, `mean` and `std` (c,) in their units.
        """
        _, height, width = self.out_shape(images.shape[1:])
        tops, lefts = windows.tops - self.pad, windows.lefts - self.pad
        return ops.images(images, tops, lefts, windows.flips, mean, std, (height, width), dtype)


def augmentation(settings: Augmentation) -> Augment:
    """Return how the settings vary training images."""
    crop = (settings.crop, settings.crop) if settings.crop else None
    return Augment(crop=crop, pad=settings.pad, flip=settings.flip)
