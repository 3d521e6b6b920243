"""Images that are scaled, recoloured and erased: by plain forms, and as torchvision does it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from backends import torchvision

from mpicnn import rng
from mpicnn.data.augment import Augment
from mpicnn.data.boxes import TRIES, BoxRange, scaled
from mpicnn.data.colour import Colour
from mpicnn.data.mixing import Mixing
from mpicnn.data.pictures import CHANGES
from mpicnn.errors import UserError
from mpicnn.ops import numpy as plain

DRAW = np.random.default_rng(5)
IMAGES = DRAW.integers(0, 256, (9, 3, 13, 11), np.uint8)
IMAGES[0] = 7  # without contrast, saturation and hue
CROP = BoxRange("resized crop", (0.08, 1.0), (3 / 4, 4 / 3))
MEAN, STD = np.array([100.0, 20.0, 130.5]), np.array([50.0, 3.0, 77.7])


def plain_box(box: BoxRange, size: tuple[int, int], seed: int, epoch: int, place: int) -> list[int]:
    """Draw one image's box as torchvision's RandomResizedCrop does, number by number."""
    height, width = size
    for attempt in range(TRIES):
        at = np.array([place])
        words = rng.draws(seed, f"{box.purpose} {attempt}", epoch, at)[0].tolist()
        a, b, c, d = (word / 2**32 for word in words)
        area = height * width * (box.area[0] + a * (box.area[1] - box.area[0]))
        low, high = (math.log(bound) for bound in box.ratio)
        ratio = math.exp(low + b * (high - low))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return [math.floor(c * (height - h + 1)), math.floor(d * (width - w + 1)), h, w]
    return [0, 0, 0, 0]


def test_boxes_by_the_plain_form() -> None:
    places = np.array([3, 2**40, 17, 0, 3])
    for box in (CROP, BoxRange("erased box", (0.02, 0.33), (0.3, 1 / 0.3))):
        for size in ((13, 11), (7, 300)):
            found = box.draw(size, 4, 2, places)
            expected = [plain_box(box, size, 4, 2, place) for place in places.tolist()]
            np.testing.assert_array_equal(found, expected)
    assert not (box.draw((13, 11), 5, 2, places) == box.draw((13, 11), 4, 2, places)).all()


def test_boxes_cover_the_range_and_lie_inside() -> None:
    top, left, height, width = CROP.draw((400, 500), 1, 0, np.arange(4000)).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 400).all() and (left + width <= 500).all()
    # edges rounded to whole pixels: half a pixel of at least 100
    assert ((width / height > 0.74) & (width / height < 1.35)).all()
    area = height * width / 200_000
    assert 0.079 < area.min() < 0.09 and 0.95 < area.max() <= 1
    # many large boxes are not of the image's own ratio and do not fit: below the range's mean, 0.54
    assert 0.42 < area.mean() < 0.48


def test_a_box_that_never_fits_is_the_largest_in_the_middle() -> None:
    wide = DRAW.integers(0, 256, (4, 3, 5, 90), np.uint8)
    augment = Augment(crop=(5, 6), area=(1.0, 1.0), ratio=(0.9, 1.2))
    found = augment.vary(wide, 1, 0, np.arange(4))
    # 5 high, so 6 wide, and 42 pixels from the left: not scaled at all
    np.testing.assert_array_equal(found, wide[..., 42:48])
    assert CROP.central((90, 6)) == (41, 0, 8, 6)
    assert CROP.central((10, 10)) == (0, 0, 10, 10)


def triangle(length: int, size: int) -> np.ndarray:
    """Return the weights (size, length) that scale a line bilinearly."""
    step = length / size
    reach = max(step, 1.0)
    centres = (np.arange(size)[:, None] + 0.5) * step
    weights = np.maximum(0, 1 - abs(np.arange(length) + 0.5 - centres) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


def plain_scaled(image: np.ndarray, box: list[int], size: tuple[int, int]) -> np.ndarray:
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width].astype(float)
    return triangle(height, size[0]) @ part @ triangle(width, size[1]).T


@pytest.mark.parametrize("size", [(5, 4), (13, 11), (40, 3)])
def test_scaling_by_the_plain_form(size: tuple[int, int]) -> None:
    boxes = CROP.draw((13, 11), 1, 0, np.arange(9))
    found = scaled(IMAGES, boxes, size)
    assert found.dtype == np.uint8
    for image, box, result in zip(IMAGES, boxes.tolist(), found, strict=True):
        # rounded to 8 bits after the lines and after the columns
        np.testing.assert_allclose(result, plain_scaled(image, box, size), rtol=0, atol=1.001)


def grey(image: np.ndarray) -> np.ndarray:
    """Return the luma of ITU-R 601-2, rounded to 8 bits."""
    return (
        (image.astype(int) * np.array([19595, 38470, 7471])[:, None, None]).sum(0) + 2**15
    ) >> 16


def blend(image: np.ndarray, other: np.ndarray | int, factor: float) -> np.ndarray:
    return np.clip(other + factor * (image.astype(float) - other), 0, 255)


def plain_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn hues by way of HSV, of which hue and saturation are 8 bits, rounded down."""
    single = np.float32  # Pillow's, as it decides what is rounded down where a value is whole
    x = image.astype(single)
    most, least = x.max(0), x.min(0)
    spread = np.where(most > least, most - least, single(1))
    r, g, b = ((most - x) / spread).astype(float)
    h = np.where(x[0] == most, b - g, np.where(x[1] == most, 2 + r - b, 4 + g - r)).astype(single)
    h = np.where(most > least, h.astype(float) / 6 + 1, 0) % 1
    h = (np.floor(h.astype(single).astype(float) * 255) + int(turn * 255)) % 256 / 255 * 6
    s = np.floor(((most - least) / np.maximum(most, single(1))).astype(float) * 255) / 255
    # f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + h) mod 6, for n = 5, 3, 1
    k = (np.array([5, 3, 1])[:, None, None] + h) % 6
    return most - most * s * np.clip(np.minimum(k, 4 - k), 0, 1)


