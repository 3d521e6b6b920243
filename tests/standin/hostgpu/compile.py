"""Compile CUDA C++ for the host, once per source: the result is kept in a temporary folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_HERE = Path(__file__).parent
_HEADERS = ("device.h", "block.h", "launch.h")
_FLAGS = (
    "-std=gnu++17",
    "-O1",
    "-w",
    "-fPIC",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fsanitize=alignment,bounds,null",
    "-U_FORTIFY_SOURCE",  # it takes a jump to another stack for an error
)
_BOUNDS = re.compile(r"__launch_bounds__\s*\([^()]*\)")
_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+[^;{(]*?(\w+)\s*\(')
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\s*\d+\s*\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;"
)
_OPTION = re.compile(r"-D\w+(=.*)?|--?std=c\+\+\d+|--?f(mad|tz|prec-\w+)=\w+|-lineinfo|-I.*")


class CompileError(Exception):
    """Carry what the compiler says."""


@lru_cache
def compiler() -> str:
    """Return the host compiler's name and version, which is part of a cached file's name."""
    name = os.environ.get("CXX", "g++")
    text = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
    return f"{name} {text.stdout.splitlines()[0]}"


def kernels(source: str) -> list[str]:
    """Return the names of a source's kernels."""
    return _KERNEL.findall(_BOUNDS.sub("", source))


def library(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """Return the library compiled from a source of kernels.

    Any number of processes may compile the same at once: each writes a file of its own and
    renames it. Raises CompileError with the compiler's output.
    """
    for option in options:
        if not _OPTION.fullmatch(option):
            raise CompileError(f"option {option!r} is not known to the stand-in")
    text = _translate(source)
    defines = tuple(option for option in options if option.startswith("-D"))
    headers = [(_HERE / name).read_text() for name in _HEADERS]
    key = "\0".join([compiler(), *_FLAGS, *defines, *headers, text])
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"mpicnn-standin-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{name}.so"
    if not target.exists():
        _build(text, defines, target)
    return ctypes.CDLL(str(target))


def _translate(source: str) -> str:
    """Return the source as a C++ file for the host."""
    # Without their arrays' length, dynamic shared arrays are no valid C++ for static storage.
    body = _DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(standin::dynamic_shared);", source)
    lines = [f'#include "{name}"' for name in _HEADERS]
    lines += ["namespace {", "#line 1", body, "}"]
    lines += [f"STANDIN_KERNEL({name})" for name in kernels(source)]
    return "\n".join(lines) + "\n"


def _build(text: str, defines: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source, thing = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.o"
        built = Path(scratch) / "kernel.so"
        source.write_text(text)
        name = compiler().split()[0]
        # linked apart: with the sanitizers' flags the compiler would ask for their library
        for command in (
            [name, *_FLAGS, *defines, f"-I{_HERE}", "-c", str(source), "-o", str(thing)],
            [name, "-shared", str(thing), "-o", str(built)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise CompileError(done.stderr)
        built.replace(target)
