"""Show the progress of a run: a bar on a terminal, else lines.

Used on one rank; nothing here communicates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TextIO

from mpicnn.run.metrics import Metrics, MetricsRow
from mpicnn.run.output import write_lines
from mpicnn.run.terminal import width as terminal_width
from mpicnn.text import duration, figure

if TYPE_CHECKING:
    from mpicnn.run.testing import Score

LOGS_PER_EPOCH = 10


class ProgressDisplay:
    """Show how far a run is: a bar on a terminal, a line per row elsewhere.

    `mode` is "auto", "bar", "lines" or "off"; the run goes from step `start` to step `steps`. `log`
    gets every line, whatever is shown.
    """

    def __init__(
        self,
        mode: str,
        steps: int,
        start: int = 0,
        stream: TextIO | None = None,
        time: Callable[[], float] = monotonic,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._stream, self._log = stream or sys.stdout, log
        self._steps, self._start = steps, start
        self._time, self._since = time, time()
        self._quiet = mode == "off"
        self._bar: Any = None
        width = terminal_width(stream)
        if mode == "bar" or (mode == "auto" and width is not None):
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps, initial=start, file=self._stream, ncols=width, leave=False,
                dynamic_ncols=self._stream.isatty(),
                bar_format="{n_fmt}/{total_fmt} |{bar}|{desc} left {remaining}",
            )  # fmt: skip

    def advance(self, step: int) -> None:
        """Move the bar to `step`; cheap enough for every step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def show(self, row: MetricsRow) -> None:
        """Show a row: training in the bar or as a line with the time left, a test as a line."""
        accuracy = f"loss {row.loss:.4f} top1 {100 * row.top1:.1f} %"
        if row.split != "train":
            accuracy = f"{row.split} {accuracy} top5 {100 * row.top5:.1f} %"
        speed = f"{figure(row.images_per_second)} images/s"
        where = f"step {row.step:>{len(str(self._steps))}}/{self._steps} epoch {row.epoch:.2f}"
        left = f" left {self._left(row.step)}" if row.split == "train" else ""
        line = f"{where} {accuracy} {speed}{left}"
        if self._bar is not None and row.split == "train":
            self._bar.set_description_str(f" epoch {row.epoch:.2f} {accuracy} {speed}")
            self._log(line)
        else:
            self.note(line)

    def note(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        self._log(text)
        if self._bar is not None:
            self._bar.clear()
        if not self._quiet:
            write_lines(text, self._stream)
        if self._bar is not None:
            self._bar.refresh()

    def _left(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "-"
        return duration((self._time() - self._since) / done * (self._steps - step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class Reporter:
    """Show how a run goes and write its metrics, as a callback (`mpicnn.run.callback.Callback`).

    A row stands for `every` steps (0: a tenth of an epoch, so that its last row is as long as the
    others); its speed leaves out the time of tests and checkpoints. `sizes` are the numbers of
    images by split.
    """

    def __init__(
        self,
        progress: ProgressDisplay,
        metrics: Metrics,
        steps_per_epoch: int,
        sizes: Mapping[str, int],
        every: int = 0,
        time: Callable[[], float] = monotonic,
    ) -> None:
        self._progress, self._metrics, self._time = progress, metrics, time
        self._steps_per_epoch, self._sizes = steps_per_epoch, sizes
        self._every = every
        self._begun = self._last = time()
        self._step = 0
        self._sums, self._images, self._seconds, self._rate = [0.0, 0.0, 0.0], 0, 0.0, 0.0

    def step(self, step: int, score: Score, count: int, rate: float) -> None:
        """Note a finished training step of `count` examples."""
        self._seconds += self._lap()
        scores = (score.loss, score.top1, score.top5)
        self._sums = [sum + count * each for sum, each in zip(self._sums, scores, strict=True)]
        self._images += count
        self._rate = rate
        self._step = step
        self._progress.advance(step)
        if self._due(step):
            self._end_interval(step)

    def tested(self, step: int, split: str, score: Score) -> None:
        """Note a test of the network after `step` on all examples of a split."""
        seconds = self._lap()
        self._end_interval(self._step)
        speed = self._sizes[split] / seconds
        self._tell(step, split, score.loss, score.top1, score.top5, speed)

    def saved(self, path: Path) -> None:
        """Note a saved checkpoint; the run may end with it, so write what is not written yet."""
        self._lap()
        self._end_interval(self._step)
        self._progress.note(f"saved {path}")

    def _due(self, step: int) -> bool:
        if self._every:
            return step % self._every == 0
        parts = min(LOGS_PER_EPOCH, self._steps_per_epoch)
        return step * parts // self._steps_per_epoch > (step - 1) * parts // self._steps_per_epoch

    def _lap(self) -> float:
        """Return the time (s) since it was last asked for, or since the start."""
        before, self._last = self._last, self._time()
        return max(self._last - before, 1e-9)

    def _end_interval(self, step: int) -> None:
        if self._images:
            loss, top1, top5 = (sum / self._images for sum in self._sums)
            self._tell(step, "train", loss, top1, top5, self._images / self._seconds)
            self._sums, self._images, self._seconds = [0.0, 0.0, 0.0], 0, 0.0

    def _tell(
        self, step: int, split: str, loss: float, top1: float, top5: float, speed: float
    ) -> None:
        row = MetricsRow(
            step, step / self._steps_per_epoch, self._last - self._begun, split,
            loss, top1, top5, speed, self._rate,
        )  # fmt: skip
        self._metrics.write(row)
        self._progress.show(row)