PLAIN = (
    lambda image, factor: blend(image, 0, factor),
    lambda image, factor: blend(image, int(grey(image).mean() + 0.5), factor),
    lambda image, factor: blend(image, grey(image), factor),
    plain_hue,
)


@pytest.mark.parametrize("which", range(4))
def test_colours_by_the_plain_form(which: int) -> None:
    ranges = [0.0, 0.0, 0.0, 0.0]
    ranges[which] = 0.4
    colour = Colour(*ranges)
    factors, order = colour.draw(3, 1, np.arange(9))
    found = colour.vary(IMAGES, factors, order).astype(float)
    assert (found[1:] != IMAGES[1:]).any()
    for image, result, factor in zip(IMAGES, found, factors[:, which].tolist(), strict=True):
        # rounded down to 8 bits; by way of HSV one colour after another is rounded
        levels = 1.5 if which == 3 else 1.001
        np.testing.assert_allclose(result, PLAIN[which](image, factor), rtol=0, atol=levels)


def test_colours_change_one_after_another_in_an_order_of_their_own() -> None:
    colour = Colour(0.4, 0.3, 0.2, 0.1)
    factors, order = colour.draw(3, 1, np.arange(2000))
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    assert len(np.unique(order, axis=0)) == 24
    for column, low, high in zip(
        factors.T, (0.6, 0.7, 0.8, -0.1), (1.4, 1.3, 1.2, 0.1), strict=True
    ):
        assert low <= column.min() < low + 0.01 and high - 0.01 < column.max() <= high
    found = colour.vary(IMAGES, factors[:9], order[:9])
    for i, turns in enumerate(order[:9]):
        expected = IMAGES[i : i + 1]
        for which in turns.tolist():
            alone = Colour(*(0.1 if k == which else 0.0 for k in range(4)))
            expected = alone.vary(expected, factors[i : i + 1], order[i : i + 1])
        np.testing.assert_array_equal(found[i], expected[0])


