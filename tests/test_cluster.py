"""Clusters: which nodes are drawn, at which speed, and what files are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpicnn.errors import UserError
from mpicnn.forecast.cluster import MOST_RANKS, SHARED_MEMORY, Cluster, NodeClass, composition
from mpicnn.forecast.clusterfile import load_cluster, parse_cluster
from mpicnn.forecast.machine import RATES, Device, Link

EXAMPLE = Path(__file__).parents[1] / "docs" / "cluster.toml"
NODE = "[[node]]\ncount = 2\nconvolution_gflops = 5\nmemory_gb_per_s = 3\n"
LINK = "[link]\nlatency_us = 30\ngbit_per_s = 8\n"


def cluster(rng, classes=None, weights=False):
    """Return a random cluster, its numbers of nodes or, with `weights`, proportions small."""
    made = []
    for number in range(classes or rng.integers(1, 6)):
        amount = int(rng.integers(1, 7))
        device = Device(*(10 ** rng.uniform(9, 12, 2)), 10 ** rng.uniform(9, 11), 1e-5)
        low = rng.uniform(0.2, 1)
        made.append(
            NodeClass(
                f"class{number}", device, int(rng.integers(1, 4)), 0 if weights else amount,
                amount if weights else 0.0, vary=(low, low + rng.uniform(0, 1)),
            )
        )  # fmt: skip
    inside, between = (Link(1e-6, 1e10, rng.uniform()), Link(1e-4, 1e8, rng.uniform()))
    return Cluster("random", tuple(made), between, inside)


@pytest.mark.parametrize("weights", [False, True])
def test_nodes_of_every_number_are_as_mixed_as_the_cluster(weights):
    for seed in range(40):
        made = cluster(np.random.default_rng(seed), weights=weights)
        parts = {c.name: c.count + c.weight for c in made.classes}
        whole = int(sum(parts.values()))
        names = [node.name for node in made.nodes(3 * whole)]
        for number in range(1, 3 * whole + 1):
            assert [node.name for node in made.nodes(number)] == names[:number], "they are nested"
            given = Counter(names[:number])
            for name, part in parts.items():
                assert given[name] < part * number / whole + 1, f"seed {seed}"
        for times in (1, 2, 3):
            assert Counter(names[: times * whole]) == {n: times * p for n, p in parts.items()}
        assert parts[names[0]] == max(parts.values())


def test_counted_nodes_come_before_those_with_a_weight():
    """As Marques' desktop before his mobile GPUs (figure 13)."""
    made = cluster(np.random.default_rng(1), 3)
    one, two, three = made.classes
    mixed = replace(
        made,
        classes=(replace(one, count=0, weight=2.0), replace(two, count=2),
                 replace(three, count=0, weight=1.0)),
    )  # fmt: skip
    names = [node.name for node in mixed.nodes(8)]
    assert names[:2] == ["class1"] * 2
    assert Counter(names[2:]) == {"class0": 4, "class2": 2}
    assert mixed.counted == 0 and made.counted == sum(c.count for c in made.classes)
    assert composition(mixed.nodes(3)) == "2 class1 + 1 class0"


def test_machines_of_more_nodes_begin_with_those_of_fewer():
    for seed in range(20):
        made = cluster(np.random.default_rng(seed))
        large = made.machine(40, seed)
        for nodes in (1, 2, 7, 39):
            small = made.machine(nodes, seed)
            ranks = len(small.devices)
            assert small.devices == large.devices[:ranks]
            assert small.hosts == large.hosts[:ranks]
            assert ranks == sum(node.ranks for node in made.nodes(nodes))
        assert len(set(large.hosts)) == 40


def test_speeds_are_drawn_by_node_within_their_range():
    low, high = 0.5, 1.75
    device = Device(3e9, 2e9, 7e9, 1e-5)
    made = Cluster("x", (NodeClass("a", device, 2, count=1, vary=(low, high)),), Link())
    machine = made.machine(4000, seed=3)
    factors = machine.rates.convolution / 3e9
    assert low <= factors.min() < low + 0.05 and high - 0.05 < factors.max() <= high
    assert (factors[::2] == factors[1::2]).all(), "ranks of a node are alike"
    assert factors.mean() == pytest.approx((low + high) / 2, abs=0.02)
    # a normal distribution that is cut off at two deviations has 0.8796 of its deviation
    assert factors.std() == pytest.approx(0.8796 * (high - low) / 4, rel=0.05)
    for name, rate in (("linear", 2e9), ("memory", 7e9)):
        np.testing.assert_allclose(getattr(machine.rates, name), factors * rate)
    assert (machine.rates.start == 1e-5).all()
    assert (made.machine(9, seed=4).rates.convolution != factors[:18] * 3e9).all()


def test_nodes_that_do_not_vary_are_as_the_file_says():
    for seed in range(10):
        made = cluster(np.random.default_rng(seed))
        plain = replace(made, classes=tuple(replace(c, vary=(1.0, 1.0)) for c in made.classes))
        machine, nodes = plain.machine(9, seed), plain.nodes(9)
        for name in RATES:
            expected = [getattr(n.device, name) for n in nodes for _ in range(n.ranks)]
            np.testing.assert_array_equal(getattr(machine.rates, name), expected)


