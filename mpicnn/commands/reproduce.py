"""Replay the tables of a paper: its figures, ours, what is left, and what closes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn.data.write import check_target
from mpicnn.errors import UserError
from mpicnn.forecast.papers.marques import marques
from mpicnn.forecast.papers.owt import owt
from mpicnn.forecast.papers.replay import Replay
from mpicnn.forecast.papers.survey import survey
from mpicnn.job.agreement import from_root
from mpicnn.job.output import say
from mpicnn.models.zoo import ZOO
from mpicnn.run.picture import figure
from mpicnn.run.replay_picture import draw_replay
from mpicnn.run.setup import read_settings
from mpicnn.settings.command_settings import ReproduceSettings
from mpicnn.text import one_of

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Print the tables of a paper beside ours. Collective.

    One rank does all of it.
    """
    settings = read_settings(comm, ReproduceSettings, argv)
    from_root(comm, reproduce, settings)


def reproduce(settings: ReproduceSettings) -> str:
    """Compute, print and draw what the settings ask for.

    Raises UserError for a network without a name, and where a file cannot be written.
    """
    if settings.plot:  # before the work is done
        check_target(Path(settings.plot), settings.overwrite)
        figure("pictures", 1, 1)
    found = replay(settings)
    say(None, found.text(), fd=1)
    if settings.plot:
        draw_replay(found, Path(settings.plot))
    return ""


def replay(settings: ReproduceSettings) -> Replay:
    """Return the replay of the paper that is asked for. Raises UserError for an unknown network."""
    if settings.model and settings.model not in ZOO:
        raise UserError(f"model {settings.model}: expected {one_of(tuple(ZOO))}")
    match settings.paper:
        case "marques":
            return marques(settings.seed)
        case "owt":
            return owt()
    return survey(settings.model)
