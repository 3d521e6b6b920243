"""Named networks under presets, schemes, shares, stages across skips: each trains as one rank."""

from itertools import cycle

import pytest
from zoo_cases import choices, compare, pairwise

# Those that take longest are fewer.
NETWORKS = (
    "resnet20", "squeezenet", "vgg16", "resnet18", "googlenet", "squeezenet", "resnet20", "vgg16",
    "vgg16-bn", "mobilenet-v2", "squeezenet", "resnet20", "vgg16", "resnet34", "squeezenet",
    "resnet18", "vgg16", "resnet50", "resnet20", "squeezenet", "vgg16", "resnet56", "densenet121",
)  # fmt: skip


def sample():
    """Return networks and choices: every two values of two factors meet, in some network."""
    turn, able = cycle(NETWORKS), {name: choices(name) for name in NETWORKS}
    for chosen in pairwise(seed=1):
        yield next((name, chosen) for name in turn if chosen in able[name])


CASES = list(sample())


@pytest.mark.parametrize("at", range(len(CASES)), ids=lambda at: f"{at}-{CASES[at][0]}")
def test_a_named_network_trains_as_one_rank(at):
    name, chosen = CASES[at]
    assert compare(name, chosen, seed=at) == ""


def test_every_family_is_in_the_sample():
    assert {name for name, _ in CASES} == set(NETWORKS)
