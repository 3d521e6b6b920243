"""What each rank needs for every layer, and the links: kept, and reused where it holds.

`mpicnn.devices.measuring` finds it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from mpicnn import __version__
from mpicnn.comm.mesh import Mesh
from mpicnn.devices.ranks import Rank, gather_ranks, numbers
from mpicnn.documents import read_json
from mpicnn.errors import UserError
from mpicnn.forecast.machine import Device as Figures
from mpicnn.forecast.machine import Link, Machine, PassRate
from mpicnn.models.entry import describe

if TYPE_CHECKING:
    from mpicnn.devices.choice import Device
    from mpicnn.models import Model

AnyKind = TypeVar("AnyKind")
Numbers = NDArray[np.float64]

WAYS = ("forward", "backward")
FORMAT = 3
"""Version of the file. The first had no number, and nothing of hosts; the first two had times of
convolutions alone."""

RANK_FIELDS = get_type_hints(Rank)


@dataclass(frozen=True)
class Conditions:
    """Say what is timed, and on what: speeds hold for this alone.

    `network` is a digest of its layers and their sizes: networks of one name may differ.
    """

    model: str
    network: str
    input_shape: tuple[int, ...]
    precision: str
    convolution: str
    version: str
    ranks: tuple[Rank, ...]

    def difference(self, now: Conditions) -> str:
        """Return in words what first differs now, "" for nothing."""
        pairs: list[tuple[str, object, object]] = [
            ("model", self.model, now.model),
            ("digest of its layers", self.network, now.network),
            ("image shape", self.input_shape, now.input_shape),
            ("precision", self.precision, now.precision),
            ("convolution", self.convolution, now.convolution),
            ("version", self.version, now.version),
            ("number of ranks", len(self.ranks), len(now.ranks)),
        ]
        for number, (old, new) in enumerate(zip(self.ranks, now.ranks, strict=False)):
            pairs += [
                (f"{each} of rank {number}", getattr(old, each), getattr(new, each))
                for each in RANK_FIELDS
            ]
        odd = (pair for pair in pairs if pair[1] != pair[2])
        return next((f"{what}: {old} when measured, {new} now" for what, old, new in odd), "")


def digest(model: Model) -> str:
    """Return a short text that tells networks apart by their layers and sizes."""
    layers = [
        (describe(name, layer), fed)
        for (name, layer), fed in zip(model.layers, model.fed, strict=True)
    ]
    return sha256(json.dumps([layers, sorted(model.frozen)]).encode()).hexdigest()[:12]


def conditions(mesh: Mesh, device: Device, model: Model, precision: str) -> Conditions:
    """Return what these ranks compute, and on what. Collective."""
    ranks = tuple(gather_ranks(mesh, device))
    shape = tuple(model.input_shape)
    return Conditions(
        model.name, digest(model), shape, precision, device.convolution, __version__, ranks
    )


@dataclass(frozen=True)
class Speed:
    """Hold what a rank takes.

    The i-th pass takes it `starts[i]` s and `per_work[i]` s for every FLOP (contractions) or byte
    (other layers), all convolutions of an example `per_example` s (all layers, where there are no
    convolutions), an update `per_byte` s for every byte that it touches, and any other operation
    `start` s.
    """

    starts: tuple[float, ...]
    per_work: tuple[float, ...]
    per_example: float
    per_byte: float
    start: float


@dataclass(frozen=True)
class Calibration:
    """Hold what was measured: the speed of every rank in all `passes`, and the links.

    A layer's pass is named as in "conv1 forward". `written` says by what and when.
    """

    conditions: Conditions
    passes: tuple[str, ...]
    speeds: tuple[Speed, ...]
    inside: Link
    between: Link
    written: str

    @property
    def shares(self) -> tuple[float, ...]:
        """Return w_i = (max t / t_i) / sum_j (max t / t_j) (Marques, eq. 1)."""
        return shares_of(self.per_example)

    @property
    def per_example(self) -> list[float]:
        """Return t_i, what each rank takes for all convolutions of an example, s."""
        return [speed.per_example for speed in self.speeds]

    def machine(self) -> Machine:
        """Return the machine that was measured, for forecasts of the same network."""
        starts = np.array([speed.starts for speed in self.speeds])
        rates = _inverse(np.array([speed.per_work for speed in self.speeds]))
        nothing = PassRate(np.zeros(len(starts)), np.full(len(starts), inf))
        layers = {each.rpartition(" ")[0]: (nothing, nothing) for each in self.passes}
        for at, (name, _, way) in enumerate(each.rpartition(" ") for each in self.passes):
            both = list(layers[name])
            both[WAYS.index(way)] = PassRate(starts[:, at], rates[:, at])
            layers[name] = (both[0], both[1])
        devices = tuple(
            Figures(inf, inf, 1 / speed.per_byte if speed.per_byte else inf, speed.start)
            for speed in self.speeds
        )
        hosts = numbers([rank.host for rank in self.conditions.ranks])
        return Machine(devices, tuple(hosts), self.inside, self.between, layers)

    def to_json(self) -> str:
        """Return the calibration as readable text, its shares with it."""
        ranks = [
            asdict(rank) | {"share": share} | asdict(speed)
            for rank, share, speed in zip(
                self.conditions.ranks, self.shares, self.speeds, strict=True
            )
        ]
        document = {"format": FORMAT, "written": self.written} | asdict(self.conditions)
        document |= {"inside": _table(self.inside), "between": _table(self.between)}
        text = json.dumps(document | {"passes": self.passes, "ranks": ranks}, indent=1)
        lists = r"\[\s+([^\[\]{}]*?)\s+\]"  # each on one line
        return re.sub(lists, lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Calibration:
        """Return what `to_json` wrote; other keys are passed over.

        Raises UserError for anything else.
        """
        try:
            found = read_json(text)
            if _is(int, found["format"]) > FORMAT:
                raise UserError(
                    f"calibration {where}: was written by a newer mpicnn ({found['written']}); "
                    "give another name to measure anew"
                )
            made = cls(
                _conditions(found),
                tuple(_is(str, name) for name in found["passes"]),
                tuple(map(speed_of, found["ranks"])),
                _link(found["inside"]),
                _link(found["between"]),
                _is(str, found["written"]),
            )
            sound = made._sound()
        except (ValueError, KeyError, TypeError, OverflowError):
            sound = False
        if not sound:
            raise UserError(f"calibration {where}: not a calibration; delete it to measure anew")
        return made

    def _sound(self) -> bool:
        return bool(self.passes and self.speeds) and all(
            len(speed.starts) == len(speed.per_work) == len(self.passes)
            and all(0 <= value < inf for value in (*speed.starts, *speed.per_work))
            and 0 < speed.per_example < inf
            and 0 <= speed.per_byte < inf
            and 0 <= speed.start < inf
            for speed in self.speeds
        )


def _conditions(found: Mapping[str, Any]) -> Conditions:
    return Conditions(
        _is(str, found["model"]),
        _is(str, found["network"]),
        tuple(_is(int, n) for n in found["input_shape"]),
        _is(str, found["precision"]),
        _is(str, found["convolution"]),
        _is(str, found["version"]),
        tuple(
            Rank(**{each: _is(kind, row[each]) for each, kind in RANK_FIELDS.items()})
            for row in found["ranks"]
        ),
    )


def speed_of(row: Mapping[str, Any]) -> Speed:
    """Return a rank's speed from its entries in a file. Raises KeyError, TypeError, ValueError."""
    starts, per_work = (tuple(map(float, row[name])) for name in ("starts", "per_work"))
    return Speed(
        starts, per_work, *(float(row[name]) for name in ("per_example", "per_byte", "start"))
    )


