"""What a person sees of a run: first lines, progress, metrics, summary, curves."""

from __future__ import annotations

import errno
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import mpi_jobs
import pytest

from mpicnn.devices.ranks import Rank
from mpicnn.errors import UserError
from mpicnn.run.directory import write_text
from mpicnn.run.metrics import COLUMNS, Metrics, MetricsRow, plot_run, read_rows
from mpicnn.run.output import Output, write_lines
from mpicnn.run.progress import ProgressDisplay, Reporter, duration, figure
from mpicnn.run.summary import (
    Forecast,
    Memory,
    Opening,
    RunSummary,
    TimeSplit,
    startup,
    summary,
    where_time_went,
)
from mpicnn.run.testing import Score

SIZES = {"train": 80, "validation": 20, "test": 50}


class Time:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def row(step: int, split: str = "train") -> MetricsRow:
    # 1/3 and 0.1 + 0.2 have no short decimal form: they show whether files keep floats exactly.
    return MetricsRow(step, step / 4, 2.5, split, 1 / 3, 0.841, 0.99, 3124.4, 0.1 + 0.2)


def test_metrics_survive_the_file(tmp_path: Path) -> None:
    rows = [row(1), row(2), row(2, "test")]
    with Metrics(tmp_path / "metrics.csv") as metrics:
        for each in rows:
            metrics.write(each)
            # There at once, not only when the file is closed: a run may be killed.
            assert read_rows(tmp_path / "metrics.csv")[-1] == each
    assert read_rows(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == (
        "step,epoch,seconds,split,loss,top1,top5,images_per_second,rate"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("cut", [0, 1, 5, 30])
def test_resumed_metrics_drop_later_and_torn_rows(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    with Metrics(path) as metrics:
        for step in range(1, 6):
            metrics.write(row(step))
    text = path.read_text()
    path.write_text(text[: len(text) - cut])
    expected = [row(step) for step in range(1, 6 if cut == 0 else 5)]
    assert read_rows(path) == expected
    with Metrics(path, resumed=3) as metrics:
        metrics.write(row(4, "test"))
    assert read_rows(path) == [row(1), row(2), row(3), row(4, "test")]


def test_metrics_begin_anew_without_resume_and_where_none_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with Metrics(path, resumed=7) as metrics:
        metrics.write(row(8))
    assert read_rows(path) == [row(8)]
    with Metrics(path):
        pass
    assert read_rows(path) == []


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\xff\xfe", f"{','.join(COLUMNS)}\n1,x\n".encode()]
)
def test_damaged_metrics_are_set_aside(tmp_path: Path, content: bytes) -> None:
    """They do not stop the run from going on, and none of those before is lost."""
    path = tmp_path / "metrics.csv"
    for number in (1, 2):
        path.write_bytes(content)
        with Metrics(path, resumed=1) as metrics:
            assert metrics.damaged == tmp_path / f"metrics-damaged-{number}.csv"
            assert metrics.damaged.read_bytes() == content
            metrics.write(row(2))
        assert read_rows(path) == [row(2)]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv: not a run's metrics"):
        read_rows(path)


def test_a_disk_that_is_full_keeps_no_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"config\.toml: cannot be written: No space"):
        write_text(tmp_path / "config.toml", "batch = 1")
    assert not list(tmp_path.iterdir())


class Failing(io.StringIO):
    """A stream that cannot be written from its second line on."""

    def write(self, text: str) -> int:
        if self.getvalue():
            raise OSError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_output_goes_on_in_the_log_where_nobody_reads_it(tmp_path: Path) -> None:
    stream, path = Failing(), tmp_path / "log.txt"
    path.write_text("before\n")
    with Output(path, stream) as output:
        for text in ("one", "two\nthree", "four"):
            output.show(text)
        output.log("five")
    assert stream.getvalue() == "one\n"
    before, when, *rest = path.read_text().splitlines()
    assert before == "before" and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", when)
    note = "note: standard output cannot be written: Broken pipe; it goes on here"
    assert rest == ["one", "two", "three", note, "four", "five"]


def test_output_goes_on_without_a_log(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "none" / "log.txt"
    with Output(path, stream) as output:
        output.show("one")
        output.log("for the log alone")
    note = f"note: {path} cannot be written: No such file or directory; the run goes on without"
    assert stream.getvalue().splitlines() == [note, "one"]


def test_the_log_has_every_line_whatever_is_shown() -> None:
    for mode in ("bar", "off", "lines"):
        lines: list[str] = []
        with ProgressDisplay(mode, 40, 0, io.StringIO(), Time(), lines.append) as progress:
            progress.show(row(4))
            progress.show(row(4, "test"))
            progress.note("saved")
        assert [line[:14] for line in lines] == ["step  4/40 epo"] * 2 + ["saved"], mode


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Metrics(tmp_path / "missing" / "metrics.csv")


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def writerow(self, _: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with Metrics(tmp_path / "metrics.csv") as metrics:
        monkeypatch.setattr(metrics, "_writer", Full())
        with pytest.raises(UserError, match=r"metrics\.csv: cannot be written: No space"):
            metrics.write(row(1))


def lines_of(mode: str, *rows: MetricsRow, steps: int = 632, start: int = 0) -> list[str]:
    stream, time = io.StringIO(), Time()
    with ProgressDisplay(mode, steps, start, stream, time) as progress:
        time.now += 10
        for each in rows:
            progress.advance(each.step)
            progress.show(each)
    return stream.getvalue().splitlines()


def test_line_of_training_tells_the_time_left() -> None:
    assert lines_of("lines", row(120)) == [
        "step 120/632 epoch 30.00 loss 0.3333 top1 84.1 % 3124 images/s left 0:43"
    ]  # 10 s for 120 steps: 512 more take 42.7 s


def test_time_left_counts_from_where_the_run_was_resumed() -> None:
    (line,) = lines_of("lines", row(20), steps=30, start=10)
    assert line.endswith("left 0:10")
    (line,) = lines_of("lines", row(10), steps=30, start=10)
    assert line.endswith("left -")


def test_line_of_a_test_has_top5_and_no_time_left() -> None:
    (line,) = lines_of("lines", row(8, "test"))
    assert line == "step   8/632 epoch 2.00 test loss 0.3333 top1 84.1 % top5 99.0 % 3124 images/s"


def test_redirected_output_has_lines_without_control_characters() -> None:
    lines = lines_of("auto", row(1), row(2, "test"))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_progress_off_is_silent() -> None:
    assert lines_of("off", row(1), row(2, "test")) == []


def test_bar_shows_training_and_leaves_tests_on_lines_of_their_own() -> None:
    stream = io.StringIO()
    with ProgressDisplay("bar", 40, 10, stream) as progress:
        for step in range(11, 21):
            progress.advance(step)
        progress.show(row(20))
        progress.show(row(20, "test"))
    text = stream.getvalue()
    assert "20/40 |" in text
    assert "epoch 5.00 loss 0.3333 top1 84.1 % 3124 images/s" in text
    printed = [part for part in text.replace("\r", "\n").split("\n") if "test loss" in part]
    assert [part.startswith("step 20/40") for part in printed] == [True]


def test_names_that_the_terminal_cannot_show_do_not_end_the_run() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write_lines("runs/ü ×", stream)
    assert raw.getvalue() == b"runs/\\xfc \\xd7\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (360000, "100:00:00")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(3124.4, "3124"), (84.21, "84.2"), (0.03121, "0.0312"), (99.96, "100")]
)
def test_figure(number: float, text: str) -> None:
    assert figure(number) == text


@pytest.fixture
def reported(tmp_path: Path) -> Iterator[tuple[Reporter, Time, Path, io.StringIO]]:
    stream, time, path = io.StringIO(), Time(), tmp_path / "metrics.csv"
    with Metrics(path) as metrics, ProgressDisplay("lines", 8, 0, stream, time) as progress:
        yield Reporter(progress, metrics, 4, SIZES, every=3, time=time), time, path, stream


def test_reporter_weights_steps_by_their_examples(
    reported: tuple[Reporter, Time, Path, io.StringIO],
) -> None:
    reporter, time, path, _ = reported
    for step, (loss, examples) in enumerate([(1.0, 30), (2.0, 30), (4.0, 20)], start=1):
        time.now += 2
        reporter.step(step, Score(loss, 0.5, 1.0), examples, 0.1)
    (found,) = read_rows(path)
    # (30 + 60 + 80) / 80 examples, in 6 s.
    assert found == MetricsRow(3, 0.75, 6.0, "train", 2.125, 0.5, 1.0, 80 / 6, 0.1)


@pytest.mark.parametrize(
    ("steps_per_epoch", "every", "first", "lengths"),
    [
        (20, 0, [2, 4, 6], {2}),
        (94, 0, [10, 19, 29], {9, 10}),  # ends with a tenth, not with 4 steps that are left over
        (7, 0, [1, 2, 3], {1}),
        (1, 0, [1, 2, 3], {1}),
        (94, 40, [40, 80, 94], {2, 12, 14, 26, 28, 40}),  # a test ends an interval
    ],
)
def test_rows_of_an_epoch(
    tmp_path: Path, steps_per_epoch: int, every: int, first: list[int], lengths: set[int]
) -> None:
    path = tmp_path / "metrics.csv"
    with Metrics(path) as metrics, ProgressDisplay("off", 200) as progress:
        reporter = Reporter(progress, metrics, steps_per_epoch, SIZES, every=every)
        for step in range(1, 3 * steps_per_epoch + 1):
            reporter.step(step, Score(1.0, 0.5, 1.0), 10, 0.1)
            if step % steps_per_epoch == 0:
                reporter.tested(step, "test", Score(1.0, 0.5, 1.0))
    ends = [row.step for row in read_rows(path) if row.split == "train"]
    assert ends[:3] == first
    assert {b - a for a, b in pairwise([0, *ends])} == lengths
    assert set(range(steps_per_epoch, ends[-1] + 1, steps_per_epoch)) <= set(ends)


def test_reporter_leaves_tests_and_checkpoints_out_of_the_speed(
    reported: tuple[Reporter, Time, Path, io.StringIO],
) -> None:
    reporter, time, path, stream = reported
    time.now += 1
    reporter.step(1, Score(1.0, 0.5, 1.0), 10, 0.1)
    time.now += 5
    reporter.tested(1, "test", Score(3.0, 0.25, 0.75))
    time.now += 7
    reporter.saved(Path("checkpoint"))
    for step in (2, 3):
        time.now += 1
        reporter.step(step, Score(1.0, 0.5, 1.0), 10, 0.05)
    first, test, last = read_rows(path)
    assert (first.step, first.images_per_second, first.rate) == (1, 10.0, 0.1)
    assert (test.split, test.images_per_second, test.loss) == ("test", 10.0, 3.0)
    assert (last.step, last.images_per_second, last.seconds) == (3, 10.0, 15.0)
    assert "saved checkpoint" in stream.getvalue().splitlines()


def start(ranks: list[Rank], notes: Sequence[str] = ()) -> list[str]:
    opening = Opening(
        "0.1.0", ranks, "MPICH 5.0.2", "default", 1234567, "embedded", "owt", "runs/default-001",
        notes,
    )  # fmt: skip
    return startup(opening).splitlines()


def test_startup_of_one_rank() -> None:
    assert start([Rank("here", "cpu", "native", 1)]) == [
        "mpicnn 0.1.0: 1 rank, MPICH 5.0.2",
        "  hosts  here: 1 x cpu (native, 1 thread)",
        "  model  default, 1,234,567 parameters",
        "  data   embedded",
        "  plan   owt",
        "  run    runs/default-001",
    ]


def test_startup_joins_hosts_that_are_alike() -> None:
    ranks = [Rank(f"n{i // 2}", "cpu", "native", 2) for i in range(8)]
    lines = start([*ranks, Rank("fat", "cpu", "numpy", 4), Rank("fat", "cpu", "native", 4)])
    assert lines[0] == "mpicnn 0.1.0: 10 ranks, MPICH 5.0.2"
    assert lines[1:3] == [
        "  hosts  n0 ... n3 (4 hosts), each: 2 x cpu (native, 2 threads)",
        "  hosts  fat: 1 x cpu (native, 4 threads) + 1 x cpu (numpy, 4 threads)",
    ]


def test_startup_ends_with_notes() -> None:
    one = [Rank("here", "cpu", "numpy", 1)]
    assert not any("note" in line for line in start(one))
    assert "slower" in start(one, notes=["NumPy is slower"])[-1]


OUTCOME = RunSummary(
    run_dir="runs/default 001",
    steps=632,
    images=80896,
    seconds=204.2,
    test=Score(0.43121, 0.84125, 0.99),
    splits=[TimeSplit(0.04, 0.05, 0.01), TimeSplit(0.015, 0.07, 0.015)],
    memory=[Memory(4_000_000, 2_000_000, 210_000_000), Memory(4_000_000, 0, 260_000_000)],
    launcher="mpirun -n 2",
)


def test_summary() -> None:
    assert summary(OUTCOME).splitlines() == [
        "",
        "632 steps in 3:24, 396 images/s",
        "test: loss 0.4312, top-1 84.12 %, top-5 99.00 %",
        "",
        "one step, ms   rank 1      %   least    most",
        "communication   15.00   15.0   15.00   40.00",
        "convolution     70.00   70.0   50.00   70.00",
        "other           15.00   15.0   10.00   15.00",
        "total          100.00  100.0  100.00  100.00",
        "",
        "memory per rank, MB  least   most",
        "parameters             4.0    4.0",
        "optimiser              0.0    2.0",
        "peak                 210.0  260.0",
        "",
        "runs/default 001 holds the checkpoints, metrics and settings",
        "  evaluate  mpirun -n 2 python -m mpicnn.evaluate 'runs/default 001'",
        "  predict   mpirun -n 2 python -m mpicnn.predict 'runs/default 001' IMAGE ...",
        "  resume    mpirun -n 2 python -m mpicnn.train --resume --run-dir 'runs/default 001'"
        " --epochs MORE",
    ]


def test_a_forecast_is_that_of_the_slowest_rank() -> None:
    expected = [TimeSplit(0.9, 0.9, 0.9), TimeSplit(0.01, 0.06, 0.02)]
    layers = [f"conv{i}" for i in range(7)]
    took = [[0.0] * 7, [0.001 * i * (-1) ** i + 0.01 for i in range(7)]]
    forecast = Forecast(expected, layers, [[0.01] * 7] * 2, took)
    lines = summary(replace(OUTCOME, forecast=forecast)).splitlines()
    assert "one step, ms   rank 1      %   least    most  forecast" in lines
    assert "total          100.00  100.0  100.00  100.00     90.00" in lines
    at = lines.index("what differs most, ms  rank 1  forecast")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["conv6", "16.00", "10.00"], ["conv5", "5.00", "10.00"], ["conv4", "14.00", "10.00"],
    ]  # fmt: skip
    assert not lines[at + 6]
    alone = replace(
        OUTCOME, splits=OUTCOME.splits[:1], forecast=replace(forecast, splits=expected[:1])
    )
    assert "other           10.00   10.0    900.00" in summary(alone).splitlines()


@pytest.mark.parametrize(
    ("splits", "remedies", "told"),
    [
        (
            [TimeSplit(0.06, 0.03, 0.01), TimeSplit(0.02, 0.07, 0.01)],
            ["--shares measured", "--plan auto"],
            "20 % of the ranks' time is waiting for rank 1: try --shares measured or --plan auto",
        ),
        (
            [TimeSplit(0.06, 0.03, 0.01), TimeSplit(0.02, 0.07, 0.01)],
            [],
            "20 % of the ranks' time is waiting for rank 1",
        ),
        (
            [TimeSplit(0.07, 0.02, 0.01), TimeSplit(0.06, 0.03, 0.01)],
            ["--plan auto"],
            "60 % of a step is communication, even on rank 1: try --plan auto",
        ),
        ([TimeSplit(0.03, 0.06, 0.01), TimeSplit(0.02, 0.07, 0.01)], ["--plan auto"], ""),
        ([TimeSplit(0.0, 0.06, 0.01)], ["--plan auto"], ""),
        ([TimeSplit(0, 0, 0)] * 2, ["--plan auto"], ""),
    ],
)
def test_what_is_lost_is_told_with_what_may_help(splits, remedies, told) -> None:
    assert where_time_went(splits, remedies) == told
    lines = summary(replace(OUTCOME, splits=splits, remedies=remedies)).splitlines()
    assert lines.count(told or "no such line") == bool(told)


def test_summary_tables_fit_80_columns_and_ascii() -> None:
    slow = TimeSplit(12.3456, 1234.5678, 99.9)
    text = summary(replace(OUTCOME, splits=[slow] * 1024))
    assert text.isascii()
    assert max(len(line) for line in text.splitlines() if "python" not in line) <= 80


def test_summary_of_little() -> None:
    alone = replace(OUTCOME, splits=OUTCOME.splits[:1], launcher="", memory=OUTCOME.memory[:1])
    assert "one step, ms   rank 0      %" in summary(alone).splitlines()
    assert "  evaluate  python -m mpicnn.evaluate 'runs/default 001'" in summary(alone).splitlines()
    assert "peak        210.0" in summary(alone).splitlines()
    nothing = replace(
        alone, memory=[], steps=0, images=0, seconds=0.0, test=None, splits=[TimeSplit(0, 0, 0)]
    )
    assert summary(nothing).splitlines()[1] == "0 steps in 0:00, - images/s"


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with Metrics(tmp_path / "metrics.csv") as metrics:
        for each in (row(1), row(2), row(2, "validation"), row(2, "test")):
            metrics.write(each)
    job = mpi_jobs.run(0, "-m", "mpicnn.report", tmp_path, seconds=40)
    assert job.code == 0, job.err
    assert job.out.strip() == str(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_without_matplotlib_or_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = mpi_jobs.run(0, "-m", "mpicnn.report", tmp_path, seconds=40)
    assert job.code == 2
    assert "metrics.csv: No such file" in job.err
    Metrics(tmp_path / "metrics.csv")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"mpicnn\[plot\]"):
        plot_run(tmp_path)
