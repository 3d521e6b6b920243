"""Augmentation: the windows are where they should be, and depend on nothing but the example."""

from __future__ import annotations

import numpy as np
import pytest

from mpicnn.data.augment import Augment, Windows
from mpicnn.errors import UserError
from mpicnn.ops import numpy as plain

MEAN = np.array([100.0, 20.0, 130.5])
STD = np.array([50.0, 3.0, 77.7])
SHAPE = (3, 7, 5)
IMAGES = np.random.default_rng(3).integers(0, 256, (11, *SHAPE), np.uint8)

VARIANTS = {
    "as it is": Augment(),
    "flip": Augment(flip=True),
    "pad": Augment(pad=3, flip=True),
    "crop": Augment(crop=(4, 3), flip=True),
    "pad and crop": Augment(crop=(6, 5), pad=2),
    "larger than the image": Augment(crop=(9, 8), pad=2, flip=True),
    "one pixel": Augment(crop=(1, 1)),
    "centered": Augment(crop=(4, 3), random=False),
}


def plainly(augment: Augment, windows: Windows) -> np.ndarray:
    """Do it image by image: normalize, pad with zeros, cut, mirror."""
    _, height, width = augment.out_shape(SHAPE)
    normal = (IMAGES - MEAN[:, None, None]) / STD[:, None, None]
    p = augment.pad
    padded = np.pad(normal, ((0, 0), (0, 0), (p, p), (p, p)))
    out = np.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, windows.tops, windows.lefts, strict=True)
        ]
    )
    out[windows.flips] = out[windows.flips][..., ::-1]
    return out


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels(name: str, dtype: type) -> None:
    augment = VARIANTS[name]
    windows = augment.windows(SHAPE, 1, 2, np.arange(11))
    found = augment.apply(plain, IMAGES, windows, MEAN, STD, dtype)
    expected = plainly(augment, windows)
    assert found.dtype == dtype
    assert found.shape == (11, *augment.out_shape(SHAPE))
    # The mean, at most 255 and rounded to the type, moves a pixel by eps * 255 / std, and
    # subtraction and division round twice more; std is 3 or larger.
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=np.finfo(dtype).eps * 255 / 3)


def test_border_is_exactly_zero() -> None:
    augment = Augment(pad=20, crop=(7, 5))
    corner = np.zeros(11, np.int64)
    found = augment.apply(plain, IMAGES, Windows(corner, corner, corner > 0), MEAN, STD, np.float32)
    assert (found == 0).all()


def test_no_images() -> None:
    augment = Augment(crop=(4, 3), pad=1, flip=True)
    windows = augment.windows(SHAPE, 1, 2, np.arange(0))
    found = augment.apply(plain, IMAGES[:0], windows, MEAN, STD, np.float32)
    assert found.shape == (0, 3, 4, 3)


def test_evaluation_takes_the_center() -> None:
    augment = Augment(crop=(3, 3), pad=1, flip=True).for_evaluation()
    windows = augment.windows(SHAPE, 1, 2, np.arange(11))
    found = augment.apply(plain, IMAGES, windows, np.zeros(3), np.ones(3), np.float32)
    np.testing.assert_array_equal(found, IMAGES[:, :, 2:5, 1:4])


def test_windows_depend_on_seed_epoch_and_example_alone() -> None:
    augment = Augment(crop=(224, 200), flip=True)
    shape = (3, 256, 256)

    def rows(seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
        windows = augment.windows(shape, seed, epoch, index)
        return np.stack([windows.tops, windows.lefts, windows.flips], axis=1)

    whole = rows(5, 6, np.arange(1000))
    some = np.array([999, 0, 17, 17, 512])
    np.testing.assert_array_equal(rows(5, 6, some), whole[some])
    # Two draws agree in all of 33 * 57 * 2 by chance once in 3762: in 1000 far less than 10 times.
    for other in (rows(5, 7, np.arange(1000)), rows(6, 6, np.arange(1000))):
        assert (other == whole).all(axis=1).sum() < 10


def test_every_window_is_as_likely() -> None:
    n = 30_000
    windows = Augment(pad=2, flip=True).windows((3, 32, 32), 1, 0, np.arange(n))
    places = (windows.tops * 5 + windows.lefts) * 2 + windows.flips
    counts = np.bincount(places, minlength=50)
    assert len(counts) == 50
    # Chi squared with 49 degrees of freedom is above 85.4 once in 1000; the draw is a fixed one.
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 85.4


@pytest.mark.parametrize(
    "augment",
    [Augment(crop=(8, 5)), Augment(crop=(7, 8), pad=1), Augment(crop=(0, 1)), Augment(pad=-1)],
)
def test_window_that_does_not_fit(augment: Augment) -> None:
    with pytest.raises(UserError, match="7 x 5"):
        augment.out_shape(SHAPE)
