"""Write the operations that carry one array over several hops, one hop after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mpicnn.division.move import Hop
from mpicnn.division.operations import Operation, Slot, Start, Wait


@dataclass
class Journey:
    """Carry an array over `hops` for layer `name`, each from one of `slots` to the next.

    `ended` counts the hops that have been waited for. A hop begins as soon as the one before it has
    ended, but the first, with which a journey begins.
    """

    name: str
    hops: tuple[Hop, ...]
    slots: tuple[Slot, ...]
    back: bool = False
    ended: int = 0

    def begin(self) -> Iterator[Operation]:
        """Yield the start of the first hop."""
        self.ended = 0
        yield self._start()

    def advance(self) -> Iterator[Operation]:
        """Yield what ends all hops but the last, and starts that one."""
        while self.ended < len(self.hops) - 1:
            yield from self._end_hop()

    def end(self) -> Iterator[Operation]:
        """Yield what ends all hops: nothing once they have ended."""
        while self.ended < len(self.hops):
            yield from self._end_hop()

    def _end_hop(self) -> Iterator[Operation]:
        detail = self.hops[self.ended].detail(self.back)
        self.ended += 1
        yield Wait(self.name, self.slots[self.ended], detail, self.back)
        if self.ended < len(self.hops):
            yield self._start()

    def _start(self) -> Operation:
        x, y = self.slots[self.ended : self.ended + 2]
        return Start(self.name, self.hops[self.ended], x, y, self.back)