def test_colours_of_other_channels() -> None:
    one = IMAGES[:, :1]
    bright = Colour(brightness=0.5)
    factors, order = bright.draw(3, 1, np.arange(9))
    expected = blend(one, 0, factors[:, :1, None, None])
    np.testing.assert_allclose(bright.vary(one, factors, order), expected, rtol=0, atol=1.001)
    for colour, channels in ((Colour(hue=0.1), 1), (bright, 2), (Colour(saturation=1), 4)):
        with pytest.raises(UserError, match=f"these have {channels}"):
            Augment(colour=colour).out_shape((channels, 8, 8))


def test_erased_boxes_have_the_mean_colour() -> None:
    augment = Augment(crop=(9, 8), erase=0.5, flip=True)
    places = np.arange(9)
    windows = augment.windows((3, 13, 11), 2, 1, places)
    found = augment.apply(plain, IMAGES, windows, MEAN, STD, np.float64)
    whole = replace(augment, erase=0.0)
    expected = whole.apply(
        plain, IMAGES, whole.windows((3, 13, 11), 2, 1, places), MEAN, STD, float
    )
    box = BoxRange("erased box", (0.02, 0.33), (0.3, 1 / 0.3))
    erased = 0
    for place in range(9):
        if rng.draws(2, "erase", 1, places)[place, 0] < 2**31:
            top, left, h, w = plain_box(box, (9, 8), 2, 1, place)
            expected[place, :, top : top + h, left : left + w] = 0
            erased += 1
    assert 0 < erased < 9
    np.testing.assert_array_equal(found, expected)


def test_tests_see_the_centre_of_the_scaled_image() -> None:
    augment = Augment(
        crop=(224, 224), area=(0.08, 1), flip=True, colour=Colour(1, 1, 1), erase=1, mix=Mixing(1)
    )  # fmt: skip
    test = augment.for_evaluation()
    assert test.varied_shape((3, 300, 400)) == (3, 256, 341)
    assert test.varied_shape((3, 250, 240)) == (3, 250, 240)  # made larger only where it must be
    assert test.varied_shape((3, 100, 50)) == (3, 448, 224)
    assert replace(test, test_size=300).varied_shape((3, 100, 50)) == (3, 600, 300)
    assert augment.out_shape((3, 10, 12)) == test.out_shape((3, 10, 12)) == (3, 224, 224)
    small = replace(test, crop=(4, 4), test_size=6)
    varied = small.vary(IMAGES, 1, 0, np.arange(9))
    windows = small.windows(IMAGES.shape[1:], 1, 0, np.arange(9))
    found = small.apply(plain, varied, windows, np.zeros(3), np.ones(3), np.float64)
    # 13 x 11 becomes 7 x 6, the window begins at (7 - 4) // 2 and (6 - 4) // 2
    whole = np.array([plain_scaled(image, [0, 0, 13, 11], (7, 6)) for image in IMAGES])
    np.testing.assert_allclose(found, whole[:, :, 1:5, 1:5], rtol=0, atol=1.001)
    with pytest.raises(ValueError, match="crop"):
        Augment(area=(0.5, 1))


def test_as_torchvision() -> None:
    """Scaled parts and single changes of colour equal torchvision's on 8-bit images, bit by bit."""
    functional = torchvision("transforms.functional")
    from PIL import Image

    boxes = CROP.draw((13, 11), 1, 0, np.arange(9))
    cut = scaled(IMAGES, boxes, (8, 6))
    factors, _ = Colour(0.9, 0.9, 0.9, 0.5).draw(1, 0, np.arange(9))
    theirs = (
        functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation,
        functional.adjust_hue,
    )  # fmt: skip
    for image, box, part, own in zip(IMAGES, boxes.tolist(), cut, factors.tolist(), strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        expected = functional.resized_crop(picture, *box, (8, 6))
        np.testing.assert_array_equal(part.transpose(1, 2, 0), expected)
        for ours, their, factor in zip(CHANGES, theirs, own, strict=True):
            np.testing.assert_array_equal(ours(picture, factor), their(picture, factor))
