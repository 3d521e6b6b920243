"""What each way of varying images costs the thread that reads, and what it looks like."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import thread_time

import numpy as np
import script
from PIL import Image

from mpicnn.data.augment import Augment
from mpicnn.data.colour import Colour
from mpicnn.data.file import open_dataset
from mpicnn.data.layout import Array
from mpicnn.data.mixing import Mixing, with_partners
from mpicnn.errors import UserError
from mpicnn.ops import numpy as ops

WAYS = {
    "nothing": {},
    "flip": {"flip": True},
    "resized crop": {"area": (0.08, 1.0)},
    "brightness": {"colour": Colour(brightness=0.4)},
    "contrast": {"colour": Colour(contrast=0.4)},
    "saturation": {"colour": Colour(saturation=0.4)},
    "hue": {"colour": Colour(hue=0.1)},
    "erasing": {"erase": 0.5},
    "mixup": {"mix": Mixing(mixup=1.0)},
    "cutmix": {"mix": Mixing(cutmix=1.0)},
}
MARGIN = 4  # pixels between pictures


def varied(images: Array, augment: Augment, step: int, mean: Array) -> Array:
    """Return images, uint8 (n, c, h, w), as training has them, but for a deviation of 1."""
    places, n = np.arange(len(images)), len(images)
    windows = augment.windows(images.shape[1:], 1, step, places)
    x = augment.vary(images, 1, step, places)
    x = augment.apply(ops, x, windows, mean, np.ones_like(mean), np.float32)
    mixture = augment.mix.draw(1, step, x.shape[2:])
    return mixture.blend(ops, x, with_partners(places, n)[1]) if mixture else x


def costs(size: int, crop: int, batch: int, repeats: int) -> dict[str, float]:
    """Return µs of CPU time per image of each way, median; that of "nothing" is in all others."""
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), np.uint8)
    found = {}
    for name, how in WAYS.items():
        augment = Augment(crop=(crop, crop), **how)
        seconds = []
        for step in range(repeats + 1):  # the first one warms up
            begun = thread_time()
            varied(images, augment, step, np.full(3, 100.0))
            seconds.append(thread_time() - begun)
        found[name] = 1e6 * median(seconds[1:]) / batch
    return found


def picture(images: Array, mean: Array, scale: int) -> Image.Image:
    """Return a line of pictures for each way that images of so many channels can be varied in."""
    lines = []
    for how in WAYS.values():
        augment = Augment(crop=images.shape[2:], **how)
        try:
            augment.out_shape(images.shape[1:])
        except UserError:
            continue
        x = (varied(images, augment, 4, mean) + mean[:, None, None]).clip(0, 255).astype(np.uint8)
        x = x.repeat(scale, 2).repeat(scale, 3)
        x = np.pad(x, ((0, 0), (0, 0), (0, MARGIN), (0, MARGIN)), constant_values=255)
        lines.append(np.concatenate(list(x), axis=2))
    whole = np.concatenate(lines, axis=1).transpose(1, 2, 0)
    return Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)


def main() -> None:
    """Print a table of costs, or draw a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=script.at_least_1, default=7)
    parser.add_argument("--data", default="embedded", help="images for the picture")
    parser.add_argument("--picture", type=Path, help="file to draw instead of timing")
    options = parser.parse_args()
    if options.picture:
        with open_dataset(options.data) as data:
            images = data.split("train").read(np.arange(2, 12))
            picture(images, data.mean, scale=2).save(options.picture)
        return
    small, large = costs(32, 32, 128, options.repeats), costs(256, 224, 32, options.repeats)
    print(f"{'CPU time, µs/image':<20}{'32 x 32':>10}{'256 to 224':>12}")
    for name in WAYS:
        print(f"{name:<20}{small[name]:>10.0f}{large[name]:>12.0f}")
    print(script.machine()["cpu"])


if __name__ == "__main__":
    main()
