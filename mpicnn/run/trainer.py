"""The training loop: steps, tests, checkpoints, and the ways in which it ends."""

from __future__ import annotations

from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from mpicnn.checkpoint import Checkpoints
from mpicnn.data.augment import augmentation
from mpicnn.data.file import Dataset
from mpicnn.data.loader import Batches, Inputs, Order
from mpicnn.division.planfile import plan_toml
from mpicnn.documents import read_toml
from mpicnn.errors import UserError
from mpicnn.job.agreement import from_root
from mpicnn.run.callback import Callback
from mpicnn.run.choosing import Choice, Tested, metric, refused
from mpicnn.run.meta import check_meta
from mpicnn.run.setup import hyper
from mpicnn.run.testing import Score, TestSet, test
from mpicnn.step import trace
from mpicnn.step.norms import Norms
from mpicnn.step.optimiser import Optimiser
from mpicnn.step.timing import CATEGORIES, StepTimer, sampled

if TYPE_CHECKING:
    from mpicnn.job.signals import Signals
    from mpicnn.run.distributed import DistributedModel
    from mpicnn.run.prediction import Prediction
    from mpicnn.settings.definitions import Settings


class Trainer:
    """Train a network over a data set, from the step that its state is at to the end.

    `step` counts the finished steps, `images` the examples they took here and now; `tested` is the
    last test; `code` the digest of the file of the network, if it has layers that no checkpoint
    can describe; `spent` holds the seconds of the steps that were `timed`, by kind, without tests
    and checkpoints: all, under `timing`, or some, where a rank's device has no free marks;
    `expected` is what a step is forecast to take, if that is asked for, and `spent_by_name` then
    holds their seconds by layer.
    Tests on the way are on `split`, and `choice` follows them: the images for validation if there
    are some, and then the test images are used in the end only.
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
        self.split = data.choosing
        self.choice = Choice(metric(settings, self.split))
        self.tested: Tested | None = None
        self.code = ""
        self.test_due = False
        self.spent = dict.fromkeys(CATEGORIES, 0.0)
        self.timing, self.timed, self.begun = True, 0, 0
        self.unread: StepTimer | None = None
        self.tracing = bool(settings.trace)
        self.trace: trace.Trace | None = None
        self.expected: Prediction | None = None
        self.spent_by_name: dict[str, float] = {}

    def _optimiser(self) -> Optimiser:
        """Return what updates the parameters, those of the head at a rate of their own."""
        model, weights = self.distributed.model, self.distributed.weights
        head = tuple(f"{name}." for name, _ in model.layers[model.fc_start :])
        specs = {w.name: w.param for w in weights if w.learns}
        return Optimiser(
            self.distributed.ops,
            self.state,
            specs,
            hyper(self.settings, self.steps_per_epoch),
            self.steps,
            frozenset(name for name in specs if name.startswith(head)),
            self.settings.fc_rate,
            self.settings.fc_update == "round",
            Norms.of(model.learnt(model.param_specs()), weights, self.distributed.mesh.coords),
        )

    def restore(self) -> None:
        """Continue from the newest valid checkpoint, or begin where there is none. Collective."""
        comm = self.distributed.mesh.world.comm
        if not from_root(comm, lambda: " ".join(map(str, self.checkpoints.paths()))):
            return
        meta = self.distributed.load(self.state, self.checkpoints)
        check_meta(meta, self.checkpoints.directory)
        before, now = (read_toml(text) for text in (meta["plan"], plan_toml(self.distributed.plan)))
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
        if self.choice.by and "best" in meta:
            found = Choice.of(meta["best"])
            best = self.checkpoints.best
            if not from_root(comm, refused, found, self.choice.by, best, self.checkpoints.warn):
                self.choice = found

    def save(self, watcher: Callback, best: bool = False) -> None:
        """Write a checkpoint; refuse to where a parameter is not finite. Collective."""
        comm = self.distributed.mesh.world.comm
        self.distributed.activity.begin("checkpoint", waits=comm.rank != 0)  # rank 0 writes
        parts = [part for kind, part in vars(self.state).items() if kind != "buffers"]
        finite = self.distributed.ops.xp.isfinite
        broken = not all(bool(finite(a).all()) for part in parts for a in part.values())
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
            "best": self.choice.saved(),
        } | ({"code": self.code} if self.code else {})
        tensors = self.distributed.tensors(self.state)
        self.last_saved = self.checkpoints.save(comm, tensors, meta, best)
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
            dear = not self.distributed.executor.device_timer.free
            told = self.distributed.mesh.sum(np.array([signals.stopping(), dear], float)).wait()
            stop, self.timing = bool(told[0]), not told[1]
            stop = stop or not self._test(watcher, signals)
            while not (stop or self._ended):
                stop = self._one(batches, watcher, signals.stopping())
                self.test_due = self.step == self.steps or self.step % test_every == 0
                if stop or self.test_due:
                    self._book()
                stop = stop or not self._test(watcher, signals)
                if not stop and (self._ended or self.step % save_every == 0):
                    self.save(watcher)
            if stop:
                self.save(watcher)
                return False
        return self._last_test(watcher, signals)

    @property
    def _ended(self) -> bool:
        return self.step >= self.steps or bool(self.choice.ended(self.settings.patience))

    def _test(self, watcher: Callback, signals: Signals) -> bool:
        """Make the test that is due, if one is; return whether no rank was stopping. Collective.

        Keeps the state if it is the best so far: before its score is in any other checkpoint, so
        that a run that is killed between the two goes on from before the test.
        """
        if not self.test_due:
            return True
        if not self._score(self.split, self.step, watcher, signals):
            return False
        self.test_due = False
        if self.choice.by:
            assert self.tested
            score = self.tested.score
            # rank 0 decides: ranks must not differ where a sum's last digit does
            better = from_root(
                self.distributed.mesh.world.comm,
                lambda: "better" if self.choice.better(score) else "",
            )
            self.choice = self.choice.after(self.step, score, bool(better))
            if better:
                self.save(watcher, best=True)
        return True

    def _last_test(self, watcher: Callback, signals: Signals) -> bool:
        """Make the test on the test images, if none was made; as `_test`, but saves nothing.

        Where there were images for validation, it is of the best state if one was kept: that is
        loaded in place of the last one, which has been saved.
        """
        step = self.step
        if self.split == "test" and self.tested:
            return True
        if self.split != "test" and self.choice.step not in (None, step):
            comm = self.distributed.mesh.world.comm
            self.distributed.activity.begin("checkpoint", waits=comm.rank != 0)
            best = self.checkpoints.best
            step = int(self.distributed.load(self.state, self.checkpoints, best)["step"])
        return self._score("test", step, watcher, signals)

    def _score(self, split: str, step: int, watcher: Callback, signals: Signals) -> bool:
        """Test the state, that after `step`; return whether no rank was stopping. Collective."""
        data, batch = self.data, self.settings.eval_batch
        examples = TestSet(data, self.augment, batch, data.mean, data.std, split=split)
        score = test(self.distributed, self.state.tested, examples, signals.stopping)
        if score is None:
            return False
        self.tested = Tested(split, step, score)
        watcher.tested(step, split, score)
        return True

    def _period(self, epochs: float) -> int:
        """Return a number of epochs as a number of steps, at least 1; 0 epochs as the whole run."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs else self.steps

    def _one(self, batches: Batches, watcher: Callback, stopping: bool) -> bool:
        """Do one step; return whether a rank is `stopping`."""
        distributed = self.distributed
        number = self.step - self.begun
        traced = self.trace and trace.FIRST <= number < trace.FIRST + trace.COUNT
        executor, activity = distributed.executor, distributed.activity
        marked = bool(traced) or self.timing or sampled(number)
        timer = executor.time_step(marked, self.trace if traced else None)
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
            for name, seconds in self.unread.by_name.items() if self.expected else ():
                self.spent_by_name[name] = self.spent_by_name.get(name, 0.0) + seconds
            self.timed += self.unread.marked
            self.unread = None

    def _diverged(self, what: str) -> NoReturn:
        kept = f"the last checkpoint is {self.last_saved}" if self.last_saved else "none was saved"
        raise UserError(
            f"step {self.step + 1}: {what} is not finite, so training has diverged; "
            f"lower the rate ({self.settings.rate:g}) or add warm-up; {kept}"
        )
