"""The training loop: steps, tests, checkpoints, and the ways in which it ends."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np

from mpicnn.checkpoint import Checkpoints
from mpicnn.data.augment import augmentation
from mpicnn.data.file import Dataset
from mpicnn.data.loader import Batches, Inputs, Order
from mpicnn.division.planfile import plan_toml
from mpicnn.errors import UserError
from mpicnn.job.agreement import from_root
from mpicnn.run.meta import check_meta
from mpicnn.run.testing import Score, TestSet, test
from mpicnn.step import trace
from mpicnn.step.optimiser import Hyper, Optimiser, RateSchedule, scale
from mpicnn.step.timing import CATEGORIES, StepTimer

if TYPE_CHECKING:
    from mpicnn.job.signals import Signals
    from mpicnn.run.distributed import DistributedModel
    from mpicnn.settings.definitions import Settings


class Callback(Protocol):
    """Describe what a run calls when something has happened."""

    def step(self, step: int, score: Score, count: int, rate: float) -> None:
        """Note a finished training step of `count` examples."""

    def tested(self, step: int, score: Score) -> None:
        """Note a test on all test examples."""

    def saved(self, path: Path) -> None:
        """Note a saved checkpoint."""


class NoCallback:
    """Do nothing: the callback of all ranks but the first."""

    def step(self, step: int, score: Score, count: int, rate: float) -> None:
        """Note a finished training step."""

    def tested(self, step: int, score: Score) -> None:
        """Note a test."""

    def saved(self, path: Path) -> None:
        """Note a saved checkpoint."""


def hyper(settings: Settings, steps_per_epoch: int) -> Hyper:
    """Return rate, decay and schedule, scaled to the batch as the settings say."""
    rate, decay = scale(
        settings.rate, settings.decay, settings.batch, settings.reference_batch, settings.scaling
    )
    schedule = RateSchedule(
        settings.schedule, settings.drops, settings.drop_factor, settings.warmup * steps_per_epoch
    )
    return Hyper(rate, settings.momentum, decay, settings.bias_rate, schedule)


class Trainer:
    """Train a network over a data set, from the step that its state is at to the end.

    `step` counts the finished steps, `images` the examples they took here and now; `score` is of
    the last test; `spent` holds the seconds of all steps by kind, without tests and checkpoints.
    """

    def __init__(
        self,
        distributed: DistributedModel,
        settings: Settings,
        data: Dataset,
        checkpoints: Checkpoints,
    ) -> None:
        self.distributed = distributed
        self.settings = settings
        self.data = data
        self.checkpoints = checkpoints
        self.augment = augmentation(settings)
        self.state = distributed.initial()
        self.step = 0
        self.steps_per_epoch = ceil(len(data.split("train")) / settings.batch)
        self.steps = max(1, ceil(settings.epochs * self.steps_per_epoch))
        self.optimiser = self._optimiser()
        self.last_saved: Path | None = None
        self.images = 0
        self.score: Score | None = None
        self.test_due = False
        self.spent = dict.fromkeys(CATEGORIES, 0.0)
        self.unread: StepTimer | None = None
        self.begun = 0
        self.tracing = bool(settings.trace)
        self.trace: trace.Trace | None = None

    def _optimiser(self) -> Optimiser:
        """Return what updates the parameters, those of the head at a rate of their own."""
        model = self.distributed.model
        head = tuple(f"{name}." for name, _ in model.layers[model.fc_start :])
        specs = {w.name: w.param for w in self.distributed.weights if not w.buffer}
        return Optimiser(
            self.distributed.ops,
            self.state,
            specs,
            hyper(self.settings, self.steps_per_epoch),
            self.steps,
            frozenset(name for name in specs if name.startswith(head)),
            self.settings.fc_rate,
            self.settings.fc_update == "round",
        )

    def restore(self) -> None:
        """Continue from the newest valid checkpoint, or begin where there is none. Collective."""
        comm = self.distributed.mesh.world.comm
        if not from_root(comm, lambda: " ".join(map(str, self.checkpoints.paths()))):
            return
        meta = self.distributed.load(self.state, self.checkpoints)
        check_meta(meta, self.checkpoints.directory)
        before, now = (
            tomllib.loads(text) for text in (meta["plan"], plan_toml(self.distributed.plan))
        )
        parts = ("batch_norm", "micro_batches")
        if now["batch_norm"] == "micro" and any(before.get(k) != now[k] for k in parts):
            raise UserError(
                "batch-norm micro: the run depends on its micro-batches, so it goes on with those "
                f"it began with: micro-batches {before['micro_batches']}, batch-norm "
                f"{before.get('batch_norm', 'batch')}"
            )
        rounds = ("scheme", "grid", "shares")
        if self.settings.fc_update == "round" and any(before[k] != now[k] for k in rounds):
            raise UserError(
                "fc-update round: the run depends on its rounds, so it goes on with the scheme, "
                f"ranks and shares it began with: scheme {before['scheme']}, "
                f"grid {before['grid']}, shares {before['shares']}"
            )
        self.step = self.distributed.activity.step = meta["step"]
        self.test_due = meta.get("test_due", False)

    def save(self, watcher: Callback) -> None:
        """Write a checkpoint; refuse to where a parameter is not finite. Collective."""
        comm = self.distributed.mesh.world.comm
        self.distributed.activity.begin("checkpoint", waits=comm.rank != 0)  # rank 0 writes
        arrays = [*self.state.params.values(), *self.state.velocity.values()]
        broken = not all(bool(self.distributed.ops.xp.isfinite(a).all()) for a in arrays)
        if self.distributed.mesh.sum(np.array([float(broken)])).wait()[0]:
            self._diverged("a parameter")
        meta = {
            "step": self.step,
            "test_due": self.test_due,
            "epoch": self.step / self.steps_per_epoch,
            "seed": self.settings.seed,
            "settings": self.settings.to_json(),
            "name": self.distributed.model.name,
            "input_shape": list(self.distributed.model.input_shape),
            "model": self.distributed.model.describe(),
            "image_shape": list(self.data.shape),
            "classes": list(self.data.classes),
            "mean": self.data.mean.tolist(),
            "std": self.data.std.tolist(),
            "plan": plan_toml(self.distributed.plan),
            "data": self.data.digest,
            "stamp": list(self.data.stamp),
        }
        self.last_saved = self.checkpoints.save(comm, self.distributed.tensors(self.state), meta)
        watcher.saved(self.last_saved)

    def run(self, watcher: Callback, signals: Signals) -> bool:
        """Train to the end; return False where a signal on any rank ended the run early.

        Saves a checkpoint at either; a test that was not finished is made when the run goes on.
        Collective.
        """
        settings = self.settings
        self.begun = self.step
        if self.tracing:
            self.distributed.mesh.collect(np.zeros(1))
            self.trace = trace.Trace()
        test_every = self._period(settings.evaluate_every)
        save_every = self._period(settings.checkpoint_every)
        with Batches(
            self.data.split("train"),
            Order(settings.batch, settings.seed, self.step),
            lambda n: self.distributed.program(n).positions,
            Inputs(
                self.data.mean, self.data.std, self.augment, self.distributed.dtype,
                self.distributed.ops,
            ),
        ) as batches:  # fmt: skip
            stop = bool(self.distributed.mesh.sum(np.array([signals.stopping()], float)).wait()[0])
            stop = stop or not self._test(watcher, signals)
            while not stop and self.step < self.steps:
                stop = self._one(batches, watcher, signals.stopping())
                last = self.step == self.steps
                if stop or last:
                    self._book()
                self.test_due = last or self.step % test_every == 0
                stop = stop or not self._test(watcher, signals)
                if not stop and (last or self.step % save_every == 0):
                    self.save(watcher)
            if stop:
                self.save(watcher)
                return False
        if self.score is None:
            self.score = self.test()
        return True

    def _test(self, watcher: Callback, signals: Signals) -> bool:
        """Make the test that is due, if one is; return whether no rank was stopping. Collective."""
        if self.test_due:
            score = self.test(signals.stopping)
            if score is None:
                return False
            self.score, self.test_due = score, False
            watcher.tested(self.step, score)
        return True

    def test(self, stopping: Callable[[], bool] = lambda: False) -> Score | None:
        """Return the score on all test examples, None if a rank is `stopping` before."""
        data, batch = self.data, self.settings.eval_batch
        examples = TestSet(data, self.augment, batch, data.mean, data.std)
        return test(self.distributed, self.state, examples, stopping)

    def _period(self, epochs: float) -> int:
        """Return a number of epochs as a number of steps, at least 1; 0 epochs as the whole run."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs else self.steps

    def _one(self, batches: Batches, watcher: Callback, stopping: bool) -> bool:
        """Do one step; return whether a rank is `stopping`."""
        distributed = self.distributed
        number = self.step - self.begun
        traced = self.trace and trace.FIRST <= number < trace.FIRST + trace.COUNT
        executor, activity = distributed.executor, distributed.activity
        timer = StepTimer(executor.device_timer, self.trace if traced else None, activity)
        executor.timer = timer
        reading = timer.begin("data", "other")
        batch = next(batches)
        timer.end(reading)
        program = distributed.program(batch.count)
        rate = self.optimiser.rate_at(self.step)
        loss, top1, top5, stop = distributed.executor.step(
            program, self.optimiser, batch.x, batch.targets, self.step, stopping
        ).tolist()
        if not isfinite(loss):
            self._diverged("the loss")
        self.step = activity.step = self.step + 1
        self.images += batch.count
        # a step late: to read it now would wait for the device, which has yet to update weights
        self._book()
        self.unread = timer
        score = Score(loss / batch.count, top1 / batch.count, top5 / batch.count)
        activity.begin("progress display")
        watcher.step(self.step, score, batch.count, rate)
        return stop > 0

    def _book(self) -> None:
        """Add the last step's times to those spent."""
        if self.unread is not None:
            for kind, seconds in self.unread.by_category.items():
                self.spent[kind] += seconds
            self.unread = None

    def _diverged(self, what: str) -> NoReturn:
        kept = f"the last checkpoint is {self.last_saved}" if self.last_saved else "none was saved"
        raise UserError(
            f"step {self.step + 1}: {what} is not finite, so training has diverged; "
            f"lower the rate ({self.settings.rate:g}) or add warm-up; {kept}"
        )
