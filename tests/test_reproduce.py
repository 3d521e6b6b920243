"""Krizhevsky's results and the survey's claims replayed, and the command that prints them."""

from __future__ import annotations

import sys
from dataclasses import replace

import mpi_jobs
import numpy as np
import pytest

from mpicnn import models
from mpicnn.commands.reproduce import reproduce
from mpicnn.errors import UserError
from mpicnn.forecast.papers import owt_results as results
from mpicnn.forecast.papers import owt_schemes as schemes
from mpicnn.forecast.papers.owt_machine import (
    BATCH,
    EPOCHS,
    IMAGES,
    Way,
    hours,
    megabytes,
    network,
    seconds,
    server,
    servers,
)
from mpicnn.forecast.papers.replay import Compared, Table, compared
from mpicnn.forecast.papers.survey import claims, layers_of, survey
from mpicnn.models.zoo import ZOO
from mpicnn.settings.definitions import parse

PNG = b"\x89PNG"


def test_speedups_reported_are_ratios_of_the_hours():
    """To what rounding the hours to 0.01 and the speed-ups to 0.01 leaves."""
    for row in results.RESULTS:
        assert results.RESULTS[0].hours / row.hours == pytest.approx(row.speedup, abs=0.006)


def test_the_machine_is_as_fast_as_the_row_of_one_gpu():
    assert hours(seconds(1, Way(), server(1)), 1) == pytest.approx(98.05, rel=0.001)
    assert hours(1.0, 2) == IMAGES * EPOCHS / (2 * BATCH) / 3600


def test_one_bandwidth_closes_the_results():
    """Three rows by one number: 2 % is less than a tenth of what the file's links leave."""
    for scheme in results.SCHEMES:
        assert results.rms(results.left(scheme, results.fit(scheme))) < 0.02
        assert np.abs(results.left(scheme, 0.0)).max() > 0.18
        near = results.fit(scheme) * np.array([0.8, 1.25])
        best = results.rms(results.left(scheme, results.fit(scheme)))
        assert all(results.rms(results.left(scheme, float(each))) > best for each in near)
    assert results.fit("c") / 1e9 == pytest.approx(1.1, abs=0.05)


def test_variable_batches_are_forecast_with_it():
    """Nothing is fitted to these rows."""
    for row in results.RESULTS:
        if row.varies:
            ours = results.speedups("c", results.fit("c"), True)[row.gpus]
            assert ours == pytest.approx(row.speedup, rel=0.03), row


def test_slower_links_make_no_scheme_faster():
    for scheme in results.SCHEMES:
        ups = [results.speedups(scheme, width, False)[8] for width in (5e8, 1e9, 4e9, 1e12)]
        assert ups == sorted(ups)


def test_rows_of_eight_are_one_row_up_to_eight_gpus():
    for label, way in schemes.WAYS.items():
        flat = replace(way, row=0)
        for gpus in (1, 4, 8):
            assert megabytes(gpus, way) == megabytes(gpus, flat), label
    row = schemes.WAYS["(c), rows of 8"]
    assert row.grid(8) == (8,) and row.grid(16) == (2, 8)
    assert megabytes(16, row) < megabytes(16, Way(scheme="c"))
    assert schemes.speedup(16, row) > schemes.speedup(16, Way(scheme="c"))


def test_groups_leave_their_part_of_weights():
    """fc6 has 9,216 inputs and 4,096 outputs, fc7 4,096 of both; biases and the rest stay."""
    rest = 4096 * (9216 + 4096)
    whole = sum(int(np.prod(spec.shape)) for spec in network().param_specs().values())
    for groups in schemes.GROUPS:
        model = network(groups)
        held = sum(int(np.prod(spec.shape)) for spec in model.param_specs().values())
        assert whole - held == rest - rest // groups
    assert megabytes(8, Way("data", groups=8)) < megabytes(8, Way("data")) / 4
    assert megabytes(8, Way(groups=8)) == megabytes(8, Way())


def test_groups_that_lie_apart_send_their_own_inputs_alone():
    """Of 8 GPUs each sends 7 parts of 8 of its own images' activities, once, not to 7 others."""
    together, apart = (Way(groups=8, apart=each) for each in (False, True))
    features, hidden, classes, floats = 9216, 4096, 1000, 4 * 128
    sums = 2 * floats * 8 * classes * 7 / 8  # fc8: what is added up, and its gradient
    inputs = 2 * floats * features * 7 / 8
    specs = network().param_specs().items()
    convolutions = sum(int(np.prod(spec.shape)) for name, spec in specs if name[:4] == "conv")
    weights = 2 * 4 * convolutions * 7 / 8  # gradients come, weights go, an eighth stays
    # biases are not divided evenly by all collectives; logits go to their examples' GPU in (c)
    assert megabytes(8, apart) == pytest.approx((inputs + sums + weights) / 1e6, rel=0.001)
    activities = 2 * floats * 7 * (features + 2 * hidden)
    assert megabytes(8, together) == pytest.approx((activities + weights) / 1e6, rel=0.01)
    assert schemes.speedup(8, apart) > schemes.speedup(8, together)