def _table(link: Link) -> dict[str, float | None]:
    """Return a link as JSON knows it, which has no infinite bandwidth."""
    return asdict(link) | ({"bandwidth": None} if link.bandwidth == inf else {})


def _link(found: Mapping[str, Any]) -> Link:
    """Return a link. Raises ValueError for what none can be."""
    latency, busy = float(found["latency"]), float(found["busy"])
    bandwidth = inf if found["bandwidth"] is None else float(found["bandwidth"])
    if not (0 <= latency < inf and bandwidth > 0 and 0 <= busy <= 1):
        raise ValueError
    return Link(latency, bandwidth, busy)


def _is(kind: type[AnyKind], value: Any) -> AnyKind:
    """Return a value of this kind. Raises TypeError for another."""
    if type(value) is not kind:
        raise TypeError
    return value


def _inverse(values: Numbers) -> Numbers:
    return np.divide(1, values, out=np.full(values.shape, inf), where=values > 0)


def shares_of(times: Sequence[float]) -> tuple[float, ...]:
    """Return every device's share of the kernels for its time `t_i` (s) (Marques, eq. 1)."""
    slowest = max(times)
    speeds = [slowest / t for t in times]
    return tuple(speed / sum(speeds) for speed in speeds)


def kept(file: str) -> str:
    """Return the text of a calibration file, "" where there is none yet.

    Raises UserError where it cannot be read.
    """
    path = Path(file)
    try:
        return path.read_text() if file and path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration {file}: cannot be read: {error}") from None


def reuse(text: str, where: str, now: Conditions) -> Calibration | str:
    """Return a saved calibration, or in words why it does not hold now.

    Raises UserError for what is no calibration.
    """
    try:
        document = read_json(text)
        if document.get("format", 1) < FORMAT and ("backends" in document or "ranks" in document):
            return "was written by an older mpicnn, with the times of convolutions alone"
    except (ValueError, AttributeError, TypeError):
        pass
    found = Calibration.from_json(text, where)
    return found.conditions.difference(now) or found
