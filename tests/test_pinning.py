"""Ranks that share cores get parts of them, and others are left alone."""

import os
import socket

import pytest

from mpicnn.devices import pinning

ALL = set(range(8))
PAIRS = [0, 4, 1, 5, 2, 6, 3, 7]  # hardware threads of four physical cores


@pytest.mark.parametrize(
    "masks, threads, cores, parts",
    [
        ([ALL, ALL], 1, PAIRS, [{0, 4, 1, 5}, {2, 6, 3, 7}]),
        ([ALL] * 3, 2, sorted(ALL), [{0, 1}, {2, 3, 4}, {5, 6, 7}]),
        ([ALL] * 8, 1, PAIRS, [{core} for core in PAIRS]),
        ([{3, 5}, {3, 5}], 1, [3, 5], [{3}, {5}]),
    ],
)
def test_equal_masks_are_divided_entirely(masks, threads, cores, parts):
    found = [pinning.own_cores(masks, i, threads, cores) for i in range(len(masks))]
    assert found == parts


@pytest.mark.parametrize(
    "masks, threads",
    [([ALL], 8), ([ALL, ALL], 5), ([{0, 1}, {2, 3}], 2), ([ALL, ALL, {7}], 1)],
    ids=["alone", "too many threads", "divided before", "one is narrower"],
)
def test_others_are_left_alone(masks, threads):
    for index, mask in enumerate(masks):
        assert pinning.own_cores(masks, index, threads, sorted(mask)) is None


class Ranks:
    """The second of three ranks on this host; another host has one between them."""

    world = type("World", (), {"rank": 2})

    def texts(self, mine):
        return [mine, "elsewhere 0 1 2", mine, mine]


def test_only_ranks_of_the_same_host_count(monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1000, 1001, 1002})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: pinned.append(cores))
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    pinning.pin(Ranks(), threads=1)
    assert pinned == [{1001}]
    pinning.pin(Ranks(), threads=2)
    assert len(pinned) == 1
