"""Draw rectangles by area and aspect ratio, and scale parts of images."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from mpicnn import rng
from mpicnn.data.layout import Array, Index

TRIES = 10

Range = tuple[float, ...]
"""The least and the most that may be drawn."""


@dataclass(frozen=True)
class BoxRange:
    """Say which rectangles are drawn: `area` as a fraction of the image, `ratio` width / height.

    The area is uniform in its range, the logarithm of the ratio in its own. `purpose` tells the
    random numbers from others.
    """

    purpose: str
    area: Range
    ratio: Range

    def draw(self, size: tuple[int, int], seed: int, epoch: int, index: Index) -> Index:
        """Return top, left, height and width of a box in each image of `size`: int64 (n, 4).

        They depend on (seed, epoch, place in the data set) alone, `index` being the places. A box
        that does not fit is drawn again, up to TRIES times; then height and width are 0. Source:
        torchvision's RandomResizedCrop and RandomErasing.
        """
        h, w = size
        (least, most), (narrow, wide) = self.area, self.ratio
        boxes = np.zeros((len(index), 4), np.int64)
        missing = np.arange(len(index))
        for attempt in range(TRIES):
            if not missing.size:
                break
            u = rng.uniform(seed, f"{self.purpose} {attempt}", epoch, index[missing]).T
            areas = h * w * (least + u[0] * (most - least))
            ratios = np.exp(log(narrow) + u[1] * (log(wide) - log(narrow)))
            heights, widths = np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))
            fits = (heights >= 1) & (heights <= h) & (widths >= 1) & (widths <= w)
            tops, lefts = u[2] * (h - heights + 1), u[3] * (w - widths + 1)
            found = np.stack([tops, lefts, heights, widths], axis=1)[fits]
            boxes[missing[fits]] = found.astype(np.int64)
            missing = missing[~fits]
        return boxes

    def central(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the largest box in the image's middle whose ratio is in the range."""
        h, w = size
        narrow, wide = self.ratio
        height, width = min(h, max(1, round(w / narrow))), min(w, max(1, round(h * wide)))
        return (h - height) // 2, (w - width) // 2, height, width


def scaled(images: Array, boxes: Index, size: tuple[int, int]) -> Array:
    """Return a box of each image scaled to `size` (height, width): uint8 (n, c, height, width).

    `images` are uint8 (n, c, h, w), `boxes` top, left, height and width, (n, 4). Bilinear, with a
    filter as wide as the scale where images are made smaller (Pillow's BILINEAR, as torchvision's
    on such images); nothing outside of the box is looked at.
    """
    from PIL import Image  # here: most runs do without, and it takes a while to import

    n, c = images.shape[:2]
    height, width = size
    out = np.empty((n, c, height, width), np.uint8)
    for image, target, (top, left, h, w) in zip(images, out, boxes.tolist(), strict=True):
        box = left, top, left + w, top + h
        for plane, result in zip(image, target, strict=True):
            part = Image.fromarray(plane).crop(box)
            result[...] = part.resize((width, height), Image.Resampling.BILINEAR)
    return out
