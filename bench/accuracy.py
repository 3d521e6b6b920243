"""Train the same network with FC weights that change every step and every round; compare.

Every run is a real `mpirun -n K python -m mpicnn.train`. A run that has ended is not done again,
one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import NoReturn

from mpicnn.run.metrics import MetricsRow, read_rows

FIRST_STEPS = 10  # of which losses are compared: later ones differ by what roundings grew to


@dataclass(frozen=True)
class Kind:
    """What all runs of a row of the table share: when FC weights change, and how many ranks."""

    update: str
    ranks: int

    def options(self) -> list[str]:
        """Return the settings of training that make it this kind.

        With updates by round the FC layers see a K-th of the batch, and have a K-th of the rate.
        """
        scheme = ["--plan", "owt", "--scheme", "c"]
        if self.update == "step":
            return scheme
        return [*scheme, "--fc-update", "round", "--fc-rate", repr(1 / self.ranks)]


@dataclass(frozen=True)
class Run:
    """One training run and where it is kept."""

    kind: Kind
    seed: int
    directory: Path

    def command(self, launcher: str, settings: Sequence[str]) -> list[str]:
        """Return the command line; settings of the kind and seed go before others."""
        return [
            *shlex.split(launcher), str(self.kind.ranks), sys.executable, "-m", "mpicnn.train",
            *settings, *self.kind.options(), "--seed", str(self.seed), "--log-every", "1",
            "--evaluate-every", "0", "--progress", "off", "--run-dir", str(self.directory),
        ]  # fmt: skip

    def finished(self) -> bool:
        """Tell whether the run has come to its end."""
        if not (self.directory / "metrics.csv").exists():
            return False
        rows = read_rows(self.directory / "metrics.csv")
        length = self.config()["epochs"] * (1 - 1e-9)  # steps over steps per epoch is rounded
        # the last test may be of an earlier step, the best
        return bool(rows) and rows[-1].split == "test" and max(r.epoch for r in rows) >= length

    def config(self) -> dict[str, float]:
        """Return the settings that the run left."""
        return tomllib.loads((self.directory / "config.toml").read_text(encoding="utf-8"))

    def score(self) -> MetricsRow:
        """Return the last test."""
        return read_rows(self.directory / "metrics.csv")[-1]

    def first_losses(self) -> list[float]:
        """Return the losses of the first steps."""
        rows = read_rows(self.directory / "metrics.csv")
        return [row.loss for row in rows if row.split == "train"][:FIRST_STEPS]


def grid(out: Path, ranks: Sequence[int], seeds: Sequence[int]) -> Iterator[Run]:
    """Yield all runs, whole seeds one after the other; one rank has one round."""
    for seed in seeds:
        for update in ("step", "round"):
            for k in ranks:
                if update == "step" or k > 1:
                    yield Run(Kind(update, k), seed, out / f"{update}-{k}-seed-{seed}")


def train(run: Run, launcher: str, settings: Sequence[str]) -> str:
    """Do a run, or the rest of it; return why it failed, or nothing."""
    if run.finished():
        return ""
    command = run.command(launcher, [*settings, "--resume"])
    print("+", shlex.join(command), flush=True)
    job = subprocess.run(command, capture_output=True, text=True, check=False)
    if job.returncode == 0:
        return ""
    lines = (job.stderr or job.stdout).strip().splitlines() or ["nothing was said"]
    return f"{run.directory}: exit code {job.returncode}: {lines[-1]}"


@dataclass(frozen=True)
class Result:
    """What came out of a run: batches, and the test after the last step, as fractions.

    `apart` is the largest relative difference of the first steps' losses from those of the first
    run of the same seed.
    """

    update: str
    ranks: int
    batch: int
    fc_batch: int
    seed: int
    loss: float
    top1: float
    top5: float
    apart: float

    @classmethod
    def of(cls, run: Run, reference: Run) -> Result:
        """Read what a run left."""
        kind, score, batch = run.kind, run.score(), int(run.config()["batch"])
        fc_batch = batch // kind.ranks if kind.update == "round" else batch
        pairs = zip(run.first_losses(), reference.first_losses(), strict=True)
        apart = max(abs(a - b) / b for a, b in pairs)
        return cls(
            kind.update, kind.ranks, batch, fc_batch, run.seed,
            score.loss, score.top1, score.top5, apart,
        )  # fmt: skip


def results(runs: Sequence[Run]) -> list[Result]:
    """Return what came out of every run."""
    firsts = {run.seed: run for run in reversed(runs)}
    return [Result.of(run, firsts[run.seed]) for run in runs]


def table(found: Sequence[Result]) -> str:
    """Return the Markdown table: a row per kind, mean and standard deviation over the seeds."""
    lines = [
        "| FC update | ranks | batch (conv, FC) | top-1, % | by seed | test loss |"
        f" first {FIRST_STEPS} losses apart |",
        "|---|---|---|---|---|---|---|",
    ]
    for update, ranks in dict.fromkeys((r.update, r.ranks) for r in found):
        rows = [r for r in found if (r.update, r.ranks) == (update, ranks)]
        top1 = [100 * r.top1 for r in rows]
        cells = (
            f"every {update}", ranks, f"({rows[0].batch}, {rows[0].fc_batch})", spread(top1, 2),
            ", ".join(f"{value:.2f}" for value in top1), spread([r.loss for r in rows], 4),
            f"{max(r.apart for r in rows):.0e}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, with the standard deviation of the sample where there is one."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def numbers(text: str) -> list[int]:
    """Return whole numbers above 0 that commas separate."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the command line's options; `settings` is all that comes after --."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s OUT [options] -- [CONFIG] [options of mpicnn.train]"
    )
    parser.add_argument("out", type=Path, help="directory for runs, accuracy.csv and accuracy.md")
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 4], metavar="K,K,…")
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3], metavar="N,N,…")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs side by side [1]")
    parser.add_argument("--launcher", default="mpirun -n", help="before the number of ranks")
    own = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:own])
    options.settings = argv[own + 1 :]
    return options


def stop(message: str) -> NoReturn:
    """Leave with code 2 and one line."""
    print(f"accuracy.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Do what is missing of the grid, then print and save what came out."""
    options = parse(sys.argv[1:])
    options.out.mkdir(parents=True, exist_ok=True)
    # Runs refuse other settings when they go on; those that have ended could not.
    kept, text = options.out / "settings.txt", shlex.join(options.settings)
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        stop(f"{options.out} was begun with: {kept.read_text(encoding='utf-8')}; take another")
    kept.write_text(text, encoding="utf-8")
    runs = list(grid(options.out, options.ranks, options.seeds))
    with ThreadPoolExecutor(options.at_once) as pool:
        for failure in pool.map(lambda run: train(run, options.launcher, options.settings), runs):
            if failure:
                pool.shutdown(cancel_futures=True)
                stop(failure)
    found = results(runs)
    with (options.out / "accuracy.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(each.name for each in fields(Result))
        writer.writerows(astuple(result) for result in found)
    (options.out / "accuracy.md").write_text(table(found) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
