"""The binary formats of MNIST and CIFAR: every byte is read, and what is not right is refused."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_samples import (
    DRAW,
    IDX,
    Arrays,
    command,
    contents,
    idx_bytes,
    idx_directory,
    refused,
)

from mpicnn.data.file import open_dataset


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    source, out = idx_directory(tmp_path / "in", packed), tmp_path / "a.h5"
    command("prepare", "idx", source, out)
    images, labels = contents(out)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        expected = IDX[f"{prefix}-images-idx3-ubyte"][:, None]
        np.testing.assert_array_equal(images[split], expected)
        np.testing.assert_array_equal(labels[split], IDX[f"{prefix}-labels-idx1-ubyte"])
    with open_dataset(out) as data:
        assert data.classes == ("0", "1", "2")


def test_class_names_and_compression(tmp_path: Path) -> None:
    source, out = idx_directory(tmp_path / "in"), tmp_path / "a.h5"
    command("prepare", "idx", source, out, "--classes", "a/b,c,d e", "--gzip", 9)
    with open_dataset(out) as data:
        assert data.classes == ("a/b", "c", "d e")
    with h5py.File(out) as file:
        assert file["train/images"].compression_opts == 9


def test_first_of_every_class(tmp_path: Path) -> None:
    source, out = idx_directory(tmp_path / "in"), tmp_path / "a.h5"
    command("prepare", "idx", source, out, "--per-class", "2,1")
    images, labels = contents(out)
    assert labels["train"].tolist() == [2, 0, 1, 2, 0, 1]
    assert labels["test"].tolist() == [1, 2, 0]
    np.testing.assert_array_equal(images["train"], IDX["train-images-idx3-ubyte"][:6, None])
    again = tmp_path / "b.h5"
    refused(
        "1 test images of 1; --per-class asks for 2",
        again,
        "idx",
        source,
        again,
        "--per-class",
        "2,2",
    )


def swap(name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    return idx_bytes(change(IDX[name]))


IMAGES = idx_bytes(IDX["train-images-idx3-ubyte"])
BAD_IDX: dict[str, tuple[dict[str, bytes], str]] = {
    "cut short": ({"train_images": IMAGES[:-1]}, "train-images-.*cut short|exactly"),
    "one byte more": ({"train_images": IMAGES + b"x"}, "train-images-.*exactly the 340 bytes"),
    "cut in the header": ({"train_images": IMAGES[:9]}, "train-images-.*expected an IDX file"),
    "of floats": ({"train_images": b"\0\0\x0d\x03" + IMAGES[4:]}, "unsigned bytes with 3 axes"),
    "absurd": ({"train_images": IMAGES[:4] + b"\xff" * 4 + IMAGES[8:]}, "cut short"),
    "absurd sides": (
        {"train_images": IMAGES[:4] + b"\xff" * 12 + IMAGES[16:]},
        "train-images-.*expected sides from 1 to 65536",
    ),
    "sides of 0": (
        {"train_images": IMAGES[:4] + b"\0\0\0\0" + b"\xff" * 8},
        "train-images-.*expected sides from 1 to 65536",
    ),
    "labels for images": ({"train_images": swap("train-labels-idx1-ubyte", np.copy)}, "3 axes"),
    "label missing": (
        {"t10k_labels": swap("t10k-labels-idx1-ubyte", lambda x: x[:-1])},
        "t10k-labels.*: 4 labels; expected one for each of 5 images",
    ),
    "other size": (
        {"t10k_images": swap("t10k-images-idx3-ubyte", lambda x: x.reshape(5, 4, 5))},
        "expected the same",
    ),
    "class not trained": (
        {"t10k_labels": swap("t10k-labels-idx1-ubyte", lambda x: x + np.uint8(1))},
        "no training images of 3;",
    ),
    "no test images": (
        {
            "t10k_images": swap("t10k-images-idx3-ubyte", lambda x: x[:0]),
            "t10k_labels": swap("t10k-labels-idx1-ubyte", lambda x: x[:0]),
        },
        "no test images",
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fault", BAD_IDX)
def test_bad_idx(tmp_path: Path, fault: str, packed: bool) -> None:
    changed, message = BAD_IDX[fault]
    source = idx_directory(tmp_path / "in", packed, **changed)
    refused(message, tmp_path / "a.h5", "idx", source, tmp_path / "a.h5")


def test_more_bad_idx(tmp_path: Path) -> None:
    source, out = idx_directory(tmp_path / "in", packed=True), tmp_path / "a.h5"
    refused("t.*-labels.*: label 2; expected 0 to 1", out, "idx", source, out, "--classes", "a,b")
    packed = source / "t10k-images-idx3-ubyte.gz"
    content = packed.read_bytes()
    for damaged in (content[:-9], b"\0" + content[1:], content[:40] + b"\xff" * 9 + content[49:]):
        packed.write_bytes(damaged)
        refused("t10k-images-idx3-ubyte.gz: could not be read", out, "idx", source, out)
    packed.unlink()
    message = "has no t10k-images-idx3-ubyte; expected it, or t10k-images.idx3-ubyte, plain or"
    refused(message, out, "idx", source, out)


def test_idx_names_with_a_dot(tmp_path: Path) -> None:
    """As on Kaggle, where there are folders with the other names beside."""
    source, out = idx_directory(tmp_path / "in"), tmp_path / "a.h5"
    command("prepare", "idx", source, out)
    for path in list(source.iterdir()):
        path.rename(source / path.name.replace("-idx", ".idx"))
        path.mkdir()
    command("prepare", "idx", source, tmp_path / "b.h5")
    assert out.read_bytes() == (tmp_path / "b.h5").read_bytes()
    (source / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    message = "labels-idx1-ubyte.gz: there is train-labels.idx1-ubyte too; keep one of them"
    refused(message, tmp_path / "c.h5", "idx", source, tmp_path / "c.h5")


def test_an_idx_file_that_unpacks_to_very_much(tmp_path: Path) -> None:
    source, out = idx_directory(tmp_path / "in", packed=True), tmp_path / "a.h5"
    size = 4000 * 100 * 100
    header = IMAGES[:4] + struct.pack(">3I", 4000, 100, 100)
    (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(size)))
    refused(f"stand for {size}; expected at most 50 times as many", out, "idx", source, out)


def test_a_pipe_in_the_place_of_cifar(tmp_path: Path) -> None:
    source, _, _ = cifar_directory(tmp_path / "in", "cifar10")
    (source / "test_batch.bin").unlink()
    os.mkfifo(source / "test_batch.bin")
    out = tmp_path / "a.h5"
    refused("test_batch.bin: not a regular file", out, "cifar10", source, out)


def cifar_directory(path: Path, kind: str) -> tuple[Path, Arrays, Arrays]:
    """Write a version's files, two records in each, every class once in those for training."""
    path.mkdir()
    classes, files, test, names = {
        "cifar10": (
            10,
            [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test_batch.bin",
            "batches.meta.txt",
        ),
        "cifar100": (100, ["train.bin"], "test.bin", "fine_label_names.txt"),
    }[kind]
    (path / names).write_text("\n".join(f"class {k}" for k in range(classes)) + "\n\n")
    labels = {"train": DRAW.permutation(classes), "test": np.array([classes - 1, 0])}
    images = {s: DRAW.integers(0, 256, (len(v), 3, 32, 32), np.uint8) for s, v in labels.items()}
    coarse = [b"\x13"] if kind == "cifar100" else []
    records = {
        s: [
            b"".join([*coarse, bytes([k]), x.tobytes()])
            for k, x in zip(labels[s], images[s], strict=True)
        ]
        for s in labels
    }
    each = classes // len(files)
    for i, file in enumerate(files):
        (path / file).write_bytes(b"".join(records["train"][i * each : (i + 1) * each]))
    (path / test).write_bytes(b"".join(records["test"]))
    return path, images, labels


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, kind: str) -> None:
    source, images, labels = cifar_directory(tmp_path / "in", kind)
    command("prepare", kind, source, tmp_path / "a.h5")
    found = contents(tmp_path / "a.h5")
    for split in ("train", "test"):
        np.testing.assert_array_equal(found[0][split], images[split])
        np.testing.assert_array_equal(found[1][split], labels[split])
    with open_dataset(tmp_path / "a.h5") as data:
        assert data.classes[:2] == ("class 0", "class 1")


