"""Train a network with batch normalisation on small and on large batches; compare the accuracy.

Every run is a real `mpirun -n K python -m mpicnn.train` of the network `large_batch.toml` on the
embedded images. A run that has ended is not done again, one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from accuracy import Kind, Run, numbers, spread, stop, train

SMALL, LARGE = 64, 2048
COMMON = (
    "--model", str(Path(__file__).with_suffix(".toml")), "--epochs", "30", "--pad", "2",
    "--crop", "28", "--schedule", "polynomial", "--power", "1", "--threads", "1",
)  # fmt: skip
SIDES = {
    "SGD": (SMALL, "--rate 0.05 --warmup 2 --decay 0.0005"),
    # k times the batch, k times the rate (Goyal et al. 2017)
    "SGD, linear": (LARGE, "--rate 1.6 --warmup 5 --decay 0.0005"),
    "LARS": (LARGE, "--optimiser lars --rate 3 --trust 0.01 --warmup 5 --decay 0.0005"),
    "LAMB": (LARGE, "--optimiser lamb --rate 0.05 --warmup 5 --decay 0.01"),
}


@dataclass(frozen=True)
class Side(Kind):
    """What all runs of a row of the table share: `update` names the side."""

    def options(self) -> list[str]:
        """Return the settings of training that make it this side."""
        batch, settings = SIDES[self.update]
        return [*COMMON, "--batch", str(batch), *settings.split()]


def grid(out: Path, ranks: int, seeds: Sequence[int]) -> Iterator[Run]:
    """Yield all runs, whole seeds one after the other."""
    for seed in seeds:
        for side in SIDES:
            name = side.replace(", ", "-").lower()
            yield Run(Side(side, ranks), seed, out / f"{name}-seed-{seed}")


def table(runs: Sequence[Run]) -> str:
    """Return the Markdown table: a row per side, mean and standard deviation over the seeds."""
    lines = [
        "| optimiser | batch | top-1, % | from the first row | by seed |",
        "|---|---|---|---|---|",
    ]
    first = 0.0
    for side, (batch, _) in SIDES.items():
        top1 = [100 * run.score().top1 for run in runs if run.kind.update == side]
        first = first or mean(top1)
        by_seed = ", ".join(f"{value:.2f}" for value in top1)
        lines.append(
            f"| {side} | {batch} | {spread(top1, 2)} | {mean(top1) - first:+.2f} | {by_seed} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Do the runs that are missing, then print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory for runs and large_batch.md")
    parser.add_argument("--ranks", type=int, default=1, metavar="K", help="of every run [1]")
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3, 4, 5, 6], metavar="N,N,…")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs side by side [1]")
    parser.add_argument("--launcher", default="mpirun -n", help="before the number of ranks")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = list(grid(asked.out, asked.ranks, asked.seeds))
    with ThreadPoolExecutor(asked.at_once) as pool:
        for failure in pool.map(lambda run: train(run, asked.launcher, []), runs):
            if failure:
                pool.shutdown(cancel_futures=True)
                stop(failure)
    (asked.out / "large_batch.md").write_text(table(runs) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
