"""Files that are nearly right, by seed: checkpoints, image files, MNIST's and CIFAR's formats."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from data_samples import sample, share_name
from fuzz import ODD, TEXTS, Parser, check_line, odd, spoiled, toml
from mpi4py import MPI

from mpicnn import models
from mpicnn.checkpoint.file import FORMAT, _digest, _seal
from mpicnn.data.cifar import CIFAR10, open_cifar
from mpicnn.data.file import open_dataset
from mpicnn.data.idx import open_idx
from mpicnn.data.layout import SPLITS
from mpicnn.data.source import check_source
from mpicnn.division.planfile import plan_toml
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.run.distributed import outline
from mpicnn.run.load import load_trained
from mpicnn.settings.command_settings import LoadSettings
from mpicnn.settings.definitions import Settings

SECONDS = 1.0
MEGABYTES = 200

NETWORK = """
[[layer]]
type = "conv"
o = 2
kernel = 3
[[layer]]
type = "batchnorm"
[[layer]]
type = "flatten"
[[layer]]
type = "linear"
o = "classes"
"""

HERE = LoadSettings(run="", threads=1)


def any_value(draw: random.Random, value: Any) -> Any:
    """Return a value with something odd in it, at any depth."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        return value | {key: any_value(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.6:
        at = draw.randrange(len(value))
        return [*value[:at], any_value(draw, value[at]), *value[at + 1 :]]
    near: list[Any] = [f"{value}\x1b[2J", [value], value]
    if isinstance(value, int | float):
        near = [-value, value + 1, value * 10**6, float(value), str(value), value - 1]
    elif isinstance(value, list):
        near = [value[:-1], value + value, value * 10_000, value[::-1]]
    return draw.choice([*near, *near, draw.choice(ODD)])


