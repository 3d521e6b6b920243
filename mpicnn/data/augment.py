"""Vary images in training, cut and normalise them.

What becomes of an image depends on its place in the data set, the seed and the epoch alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpicnn import rng
from mpicnn.data.boxes import BoxRange, Range, scaled
from mpicnn.data.colour import Colour
from mpicnn.data.layout import Array, ImageShape, Index
from mpicnn.data.mixing import Mixing
from mpicnn.errors import UserError
from mpicnn.ops.interface import Backend

if TYPE_CHECKING:
    from mpicnn.settings.groups import Augmentation

SHOWN = 0.875  # how much of the shorter side tests see of a scaled image: 224 of 256 pixels
ERASED_RATIO = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Windows:
    """Say what is cut from each of n images: where, in padded pixels, and whether mirrored.

    `erased` are boxes in what was cut, as top, left, height and width, (n, 4); None: no boxes.
    """

    tops: Index
    lefts: Index
    flips: NDArray[np.bool_]
    erased: Index | None = None


@dataclass(frozen=True)
class Augment:
    """Describe how images are varied in training, and what tests see of them.

    `pad` pixels of the mean colour (zero once normalised) are put around the image, a window of
    `crop` (height, width; None: the image's own size) is cut out, at random or centred, and
    `flip` mirrors half of the images left to right. OWT's setting is 256 x 256 images with
    `Augment(crop=(224, 224), flip=True)`; He et al. 2015 (arXiv 1512.03385) use
    `Augment(pad=4, flip=True)` on CIFAR-10.

    With `area`, a box of this fraction of the image (least, most) and a width / height in `ratio`
    is cut out first and scaled to `crop`, which must be given (Szegedy et al. 2014, arXiv
    1409.4842). Tests see the centre of the image, scaled until its shorter side has `test_size`
    pixels (0: crop / 0.875, or what it has where that is less).

    `colour` changes colours, before a window is cut. `erase` is the probability that a box of the
    fraction `erase_area` of the window gets the mean colour (Zhong et al. 2020, arXiv 1708.04896).
    `mix` is for `Batches` to carry out: it mixes images with others of their batch.
    """

    crop: tuple[int, int] | None = None
    pad: int = 0
    flip: bool = False
    random: bool = True
    area: Range | None = None
    ratio: Range = (3 / 4, 4 / 3)
    test_size: int = 0
    colour: Colour = Colour()
    erase: float = 0.0
    erase_area: Range = (0.02, 0.33)
    mix: Mixing = Mixing()

    def __post_init__(self) -> None:
        if self.area and not self.crop:
            raise ValueError(f"area {self.area} needs crop, the size that boxes are scaled to")

    def for_evaluation(self) -> Augment:
        """Return the same augmentation without randomness: centred crops, nothing else changed."""
        return replace(self, flip=False, random=False, colour=Colour(), erase=0.0, mix=Mixing())

    def out_shape(self, shape: ImageShape) -> ImageShape:
        """Return the shape (c, h, w) that images of `shape` have afterwards.

        Raises UserError where the window does not fit, or where they have no such colours.
        """
        self.colour.check(shape[0])
        c, h, w = self.varied_shape(shape)
        height, width = self.crop or (h, w)
        if self.pad < 0 or not 0 < height <= h + 2 * self.pad or not 0 < width <= w + 2 * self.pad:
            raise UserError(
                f"augmentation: a crop of {height} x {width} does not fit images of {h} x {w}"
                f" padded by {self.pad}; expected 0 < crop <= size + 2 pad and pad >= 0"
            )
        return c, height, width

    def varied_shape(self, shape: ImageShape) -> ImageShape:
        """Return the shape (c, h, w) that `vary` gives images of `shape`; its own it leaves."""
        c, h, w = shape
        if not (self.area and self.crop):
            return shape
        if self.random:
            return c, *self.crop
        least = max(self.crop)
        short = self.test_size or max(least, min(h, w, round(least / SHOWN)))
        return c, h * short // min(h, w), w * short // min(h, w)

    def vary(self, images: Array, seed: int, epoch: int, index: Index) -> Array:
        """Return images scaled and with colours changed, as far as they are to be.

        `images`, uint8 (n, c, h, w) on the host, are those at the global places `index` in their
        data set; the result is uint8 as well. `windows` and `apply` do the rest.
        """
        size, wanted = images.shape[2:], self.varied_shape(images.shape[1:])[1:]
        if self.area and self.random:
            box = BoxRange("resized crop", self.area, self.ratio)
            boxes = box.draw(size, seed, epoch, index)
            boxes[boxes[:, 2] == 0] = box.central(size)
            images = scaled(images, boxes, wanted)
        elif wanted != size:
            images = scaled(images, np.tile((0, 0, *size), (len(images), 1)), wanted)
        if self.colour:
            images = self.colour.vary(images, *self.colour.draw(seed, epoch, index))
        return images

    def windows(self, shape: ImageShape, seed: int, epoch: int, index: Index) -> Windows:
        """Return the windows for the images at the global places `index` in their data set.

        They depend on (seed, epoch, place) alone. The bias of scaling a 32-bit draw to r places
        is below r / 2**32.
        """
        _, h, w = self.varied_shape(shape)
        _, height, width = self.out_shape(shape)
        rows, columns = h + 2 * self.pad - height + 1, w + 2 * self.pad - width + 1
        if not self.random:
            centred = np.zeros(len(index), np.int64)
            return Windows(centred + (rows - 1) // 2, centred + (columns - 1) // 2, centred > 0)
        words = rng.draws(seed, "augment", epoch, index).astype(np.uint64)
        tops, lefts = (
            ((words[:, i] * np.uint64(r)) >> np.uint64(32)).astype(np.int64)
            for i, r in enumerate((rows, columns))
        )
        flips = (words[:, 2] >= 2**31) & self.flip
        if not self.erase:
            return Windows(tops, lefts, flips)
        box = BoxRange("erased box", self.erase_area, ERASED_RATIO)
        boxes = box.draw((height, width), seed, epoch, index)
        chosen = rng.uniform(seed, "erase", epoch, index)[:, :1] < self.erase
        return Windows(tops, lefts, flips, boxes * chosen)

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

        `images` are (n, c, h, w) as `vary` leaves them, on the device of `ops`, `mean` and `std`
        (c,) in their units.
        """
        _, height, width = self.out_shape(images.shape[1:])
        tops, lefts = windows.tops - self.pad, windows.lefts - self.pad
        x = ops.images(images, tops, lefts, windows.flips, mean, std, (height, width), dtype)
        if windows.erased is not None:
            for image in np.flatnonzero(windows.erased[:, 2]).tolist():
                top, left, height, width = windows.erased[image].tolist()
                x[image, :, top : top + height, left : left + width] = 0
        return x


def augmentation(settings: Augmentation) -> Augment:
    """Return how the settings vary training images."""
    return Augment(
        crop=(settings.crop, settings.crop) if settings.crop else None,
        pad=settings.pad,
        flip=settings.flip,
        area=settings.crop_area or None,
        ratio=settings.crop_ratio,
        test_size=settings.test_size,
        colour=Colour(settings.brightness, settings.contrast, settings.saturation, settings.hue),
        erase=settings.erase,
        erase_area=settings.erase_area,
        mix=Mixing(settings.mixup, settings.cutmix, settings.mix_probability),
    )