def test_bad_cifar(tmp_path: Path) -> None:
    source, _, _ = cifar_directory(tmp_path / "in", "cifar10")
    out = tmp_path / "a.h5"
    batch, names = source / "data_batch_3.bin", source / "batches.meta.txt"
    content = batch.read_bytes()
    for damaged, message in [
        (content[:-1], "data_batch_3.bin: 6145 bytes; expected records of 3073"),
        (b"", "data_batch_3.bin: 0 bytes"),
        (b"\x0a" + content[1:], "data_batch_3.bin: label 10; expected 0 to 9"),
    ]:
        batch.write_bytes(damaged)
        refused(message, out, "cifar10", source, out)
    batch.unlink()
    refused("data_batch_3.bin: could not be read", out, "cifar10", source, out)
    os.mkfifo(batch)
    refused("data_batch_3.bin: not a regular file", out, "cifar10", source, out)
    names.write_text("one\ntwo\n")
    refused("batches.meta.txt: 2 names; expected 10", out, "cifar10", source, out)


def test_what_is_not_the_binary_version_of_cifar(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "a.h5"
    wanted = "expected the binary version of CIFAR-100, unpacked: https://.*cifar-100-binary.tar.gz"
    refused(f"in: no such directory; {wanted}", out, "cifar100", source, out)
    (source / "cifar-100-binary").mkdir(parents=True)
    refused(f"in: has no fine_label_names.txt; {wanted}", out, "cifar100", source, out)
    (source / "cifar-100-binary/fine_label_names.txt").touch()
    refused("txt; give .*in/cifar-100-binary$", out, "cifar100", source, out)
    (source / "meta").touch()
    refused(f"in: the version for Python or Matlab; {wanted}", out, "cifar100", source, out)
    refused(f"in/meta: a file; {wanted}", out, "cifar100", source / "meta", out)
