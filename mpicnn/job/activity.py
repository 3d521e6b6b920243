"""What a rank does now, for its own watchdog to read from another thread."""

from __future__ import annotations


class Activity:
    """Hold what this rank does now; `count` changes whenever that does.

    `name` is a layer or a part of the run, `detail` a collective or a direction, `waits` whether
    other ranks are needed for it, `step` the number of finished training steps.
    """

    def __init__(self) -> None:
        self.count = 0
        self.step = 0
        self.name, self.detail, self.waits = "start", "", True

    def begin(self, name: str, detail: str = "", waits: bool = False) -> None:
        """Note what is done from now on."""
        self.name, self.detail, self.waits = name, detail, waits
        self.count += 1

    def __str__(self) -> str:
        detail = f", {self.detail}" if self.detail else ""
        return f"{self.name}{detail} (after step {self.step})"