class Checkpoints:
    """Write checkpoints of a small network whose meta data is forged, and signed all the same."""

    def __init__(self) -> None:
        self.made: tuple[dict[str, Any], dict[str, Any]] | None = None

    def base(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return meta data and arrays as a run would have saved them."""
        if self.made is None:
            file = folder / "net.toml"
            file.write_text(NETWORK)
            model = models.load(file, (1, 6, 6), 4)
            file.unlink()
            plan = preset("data", model, (1,), ((1.0,),), "a", "allreduce")
            meta = {
                "step": 7, "test_due": False, "epoch": 0.5, "seed": 1,
                "settings": Settings(model="net.toml").to_json(), "name": "net",
                "input_shape": [1, 6, 6], "model": model.describe(), "image_shape": [1, 6, 6],
                "classes": ["ant", "bee", "cat", "dög"], "mean": [100.5], "std": [50.25],
                "plan": plan_toml(plan), "data": "0a" * 32, "stamp": [10**6, 10**18],
            }  # fmt: skip
            arrays = {
                name: np.ones(shape, dtype)
                for name, (shape, dtype) in outline(model, np.dtype("f4"), ("velocity",)).items()
            }
            self.made = meta, arrays
        meta, arrays = self.made
        return dict(meta), dict(arrays)

    def write(self, draw: random.Random, path: Path) -> None:
        """Write one that is forged in a way or two, or damaged, or as it should be."""
        meta, arrays = self.base(path.parent)
        text = json.dumps(meta)
        for _ in range(draw.choice([0, 1, 1, 1, 2])):
            text = draw.choice(FORGERIES)(draw, meta, arrays) or json.dumps(meta)
        signed(path, text.encode("ascii", "replace"), arrays)
        if draw.random() < 0.05:
            damaged(draw, path)


def odd_entry(draw: random.Random, meta: dict[str, Any], _: Any) -> None:
    key = draw.choice(list(meta))
    meta[key] = any_value(draw, meta[key])


def odd_key(draw: random.Random, meta: dict[str, Any], _: Any) -> None:
    value = meta.pop(draw.choice(list(meta)))
    if draw.random() < 0.5:
        meta[draw.choice(["", "é", "Step", "\x1b[2J", "x" * 5000])] = value


def odd_layer(draw: random.Random, meta: dict[str, Any], _: Any) -> None:
    found = meta.get("model")
    layers = [dict(x) for x in found if isinstance(x, dict)] if isinstance(found, list) else []
    if not layers:
        return
    at = draw.randrange(len(layers))
    layers[at] = odd(draw, layers[at]) | {
        draw.choice(["o", "kernel", "padding", "stride", "dilation", "groups", "init"]):
        draw.choice([2, 10**4, 2 * 10**8, 10**12, [2, 3], -1, 1e300, "he", None])
    }  # fmt: skip
    meta["model"] = (
        layers[:at] + layers[at : at + 1] * draw.choice([1, 1, 1, 3, 3000]) + layers[at:]
    )


def odd_settings(draw: random.Random, meta: dict[str, Any], _: Any) -> None:
    values = json.loads(Settings(model="net.toml").to_json())
    for key in draw.sample(list(values), draw.randint(1, 3)):
        values[key] = any_value(draw, values[key])
    meta["settings"] = spoiled(draw, json.dumps(values))


def odd_plan(draw: random.Random, meta: dict[str, Any], _: Any) -> None:
    table = {
        "name": "data", "scheme": "a", "sync": "allreduce", "grid": [1], "shares": [[1.0]],
        "stages": [], "micro_batches": 1, "order": "1f1b",
    }  # fmt: skip
    key = draw.choice(list(table))
    table[key] = any_value(draw, table[key])
    meta["plan"] = spoiled(draw, toml(odd(draw, table) if draw.random() < 0.3 else table))


def odd_text(draw: random.Random, meta: dict[str, Any], _: Any) -> str:
    text = json.dumps(meta)
    more = draw.choice(['"x": ' + "[" * 10**5, '"x": ' + "9" * 5000, '"x": [' + "{}," * 10**6])
    return draw.choice([spoiled(draw, text), "{" + more, f"[{text}]", "null", "", text[1:-1]])


def odd_array(draw: random.Random, _: Any, arrays: dict[str, Any]) -> None:
    name = draw.choice(list(arrays))
    array = arrays.pop(name)
    match draw.randrange(6):
        case 0:
            arrays[f"{name}2"] = array
        case 1:
            arrays[name] = array.reshape(-1, 1)
        case 2:
            arrays[name] = array.astype(draw.choice(["f8", "f2", "i4", ">f4", "u1"]))
        case 3:
            arrays[name] = np.full_like(array, draw.choice([np.nan, np.inf, -1, 1e30]))
        case 4:
            arrays[name] = array[:0]


FORGERIES: list[Callable[[random.Random, dict[str, Any], dict[str, Any]], str | None]] = [
    odd_entry, odd_entry, odd_entry, odd_key, odd_layer, odd_layer, odd_settings, odd_plan,
    odd_text, odd_array,
]  # fmt: skip


def signed(path: Path, text: bytes, arrays: dict[str, Any]) -> None:
    """Write a checkpoint whose digests fit, whatever it holds."""
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        digests = {name: _digest(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            file.create_dataset(name, data=array).attrs["sha256"] = np.bytes_(digests[name])
        file.create_dataset("meta", data=np.bytes_(text or b" "))
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["sha256"] = np.bytes_(_seal(text or b" ", digests))


def damaged(draw: random.Random, path: Path) -> None:
    """Change a bit of a file, put zeros or others of its bytes in a place, or take its end."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data) or 1)
    match draw.randrange(5):
        case 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        case 1:
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        case 2:
            data[at : at + 8] = struct.pack("<Q", draw.choice([0, 2**31, 2**40, 2**64 - 1]))
        case 3:
            del data[at:]
        case _:
            start = draw.randrange(len(data) or 1)
            data[at : at + 32] = data[start : start + 32]
    path.write_bytes(data)


def packing(draw: random.Random, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how a data set of `shape` may be stored."""
    chunk = tuple(min(n, draw.choice([1, 16, 2**20])) for n in shape)
    chunk = chunk if all(chunk) and np.prod(chunk) < 2**24 else tuple(1 for _ in shape)
    return draw.choice([{}, {"chunks": chunk}, {"chunks": chunk, "compression": "gzip"},
                        {"chunks": chunk, "compression": "lzf"}])  # fmt: skip


def odd_dataset(draw: random.Random, path: Path) -> None:
    """Put data of another type, shape, storage or content in the place of one."""
    name = draw.choice([f"{s}/{n}" for s in SPLITS for n in ("images", "labels", "sha256")]
                       + ["classes", "mean", "std"])  # fmt: skip
    with h5py.File(path, "r+") as file:
        old = file[name]
        if not getattr(old, "shape", None):
            return
        shape = list(old.shape)
        at = draw.randrange(len(shape))
        shape[at] = draw.choice([0, 1, shape[at], shape[at] + 1, 10**3, 10**6, 10**9, 2**40])
        if draw.random() < 0.1:
            shape = draw.choice([[], [*shape, 1], [1] * 32])
        types = ["u1", "i1", "<i4", ">i8", "i8", "u8", "f8", ">f8", "f2", "S3", "S100000", "c16"]
        dtype = draw.choice([np.dtype(old.dtype), np.dtype(draw.choice(types))])
        rows = old.attrs.get("rows")
        del file[name]
        if np.prod(shape, dtype=float) * dtype.itemsize < 10**6 and dtype.kind != "O":
            value = draw.choice([0, 1, 3, 4, 255])
            data = np.full(shape, value % 128 if dtype.kind != "S" else b"ab", dtype)
            if data.size and dtype.kind == "f" and draw.random() < 0.4:
                data.flat[draw.randrange(data.size)] = draw.choice([np.nan, np.inf, -1, 6e4])
            made = file.create_dataset(
                name, data=data, **packing(draw, data.shape) if shape else {}
            )
        else:
            how = packing(draw, tuple(shape)) if shape else {}
            made = file.create_dataset(name, tuple(shape), dtype, **how)
        if rows is not None:
            made.attrs["rows"] = rows


def odd_link(draw: random.Random, path: Path) -> None:
    """Take something away, or put a link, a group or an empty one in its place."""
    with h5py.File(path, "r+") as file:
        name = draw.choice(["train", "test", "train/images", "test/labels", "classes", "mean"])
        kept = draw.random() < 0.5
        if kept:
            file.move(name, "other")
        else:
            del file[name]
        match draw.randrange(6):
            case 0:
                file[name] = h5py.SoftLink("/other")
            case 1:
                file[name] = h5py.ExternalLink(draw.choice(["/dev/zero", "b.h5"]), "/other")
            case 2:
                file.create_group(name)
            case 3:
                file[name] = h5py.Empty("f8")
            case 4:
                file[name] = file["/"]


def odd_attribute(draw: random.Random, path: Path) -> None:
    """Change what the file says of itself, or of its digests."""
    with h5py.File(path, "r+") as file:
        holder, name = draw.choice([(file, "format"), (file, "version"),
                                    (file["train/sha256"], "rows")])  # fmt: skip
        del holder.attrs[name]
        values = [None, 0, 1, 2, -1, 2**40, 1.5, np.nan, "mpicnn-images", "\x1b[2J", "x" * 9000,
                  b"mpicnn-images", [1, 2], ["mpicnn-images"], np.zeros(1000)]  # fmt: skip
        value = draw.choice(values)
        if value is not None:
            holder.attrs[name] = value


def odd_classes(draw: random.Random, path: Path) -> None:
    """Give other class names: shared, long, many, twice, of other characters."""
    if draw.random() < 0.3:
        share_name(path, draw.choice([4, 1000, 10**4]), draw.choice([1, 10**3, 10**5]))
        return
    names: list[Any] = draw.choice([
        ["a", "b", "c"], ["a", "b", "c", "a"], ["a", "b", "", "d"], ["a", "b\x1b", "c", "d"],
        ["é\u202e", "b", "c", "d"], ["x" * 10**5, "b", "c", "d"], [b"\xff", b"b", b"c", b"d"],
        [str(k) for k in range(10**4)],
    ])  # fmt: skip
    fixed = draw.random() < 0.3
    with h5py.File(path, "r+") as file:
        del file["classes"]
        if fixed:
            encoded = [n if isinstance(n, bytes) else n.encode() for n in names]
            file.create_dataset("classes", data=np.array(encoded))
        else:
            file.create_dataset("classes", data=names, dtype=h5py.string_dtype())


def bomb(draw: random.Random, path: Path) -> None:
    """Have a split claim very many images and labels, packed into next to nothing."""
    count = draw.choice([10**5, 10**7, 10**8])
    with h5py.File(path, "r+") as file:
        for name, tail, dtype in (("images", (1, 1, 1), "u1"), ("labels", (), "i8")):
            del file[f"train/{name}"]
            chunks = (min(count, 2**20), *tail)
            made = file.create_dataset(f"train/{name}", (count, *tail), dtype, chunks=chunks,
                                       compression="gzip")  # fmt: skip
            packed = zlib.compress(bytes(int(np.prod(chunks)) * made.dtype.itemsize))
            for at in range(0, count, chunks[0]):
                made.id.write_direct_chunk((at, *(0 for _ in tail)), packed)


class ImageFiles:
    """Write image files of a few images that are forged or damaged."""

    def __init__(self) -> None:
        self.wholes: list[bytes] = []

    def write(self, draw: random.Random, path: Path) -> None:
        """Write one that is forged in a way or two, or damaged, or as it should be."""
        if not self.wholes:
            for packed in (None, 9):
                self.wholes.append(sample(path, gzip=packed).path.read_bytes())
        path.write_bytes(draw.choice(self.wholes))
        for _ in range(draw.choice([0, 1, 1, 1, 2])):
            change = draw.choice(CHANGES) if draw.random() < 0.995 else bomb
            try:
                change(draw, path)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError):
                return  # the change before left nothing that could be changed so


def odd_chunk(draw: random.Random, path: Path) -> None:
    """Pack labels or images, and give a chunk other content: more, less, or none that unpacks."""
    with h5py.File(path, "r+") as file:
        name = draw.choice(["train/labels", "test/images"])
        if file[name].size > 10**6:
            return
        old = file[name][()]
        del file[name]
        made = file.create_dataset(
            name, data=old, chunks=old.shape, compression="gzip", shuffle=draw.random() < 0.3,
            fletcher32=draw.random() < 0.3,
        )  # fmt: skip
        whole = zlib.compress(bytes(draw.choice([old.nbytes, 0, 1, 10**6, 10**8])), 1)
        data = draw.choice([whole, whole, whole[:-9], bytes(100), b"", whole + b"x" * 4])
        made.id.write_direct_chunk((0,) * old.ndim, data)


CHANGES = [
    odd_dataset, odd_dataset, odd_dataset, odd_link, odd_attribute, odd_classes, odd_chunk, damaged,
    damaged,
]  # fmt: skip


def read_images(path: Path) -> None:
    """Open an image file, and read the first and last images where they are small."""
    with open_dataset(path) as data:
        _ = data.digest
        for split in data.splits.values():
            split.read(np.array([0, len(split) - 1]))


def idx_file(draw: random.Random, array: Any) -> bytes:
    """Return an array in MNIST's format, its header or its end often not right."""
    order = ">" if draw.random() < 0.98 else "<"
    counts = [
        draw.choice([n] * 120 + [0, 1, n // 2, n + 1, 2**16, 2**31, 2**32 - 1]) for n in array.shape
    ]
    magic = draw.choice([bytes((0, 0, 8, array.ndim))] * 100 + [b"\0\0\x0d\3", b"\0\0\b\xff", b""])
    data = magic + struct.pack(f"{order}{array.ndim}I", *counts) + array.tobytes()
    cut = draw.randrange(len(data)) if data and draw.random() < 0.03 else len(data)
    return data[:cut] + b"x" * (draw.random() < 0.02)


def write_idx(draw: random.Random, folder: Path) -> None:
    """Write the four files of MNIST's format."""
    folder.mkdir()
    side = draw.choice([(3, 2), (3, 2), (1, 1)])
    for prefix in ("train", "t10k"):
        count = draw.choice([6] * 8 + [2, 0])
        images = np.zeros((count, *side), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % draw.choice([3] * 9 + [255])
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_file(draw, array)
            name = folder / f"{prefix}-{kind}-ubyte"
            if draw.random() < 0.3:
                zeros = 10**8 if draw.random() < 0.01 else 0  # they pack into a tenth of a percent
                packed = gzip.compress(data[:16] + bytes(zeros) + data[16:], 1)
                name.with_name(f"{name.name}.gz").write_bytes(packed)
                if draw.random() < 0.1:
                    damaged(draw, name.with_name(f"{name.name}.gz"))
            elif draw.random() < 0.98:
                name.write_bytes(data)


def write_cifar(draw: random.Random, folder: Path) -> None:
    """Write the files of CIFAR-10's binary version."""
    folder.mkdir()
    for k, name in enumerate([name for names in CIFAR10.files.values() for name in names]):
        labels = [2 * k % 10, (2 * k + 1) % 10] if draw.random() < 0.97 else [draw.randrange(256)]
        data = bytearray(b"".join(bytes([label]) + bytes(3072) for label in labels))
        if draw.random() < 0.08:
            data = draw.choice([data[:-1], data + b"x", data[:0], data[1:], data * 3])
        if draw.random() < 0.99:
            (folder / name).write_bytes(data)
    names = [f"class {k}" for k in range(10)]
    if draw.random() < 0.3:
        names[draw.randrange(10)] = draw.choice(["", "class 1", "\x1b[2J", "é", "x" * 10**5, "\0"])
    if draw.random() < 0.1:
        names = draw.choice([names[:9], [*names, "more"], names * 1000, []])
    encoding = draw.choice(["utf-8", "utf-8", "utf-16", "latin-1"])
    (folder / CIFAR10.names).write_bytes("\n".join(names).encode(encoding, "replace"))


PARSERS = TEXTS | {
    "forged checkpoint": Parser(
        Checkpoints().write,
        lambda path: load_trained(
            MPI.COMM_SELF, str(path), "auto", "", LoadSettings(run="", threads=1)
        ),
        "step-00000007.h5",
    ),
    "image": Parser(ImageFiles().write, read_images, "images.h5"),
    "IDX": Parser(write_idx, lambda path: check_source(open_idx(path)), "idx"),
    "CIFAR": Parser(write_cifar, lambda path: check_source(open_cifar(path, CIFAR10)), "cifar"),
}


def refused(kind: str, seeds: range, folder: Path) -> Iterator[bool]:
    """Yield for each seed whether the input was refused; raise what is raised otherwise.

    Raises AssertionError for one that takes too long or too much memory.
    """
    parser = PARSERS[kind]
    for seed in seeds:
        draw = random.Random(f"{kind} {seed}")
        path = folder / parser.name
        parser.write(draw, path)
        before, since = begin_peak(), time.process_time()  # others may use the machine too
        try:
            parser.read(path)
            answer = False
        except UserError as error:
            check_line(error)
            answer = True
        seconds, taken = time.process_time() - since, memory("VmHWM") - before
        assert seconds < SECONDS, f"took {seconds:.1f} s"
        assert taken < MEGABYTES, f"took {taken:.0f} MB"
        if path.is_dir():
            shutil.rmtree(path)
        yield answer


def begin_peak() -> float:
    """Have the peak of this process's memory begin anew; return the memory that it has, MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return memory("VmRSS")
    except OSError:  # not allowed everywhere; the peak so far stays then
        return memory("VmHWM")


def memory(which: str) -> float:
    """Return the memory that this process has (VmRSS), or had at its peak (VmHWM), MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{which}:"))
