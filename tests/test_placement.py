"""Bounds, boxes and layouts."""

from itertools import product

import numpy as np
import pytest

from mpicnn.division.placement import (
    Partial,
    Replicated,
    Split,
    box_shape,
    counts_here,
    intersect,
    largest,
    local_shape,
    on_first,
    ranges,
    region,
    seen,
    split_within,
    weighted_bounds,
)


@pytest.mark.parametrize(
    "n, weights, least, bounds",
    [
        (10, (1, 1, 1, 1), 0, (0, 3, 6, 8, 10)),
        (10, (2, 1, 1), 0, (0, 5, 8, 10)),
        (3, (1, 1, 1, 1), 0, (0, 1, 2, 3, 3)),
        (7, (0, 1, 0, 2), 0, (0, 0, 2, 2, 7)),
        (5, (1000, 1, 1), 1, (0, 3, 4, 5)),
        (0, (1, 2), 0, (0, 0, 0)),
        (1, (0.2, 0.3), 0, (0, 0, 1)),
    ],
)
def test_weighted_bounds(n, weights, least, bounds):
    assert weighted_bounds(n, weights, least) == bounds


def test_shares_are_within_one_of_the_exact_ones():
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.random(rng.integers(1, 9)) + 1e-3
        n = int(rng.integers(0, 500))
        shares = np.diff(weighted_bounds(n, tuple(weights.tolist())))
        assert shares.sum() == n
        assert np.abs(shares - n * weights / weights.sum()).max() < 1


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (float("nan"), 1), (float("inf"), 1)])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        weighted_bounds(4, weights)


def test_nobody_is_starved_or_it_is_said():
    with pytest.raises(ValueError, match="3 items cannot give 4 ranks 1 each"):
        weighted_bounds(3, (1, 1, 1, 1), least=1)
    assert weighted_bounds(3, (1, 1, 1, 0), least=1) == (0, 1, 2, 3, 3)


@pytest.mark.parametrize("bounds", [(0,), (1, 2), (0, 3, 2)])
def test_bounds_must_rise_from_zero(bounds):
    with pytest.raises(ValueError, match="bounds must rise"):
        Split(0, bounds)


def test_duals():
    assert Replicated().dual == Partial()
    assert Partial().dual == Replicated()
    assert Split(1, (0, 2, 3)).dual == Split(1, (0, 2, 3))


def test_regions_of_two_axes_tile_the_tensor():
    shape, outer = (7, 5), Split(0, (0, 4, 7))
    inner = split_within((outer,), 0, 7, lambda rows: weighted_bounds(rows, (1, 0, 1)))
    assert inner.bounds == (0, 2, 2, 4, 6, 6, 7)
    layout = outer, inner
    held = np.zeros(shape, int)
    first, last = ranges(shape, layout, (2, 3), 0)
    for coords in product(range(2), range(3)):
        box = region(shape, layout, coords)
        held[tuple(slice(lo, hi) for lo, hi in box)] += 1
        assert (first[coords], last[coords]) == box[0]
        # as seen along the second axis, of what the first one has left
        left = (4, 3)[coords[0]], 5
        assert seen(layout, 1, coords) == Split(0, weighted_bounds(left[0], (1, 0, 1)))
        assert box_shape(seen(layout, 1, coords).box(left, coords[1])) == box_shape(box)
    assert (held == 1).all()
    assert largest(shape, layout) == (2, 5)
    assert split_within((outer,), 1, 5, lambda n: (0, 1, n)) == Split(1, (0, 1, 5))
    assert local_shape(shape, (Split(0, on_first(7, 2)), Split(1, (0, 1, 5))), (0, 1)) == (7, 4)
    assert local_shape(shape, (Split(0, on_first(7, 2)), Replicated()), (1, 0)) == (0, 5)


def test_boxes_without_common_part_meet_in_an_empty_one():
    assert intersect(((0, 3),), ((2, 5),)) == ((2, 3),)
    (lo, hi) = intersect(((0, 2),), ((4, 5),))[0]
    assert lo == hi


def test_every_part_counts_once():
    shape, parts = (6, 5), (Split(0, (0, 2, 6)), Split(1, (0, 5, 5)), Split(0, (0, 0, 6)))
    for layout in product((Replicated(), *parts), repeat=2):
        inner = layout[1]
        if isinstance(layout[0], Split) and isinstance(inner, Split) and layout[0].dim == inner.dim:
            continue  # the inner axis would need bounds for every part of the outer one
        held = np.zeros(shape, int)
        for coords in product(range(2), repeat=2):
            if counts_here(layout, coords):
                held[tuple(slice(*side) for side in region(shape, layout, coords))] += 1
        assert (held == 1).all(), layout
    with pytest.raises(ValueError, match="no parts"):
        counts_here((Partial(),), (0,))
