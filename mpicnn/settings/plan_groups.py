"""The settings that say how the work is divided over ranks, and how plan auto looks for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from mpicnn.errors import UserError
from mpicnn.settings.checks import extents, path, shares_text, size_text, stages_text
from mpicnn.settings.choices import Normalised, Order, Scheme, Sync
from mpicnn.settings.option import Options, group, option

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class PlanChoice(Options):
    """Say who computes what."""

    heading = "how the work is divided over ranks"
    plan: str = option(
        "data",
        "preset data, owt, filter, fc-output, fc-input, master-worker or branches; FILE.toml; or "
        "auto: measure, and look for the fastest",
        "PLAN", check=path, names_file=lambda value: value.endswith(".toml"),
    )  # fmt: skip
    shares: str = option(
        "equal", "share of the work per rank: equal, measured, or numbers like 2,1,1", "SHARES",
        check=shares_text,
    )  # fmt: skip
    calibration: str = option(
        "",
        "file of the speeds for shares measured: read if it exists, else written",
        "FILE",
        unset="none",
        check=path,
        names_file=bool,
    )
    recalibrate: bool = option(False, "measure anew where the speeds in that file do not hold here")
    grid: str = option(
        "", "ranks as a data x model grid, like 2x4", "DxM", unset="one axis",
        check=extents("2x4"),
    )  # fmt: skip
    stages: str = option(
        "1", "pipeline stages: how many, or the layers at which they begin", "N|X,X",
        check=stages_text,
    )  # fmt: skip
    micro_batches: int = option(
        0, "parts into which a batch is cut", "N", ge=0, unset="1; 4 per stage of a pipeline"
    )
    order: Order = option("1f1b", "pipeline schedule of the micro-batches")
    batch_norm: Normalised = option(
        "batch", "what batch norm takes its statistics of: the whole batch, or each micro-batch"
    )
    scheme: Scheme = option(
        "a", "how fully connected layers get the batch; a: at once; b, c: in rounds"
    )
    sync: Sync = option("allreduce", "how replicated weights are kept equal")
    bucket_mb: float = option(1.0, "size of the messages that gradients are joined in, MB", gt=0)
    progress_thread: Literal["auto", "on", "off"] = option(
        "auto", "let a thread drive MPI while layers compute; auto: between several hosts"
    )


@group
class PlanSearch(Options):
    """Say how long and within which limits plan auto looks for a plan."""

    heading = PlanChoice.heading
    memory: str = option(
        "", "plan auto: memory that a rank may take, like 4GB or 512MB", "SIZE", check=size_text,
        unset="its part of what the host has",
    )  # fmt: skip
    search_time: float = option(10.0, "plan auto: s to look for a plan, about", gt=0, le=86400)
    verify: int = option(
        0, "plan auto: time so many of the best plans for a few steps each, and keep the fastest",
        "N", ge=0, le=100, unset="none",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Planning(PlanChoice, PlanSearch):
    """Hold all that says how the work is divided."""


def check_auto(asked: PlanChoice) -> None:
    """Raise UserError where plan auto is asked for along with what it is to choose."""
    if asked.plan != AUTO:
        return
    chosen = ("shares", "grid", "stages", "micro_batches", "order", "batch_norm", "scheme", "sync")
    for each in fields(PlanChoice):
        value = getattr(asked, each.name)
        if each.name in chosen and value != each.default:
            name = each.name.replace("_", "-")
            raise UserError(
                f"{name} {value}: plan auto chooses it; leave {name} out, or name a plan"
            )
