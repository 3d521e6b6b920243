"""Read TOML and JSON that anybody may have written: what is wrong is a ValueError of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def read_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises ValueError with what is wrong and where."""
    import tomllib  # 4 ms for those alone who read any

    return _read(tomllib.loads, text)


def read_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError with what is wrong and where."""
    return _read(json.loads, text)


def _read(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("lists or tables are nested too deeply") from None
    except ValueError as error:
        if type(error) is ValueError:  # Python's limit to the digits of a whole number
            raise ValueError("a number has thousands of digits") from None
        raise
