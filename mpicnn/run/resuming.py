"""What a run that goes on must have in common with its checkpoint: settings, data set, network.

Data and network are told by what they are: by a digest and by a description, both in the
checkpoint. So files may move, and be called from another directory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpicnn import models
from mpicnn.checkpoint import compare
from mpicnn.data.file import EMBEDDED, Dataset, open_dataset
from mpicnn.data.verify import verify
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree, from_root
from mpicnn.job.output import say
from mpicnn.models.entry import known
from mpicnn.precision import dtype_of
from mpicnn.run.directory import CONFIG, PLAN, config_settings, saved_file, saved_meta
from mpicnn.run.distributed import outline
from mpicnn.settings.definitions import Settings, differences
from mpicnn.step.state import kept_by

if TYPE_CHECKING:
    from mpi4py import MPI

Meta = dict[str, Any]


def saved_run(comm: MPI.Intracomm, settings: Settings) -> Meta | None:
    """Return the meta data of the run to go on with, None where a run begins. Collective.

    Raises UserError for a run that was begun with other settings.
    """
    text = from_root(comm, _compared, settings)
    return json.loads(text) if text else None


def _compared(settings: Settings) -> str:
    if not settings.resume:
        return ""
    path = Path(settings.run_dir)
    meta = saved_meta(path)
    before = Settings.from_json(meta["settings"]) if meta else config_settings(path)
    if changed := differences(before or settings.absolute(), settings.absolute()):
        raise UserError(
            f"run directory {path}: the run cannot go on with other settings ({'; '.join(changed)})"
            f"; give those it began with (without {CONFIG} its checkpoint's are taken), or another "
            "--run-dir"
        )
    if meta and settings.plan.endswith(".toml") and not os.path.exists(settings.plan):
        raise UserError(
            f"plan {settings.plan}: no such file; give its place now with --plan, or the plan as "
            f"it was carried out: --plan {path / PLAN}"
        )
    return json.dumps(meta) if meta else ""


def open_data(path: str, recorded: bool) -> Dataset:
    """Open a data set; where a run's `recorded` one is not there, say how to give its place now."""
    if recorded and path != EMBEDDED and not os.path.exists(path):
        raise UserError(
            f"data {path}: no such file; if the run's data set has moved, give its place now: "
            "--data FILE.h5"
        )
    return open_dataset(path)


NO_DATA = hashlib.sha256().hexdigest()
"""In place of the digest of a data set, in checkpoints of imported networks."""


def recorded_data(checkpoint: Path, settings: Settings) -> str:
    """Return where the data set of a checkpoint with these settings lay, and still lies if known.

    The run may have gone on with a file that has moved: its directory then knows the place.
    """
    places = [settings.data]
    with suppress(UserError):
        if config := config_settings(checkpoint.parent.parent):
            places.append(config.data)
    return next(filter(os.path.exists, places), settings.data)


def check_digest(data: Dataset, meta: Meta, otherwise: str) -> None:
    """Raise UserError, which ends in what to do `otherwise`, unless `data` is the set of a run."""
    if meta["data"] == NO_DATA:
        raise UserError(
            "the network was imported, and no run has seen data with it: give --data FILE.h5 to "
            "evaluate it, or begin a run by --init"
        )
    if meta["data"] != data.digest:
        raise UserError(
            f"data {data.path}: not the data set that the run began with: its digest is "
            f"{data.digest[:12]}…, that of the run {str(meta['data'])[:12]}…; give the run's with "
            f"--data FILE.h5, or {otherwise}"
        )


def check_data(comm: MPI.Intracomm, data: Dataset, meta: Meta) -> None:
    """Raise UserError unless `data` is the data set of the run to go on with. Collective.

    A file that was written, copied or moved since may be another: all its images are read.
    """
    agree(comm, check_digest, data, meta, "begin a new run")
    if from_root(comm, lambda: "" if meta.get("stamp") == list(data.stamp) else "other"):
        if comm.rank == 0:
            checked = "all its images are checked now, by their digests"
            if any(split.digests is None for split in data.splits.values()):
                checked = "it has no digests of its images, and only a few of them are compared"
            say(None, f"mpicnn: note: data {data.path}: moved or changed since; {checked}")
        verify(comm, data)


def network(
    settings: Settings, shape: tuple[int, ...], classes: int, meta: Meta | None, file: str = ""
) -> models.Model:
    """Return the network to train: the one that `settings` name, or the run's own.

    `meta` are of the run to go on with. Where the settings name no network its checkpoint has it,
    but for layers of a user's own class: these are in the `file` alone.
    Raises UserError where the network named is not that of the run.
    """
    if meta is None:
        return models.load(settings.model, shape, classes)
    described, own = meta["model"], None
    remedy = "the file that defines its layers is needed: give its place with --model FILE.py"
    if known(described):
        own = models.Model.from_description(meta["name"], meta["input_shape"], described)
        described = own.describe()
        remedy = "without --model the run goes on with its own network"
        if not settings.model:
            return own
    name = settings.model or file
    if name.endswith((".py", ".toml")) and not os.path.exists(name):
        raise UserError(f"model {name}: no such file; {remedy}")
    found = models.load(name, shape, classes)
    if (where := first_difference(described, found.describe())) is not None:
        raise UserError(f"model {name}: not the network that the run began with: {where}; {remedy}")
    return own or replace(found, name=meta["name"], layers=found.nodes)


def check_arrays(settings: Settings, model: models.Model) -> None:
    """Raise UserError where the checkpoint to go on with has other arrays than its network needs.

    So no memory is taken that a checkpoint only says it fills.
    """
    if found := saved_file(Path(settings.run_dir)):
        compare(
            found[0],
            outline(model, dtype_of(settings.precision), kept_by(settings.optimiser, settings.ema)),
        )


def as_kept(settings: Settings, meta: Meta | None) -> Settings:
    """Return settings as a run keeps them: to be understood from any directory."""
    kept = settings.absolute()
    if meta and not kept.model:
        kept = replace(kept, model=Settings.from_json(meta["settings"]).model)
    return kept


def first_difference(before: Sequence[Meta], now: Sequence[Meta]) -> str | None:
    """Return where two descriptions of networks differ first, None where they are equal."""
    none: Meta = {}
    for number, (old, new) in enumerate(zip_longest(before, now, fillvalue=none), start=1):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                name = old.get("name") or new.get("name")
                return f"layer {number} ({name}): {key} {old.get(key)} before, {new.get(key)} now"
    return None