def test_a_machine_has_no_more_ranks_than_a_timeline_can_hold():
    made = parse_cluster(f"{NODE}ranks = {MOST_RANKS // 4}\n{LINK}", "c.toml")
    assert len(made.machine(4).devices) == MOST_RANKS
    with pytest.raises(UserError, match=f"nodes 5: more than {MOST_RANKS} ranks"):
        made.machine(5)


def test_the_example_is_a_cluster():
    found = load_cluster(str(EXAMPLE))
    assert [c.name for c in found.classes] == ["workstation", "laptop"]
    assert found.inside == SHARED_MEMORY, "the file shows the defaults"
    assert found.between == Link(50e-6, 125e6, 0.1)
    first = found.classes[0]
    assert first.device == Device(300e9, 200e9, 20e9, 20e-6)
    assert (first.ranks, first.watts, first.memory) == (2, 250, 32e9)
    assert found.watts(8) == 4 * 250 + 4 * 45


def test_a_file_may_be_short():
    found = parse_cluster(NODE + LINK.replace("_", "-"), "some/where.toml")
    assert found.name == "where" and found.classes[0].name == "node1"
    assert found.classes[0].device == Device(5e9, 5e9, 3e9), "linear as convolution"
    assert found.watts(7) == 0 and found.between == Link(30e-6, 1e9, 0.0)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", r"no \[\[node\]\] tables"),
        ("node = []\n" + LINK, "no nodes"),
        ("[node]\ncount = 1\n" + LINK, r"no \[\[node\]\] tables"),
        (NODE, r"no \[link\] table; expected latency_us and gbit_per_s"),
        (NODE + "[link]\n", "link: no latency_us; expected a number from 0 to"),
        (NODE + LINK.replace("8", "0"), "link: gbit_per_s = 0, expected a number from 1e-06"),
        (NODE + LINK.replace("8", "-8"), "link: gbit_per_s = -8"),
        (NODE + LINK + "busy = 1.5", "busy = 1.5, expected a number from 0 to 1"),
        (NODE + LINK.replace("latency", "lattency"), "did you mean latency_us"),
        ("link = 3\n" + NODE, "link: expected a table with latency_us"),
        ("links = 3\n" + NODE + LINK, "unknown key 'links'; did you mean link"),
        (NODE + "watt = 3\n" + LINK, "node 1: unknown key 'watt'; did you mean watts"),
        (NODE + "name = 'a'\nx = 3\n" + LINK, r"node 1 \(a\): unknown key 'x'; expected name"),
        (NODE.replace("5", "0") + LINK, "convolution_gflops = 0, expected a number from"),
        (NODE.replace("5", "-5") + LINK, "convolution_gflops = -5"),
        (NODE.replace("5", "nan") + LINK, "convolution_gflops = nan"),
        (NODE.replace("5", "inf") + LINK, "convolution_gflops = inf"),
        (NODE.replace("5", "1e300") + LINK, r"= 1e\+300, expected a number from 1e-06 to 1e\+09"),
        (NODE.replace("5", "'fast'") + LINK, "= 'fast', expected a number"),
        (NODE.replace("5", "true") + LINK, "= True, expected a number"),
        (NODE.replace("2", "0") + LINK, "count = 0, expected a whole number from 1"),
        (NODE.replace("2", "2.0") + LINK, "count = 2.0, expected a whole number"),
        (NODE.replace("2", "9" * 400) + LINK, "count = 9999.*expected a whole number"),
        (NODE.replace("count = 2\n", "") + LINK, "expected count, .* or weight"),
        (NODE + "weight = 1\n" + LINK, "expected count, .* or weight"),
        (NODE.replace("memory_gb_per_s = 3", "") + LINK, "no memory_gb_per_s; expected a number"),
        (NODE + "start_us = -1\n" + LINK, "start_us = -1"),
        (NODE + "vary = [2, 1]\n" + LINK, "vary = .* expected least and most"),
        (NODE + "vary = [0, 1]\n" + LINK, "vary = .* expected least and most"),
        (NODE + "start_us = 1\nstart-us = 1\n" + LINK, "start-us: is there twice"),
        (NODE + "name = 'a'\n" + NODE + "name = 'a'\n" + LINK, "there is a class a already"),
        (NODE + "watts = 3\n" + NODE + LINK, "watts are given for some classes but not for node2"),
        (NODE + LINK + "[inside]\nlatency_us = 'x'", "inside: latency_us = 'x'"),
        ("[[node", "not valid TOML"),
    ],
)
def test_wrong_files_are_refused_in_one_line(text, said):
    with pytest.raises(UserError, match=said) as refused:
        parse_cluster(text, "c.toml")
    assert str(refused.value).startswith("cluster c.toml: ") and "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: cannot be read: No such file"):
        load_cluster(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        load_cluster(str(tmp_path / "binary.toml"))


def test_the_user_guide_shows_the_example():
    text = EXAMPLE.read_text()
    guide = EXAMPLE.with_name("user-guide.md").read_text()
    assert f"```toml\n{text[text.index('name = ') :]}```\n" in guide
