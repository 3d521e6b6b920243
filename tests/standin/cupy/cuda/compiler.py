"""Stand in for cupy.cuda.compiler."""

from __future__ import annotations


class CompileException(Exception):
    """Carry the compiler's message."""

    def __init__(
        self, msg: str, source: str, name: str, options: tuple[str, ...], backend: str = "nvrtc"
    ) -> None:
        super().__init__(msg)
        self._msg, self.source, self.name, self.options = msg, source, name, options

    def get_message(self) -> str:
        return self._msg