def test_plan_data_needs_its_messages_beside_the_convolutions():
    """Then it is ahead of the schemes; where they travel alone, these are ahead on few GPUs."""
    found = schemes.on_many()
    at = dict(zip(schemes.GPUS, range(7), strict=True))
    alone, beside, c = (found[label] for label in (schemes.AFTERWARDS, "data", "(c)"))
    assert alone[at[1]] == pytest.approx(1)
    for gpus in (2, 4, 8, 16):
        assert alone[at[gpus]] < c[at[gpus]] < beside[at[gpus]]
    assert c[at[32]] < alone[at[32]] < beside[at[32]]


def test_servers_share_a_link():
    machine = servers(2)
    assert machine.hosts == (0,) * 8 + (1,) * 8
    assert seconds(16, Way(), machine) > seconds(16, Way(), server(16, machine.between.bandwidth))


def test_claims_of_the_papers_hold_for_their_networks():
    """As reported: 90 to 95 % of the multiplications and about 5 % of the parameters."""
    alexnet = claims("alexnet-owt")
    assert 0.90 <= alexnet.work <= 0.95 and alexnet.parameters == pytest.approx(0.05, abs=0.005)
    assert 0.6 <= alexnet.time <= 0.9 and alexnet.as_owt
    for name in ("marques-500-1500", "resnet50"):
        assert claims(name).parameters > 0.9, "no large fully connected layers"


def test_counts_of_layers_by_hand():
    """fc6 of alexnet-owt: 9,216 inputs, 4,096 outputs, 128 examples."""
    found = {layer.name: layer for layer in layers_of(models.load("alexnet-owt", (3, 224, 224), 9))}
    fc6 = found["fc6"]
    assert fc6.multiply_adds == 128 * 9216 * 4096
    assert fc6.ratio == pytest.approx(128 * (9216 + 4096) / (9216 * 4096 + 4096))
    assert fc6.letter == "o" and found["conv1"].letter == "n" and not fc6.convolves


def test_every_network_with_a_name_is_listed():
    (shares, letters) = survey().tables
    for table in (shares, letters):
        assert [row[0] for row in table.rows] == list(ZOO)
    *_, layers = survey("vgg11").tables
    assert len(layers.rows) == 11 and [row[-1] for row in layers.rows] == ["n"] * 8 + ["o"] * 3


def test_what_is_off_is_told_as_closed_or_unexplained():
    rows = [Compared("x", 2.0, 2.04), Compared("y", 2.0, 1.0), Compared("z", 2.0, 3.0, "links")]
    assert [row.verdict for row in rows] == ["agrees", "unexplained", "links"]
    lines = compared("title", rows, ("word " * 40,)).lines()
    assert lines[5].split() == ["y", "2", "1", "-50.0", "%", "unexplained"]
    assert len(lines) == 10 and max(map(len, lines)) <= 100
    kept = Table("t", ("a", "b"), (("1", "2"),), ("  as it is " * 20,)).lines()[-1]
    assert kept == "  as it is " * 20, "what is indented is not wrapped"


def replay(*arguments):
    """Do what the command does, in this process."""
    return reproduce(parse([str(each) for each in arguments], "reproduce", {}))


@pytest.mark.limit(200)
@pytest.mark.parametrize(
    "paper, starts",
    [
        ("marques", ("Marques, Falcao", "Table 4", "Table 5", "Figures 9 and 10", "500:1500")),
        ("owt", ("Krizhevsky 2014", "Results", "Schemes on up to 64", "Several servers", "groups")),
        ("survey", ("Two claims", "Convolutions", "Activations", "alexnet-owt", "squeezenet")),
    ],
)
def test_the_command_prints_tables(paper, starts):
    job = mpi_jobs.run(0, "-m", "mpicnn.reproduce", paper, seconds=180)
    assert (job.code, job.err) == (0, ""), job.err
    lines = job.out.splitlines()
    assert lines[0].startswith(starts[0])
    for start in starts:
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.limit(60)
@pytest.mark.parametrize("program", [("-m", "mpicnn.reproduce"), ("-m", "mpicnn", "reproduce")])
def test_an_unknown_paper_ends_with_one_line_and_code_2(program):
    job = mpi_jobs.run(0, *program, "oww", seconds=40)
    assert (job.code, job.out) == (2, "")
    expected = "mpicnn: error: PAPER 'oww': expected marques, owt or survey (see --help)\n"
    assert job.err == expected


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "arguments are required: PAPER"),
        (("survey", "more"), "one argument too many"),
        (("survey", "--model", "vgg12"), "model vgg12: expected default, lenet5"),
        (("owt", "--model", "vgg11"), "model vgg11: owt has its own networks; use survey"),
        (("marques", "--seed", -1), "seed"),
        (("survey", "--plot", "x.pdf"), r"plot x\.pdf: expected a name that ends in \.png"),
        (("survey", "--plot", "none/x.png"), "none: no such directory"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        replay(*arguments)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.limit(90)
def test_a_picture_is_drawn_once(tmp_path, capfd):
    pytest.importorskip("matplotlib")
    for paper in ("marques", "survey"):
        path = tmp_path / f"{paper}.png"
        replay(paper, "--plot", path)
        assert path.read_bytes().startswith(PNG)
        with pytest.raises(UserError, match="exists; give --overwrite"):
            replay(paper, "--plot", path)


def test_a_picture_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'mpicnn\[plot\]'"):
        replay("survey", "--plot", tmp_path / "p.png")
