"""A user's own network, from a Python or a TOML file."""

from __future__ import annotations

import runpy
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from mpicnn.documents import read_toml
from mpicnn.errors import UserError
from mpicnn.layers.base import Layer, Shape
from mpicnn.models import entry


def python_layers(path: Path, input_shape: Shape, classes: int) -> list[entry.Node]:
    """Run the file's `model(input_shape, classes)` and return the layers it lists: (name, Layer),
    or (name, Layer, inputs).

    Raises UserError, with the file's name and line, for whatever goes wrong in the file.
    """
    try:
        model = runpy.run_path(str(path)).get("model")
        if not callable(model):
            raise UserError("defines no function model(input_shape, classes)")
        layers = list(model(input_shape, classes))
    except (Exception, SystemExit) as error:
        # as text, a SyntaxError of this file would name its place once more
        message = str(error)
        if isinstance(error, SyntaxError) and error.filename == str(path):
            message = error.msg
        message = " ".join(message.split())
        if not isinstance(error, UserError):
            message = f"{type(error).__name__}: {message}"
        raise UserError(f"{_place(path, error)}: {message}") from error
    found: list[entry.Node] = []
    for number, item in enumerate(layers, start=1):
        match item:
            case (str() as name, Layer() as layer):
                found.append((name, layer))
            case (str() as name, Layer() as layer, inputs):
                where = f"{path}: item {number} that model() returns ({name})"
                found.append((name, layer, entry.read_inputs(inputs, where)))
            case _:
                raise UserError(
                    f"{path}: item {number} that model() returns is {item!r}, expected (name, "
                    "Layer) such as ('conv1', Conv(32, 5)), or (name, Layer, inputs)"
                )
    return found


def toml_layers(path: Path, classes: int) -> list[entry.Node]:
    """Return the layers of the file's [[layer]] tables.

    Each table has a `type`, optionally a `name` (else the type and its number: "conv1"), optionally
    `inputs`, names of earlier layers (else the one before), and the settings of that type.
    `o = "classes"` stands for the number of classes. Raises UserError,
    with the file's name and the number of the entry.
    """
    try:
        document = read_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    tables = document.pop("layer", None)
    if document:
        raise UserError(f"{path}: unknown key {min(document)!r}, expected [[layer]] tables only")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: no [[layer]] tables, expected one per layer")
    counts: Counter[Any] = Counter()
    layers = []
    for number, table in enumerate(tables, start=1):
        kind = str(table.get("type"))
        counts[kind] += 1
        named = {"name": f"{kind}{counts[kind]}"} | table
        if named.get("o") == "classes":
            named["o"] = classes
        layers.append(entry.build(named, f"{path}, layer {number} ({named['name']})"))
    return layers


def _place(path: Path, error: BaseException) -> str:
    """Return the file, and the line of it in which `error` arose."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{path}, line {lines[-1]}" if lines else str(path)
