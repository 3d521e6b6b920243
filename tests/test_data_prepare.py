"""Preparing image files: what is in the source is in the file, or there is no file."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mpi_jobs
import numpy as np
import pytest
from mpi4py import MPI
from PIL import Image

from mpicnn.data import prepare as preparing
from mpicnn.data import write
from mpicnn.data.cli import run
from mpicnn.data.file import open_dataset
from mpicnn.data.prepare import rounds
from mpicnn.errors import UserError

Arrays = dict[str, np.ndarray]
DRAW = np.random.default_rng(11)
IDX = {
    "train-images-idx3-ubyte": DRAW.integers(0, 256, (17, 5, 4), np.uint8),
    "train-labels-idx1-ubyte": np.array(
        [2, 0, 1, 2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 0, 1, 2, 2], np.uint8
    ),
    "t10k-images-idx3-ubyte": DRAW.integers(0, 256, (5, 5, 4), np.uint8),
    "t10k-labels-idx1-ubyte": np.array([1, 2, 0, 0, 2], np.uint8),
}


def command(*arguments: Any) -> None:
    run(MPI.COMM_SELF, [str(argument) for argument in arguments])


def contents(path: Path) -> tuple[Arrays, Arrays]:
    """Return images and labels by split."""
    with open_dataset(path) as data:
        images = {n: s.read(np.arange(len(s))) for n, s in data.splits.items()}
        return images, {n: s.labels for n, s in data.splits.items()}


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def idx_directory(path: Path, packed: bool = False, **changed: bytes) -> Path:
    """Write the four files, some of them `changed` (by the first word and kind of their names)."""
    path.mkdir()
    for name, array in IDX.items():
        content = changed.get("_".join(name.split("-")[:2]), idx_bytes(array))
        if packed:
            (path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (path / name).write_bytes(content)
    return path


def refused(message: str, out: Path, *arguments: Any) -> None:
    """Check that the command fails with `message` and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        command("prepare", *arguments)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


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
    "absurd": ({"train_images": IMAGES[:4] + b"\xff" * 12 + IMAGES[16:]}, "cut short"),
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
    refused("t10k-images-idx3-ubyte: no such file", out, "idx", source, out)


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
    names.write_text("one\ntwo\n")
    refused("batches.meta.txt: 2 names; expected 10", out, "cifar10", source, out)


def picture(path: Path, *shape: int, seed: int = 0) -> np.ndarray:
    """Write an image of random pixels, (h, w, 3) or (h, w), and return them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return train/ and test/ of classes a (5, 1) and B (4, 2), which sorts first."""
    root = tmp_path / "in"
    for name, train, test in (("a", 5, 1), ("B", 4, 2)):
        for split, count in (("train", train), ("test", test)):
            for i in range(count):
                picture(root / split / name / f"{i}.png", 6, 5, 3, seed=i)
    return root


def test_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    nested = picture(folder / "train/a/deeper/x.PNG", 6, 5, 3, seed=99)
    (folder / "train/a/.hidden.png").write_bytes(b"")
    (folder / "train/a/notes.txt").write_text("no image")
    (folder / "train/.cache").mkdir()
    command("prepare", "folder", folder, out)
    images, labels = contents(out)
    assert labels["train"].tolist() == [0] * 4 + [1] * 6
    assert labels["test"].tolist() == [0] * 2 + [1]
    first = np.asarray(Image.open(folder / "train/B/0.png"))
    np.testing.assert_array_equal(images["train"][0], first.transpose(2, 0, 1))
    np.testing.assert_array_equal(images["train"][9], nested.transpose(2, 0, 1))
    with open_dataset(out) as data:
        assert data.classes == ("B", "a")


def test_folder_divided_by_fraction(folder: Path, tmp_path: Path) -> None:
    root = folder / "train"
    for i in range(100, 195):
        picture(root / "a" / f"{i}.png", 6, 5, 3, seed=i)

    def divided(seed: int) -> list[bytes]:
        out = tmp_path / "a.h5"
        options = ("--test-fraction", 0.3, "--seed", seed, "--overwrite")
        command("prepare", "folder", root, out, *options)
        images, labels = contents(out)
        assert np.bincount(labels["test"]).tolist() == [1, 30]  # 0.3 of 4 and of 100, rounded
        both = np.concatenate([images["train"], images["test"]])
        # Together all there are, each once: seeds 0 to 3 are in both classes.
        assert len(both) == 104
        assert len({image.tobytes() for image in both}) == 100
        return [image.tobytes() for image in images["test"]]

    first = divided(1)
    assert divided(1) == first
    assert divided(2) != first


def test_smallest_fraction_is_one_image(folder: Path, tmp_path: Path) -> None:
    root = folder / "train"
    command("prepare", "folder", root, tmp_path / "a.h5", "--test-fraction", 0.001)
    assert contents(tmp_path / "a.h5")[1]["test"].tolist() == [0, 1]


def test_size_and_gray(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for i, (h, w) in enumerate([(8, 12), (16, 16), (20, 8), (4, 4)]):
        pixels = np.zeros((h, w, 3), np.uint8)
        # Red on the left, blue below, in the centered square; white outside it.
        s = min(h, w)
        top, left = (h - s) // 2, (w - s) // 2
        pixels[...] = 255
        pixels[top : top + s, left : left + s] = 0
        pixels[top : top + s, left : left + s // 2, 0] = 200
        pixels[top + s // 2 : top + s, left : left + s, 2] = 100
        path = root / "one" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    command("prepare", "folder", root, tmp_path / "a.h5", "--size", 8)
    images = np.concatenate(list(contents(tmp_path / "a.h5")[0].values()))
    assert images.shape == (4, 3, 8, 8)
    for image in images:
        # Away from the edges between colors, where the filter mixes them, nothing may change.
        assert (image[0, :, :2] == 200).all() and (image[0, :, 6:] == 0).all()
        assert (image[2, 6:] == 100).all() and (image[2, :2] == 0).all()
        assert (image[1] == 0).all()
    command("prepare", "folder", root, tmp_path / "b.h5", "--size", 8, "--gray")
    gray = np.concatenate(list(contents(tmp_path / "b.h5")[0].values()))
    assert gray.shape == (4, 1, 8, 8)
    assert gray[0, 0, 0, 0] == round(
        0.299 * 200
    )  # ITU-R 601-2 luma, as Pillow's documentation says


def test_turned_photographs_are_put_upright(tmp_path: Path) -> None:
    for i in range(2):
        pixels = picture(tmp_path / f"in/one/{i}.png", 4, 6, 3)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned right by 90 degrees
        Image.fromarray(pixels).save(tmp_path / f"in/one/{i}.png", exif=exif)
    command("prepare", "folder", tmp_path / "in", tmp_path / "a.h5")
    found = contents(tmp_path / "a.h5")[0]["test"][0]
    np.testing.assert_array_equal(found, np.rot90(pixels, -1).transpose(2, 0, 1))


def spoil(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def empty_class(root: Path) -> None:
    (root / "train/c").mkdir()
    (root / "test/c").mkdir()
    (root / "train/c/notes.txt").write_text("")


def cut(root: Path) -> None:
    path = root / "train/a/3.png"
    path.write_bytes(path.read_bytes()[:-60])


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (cut, "train/a/3.png: no whole image"),
    "empty file": (lambda root: spoil(root / "test/B/1.png", b""), "test/B/1.png: no whole image"),
    "no image": (lambda root: spoil(root / "train/a/0.png", b"hello"), "a/0.png: no whole image"),
    "16 bits": (
        lambda root: Image.fromarray(np.zeros((6, 5), np.uint16)).save(root / "train/a/2.png"),
        "a/2.png: more than 8 bits",
    ),
    "other size": (
        lambda root: picture(root / "test/a/0.png", 5, 6, 3),
        "test/a/0.png: 5 x 6 pixels; expected 6 x 5 as in the first file; give --size",
    ),
    "empty class": (empty_class, "in/train/c: no images"),
    "class not tested": (lambda root: picture(root / "train/c/0.png", 6, 5, 3), "only one of .* c"),
    "class not trained": (lambda root: picture(root / "test/c/0.png", 6, 5, 3), "only one of .* c"),
}


@pytest.mark.parametrize("fault", BAD_FOLDERS)
def test_bad_folder(folder: Path, tmp_path: Path, fault: str) -> None:
    change, message = BAD_FOLDERS[fault]
    change(folder)
    refused(message, tmp_path / "a.h5", "folder", folder, tmp_path / "a.h5")


def test_more_bad_folders(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    refused("in: has test/", out, "folder", folder, out, "--test-fraction", 0.5)
    refused("in/test/a: one image", out, "folder", folder / "test", out)
    refused("in/train/a: expected a directory for each", out, "folder", folder / "train/a", out)
    refused("nowhere: could not be read", out, "folder", folder / "nowhere", out)


def test_decompression_bomb(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14)  # Refused from twice as many on.
    refused(
        "B/0.png: no whole image .*bomb", tmp_path / "a.h5", "folder", folder, tmp_path / "a.h5"
    )


def test_existing_file_is_kept(folder: Path, tmp_path: Path) -> None:
    source, out = idx_directory(tmp_path / "idx"), tmp_path / "a.h5"
    out.write_text("precious")
    refused("a.h5: exists; give --overwrite", out, "idx", source, out)
    cut(folder)
    refused("no whole image", out, "folder", folder, out, "--overwrite")
    assert out.read_text() == "precious"
    command("prepare", "idx", source, out, "--overwrite")
    assert len(contents(out)[1]["train"]) == 17


def test_targets_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = idx_directory(tmp_path / "idx")
    refused("a directory; expected", tmp_path / "x", "idx", source, tmp_path)
    refused("none: no such directory", tmp_path / "x", "idx", source, tmp_path / "none/a.h5")
    monkeypatch.setattr(write, "OTHER_BYTES", 2**62)
    refused("bytes free; expected", tmp_path / "a.h5", "idx", source, tmp_path / "a.h5")
    monkeypatch.setattr(write, "MOST_MEMORY_BYTES", 339)
    out = tmp_path / "a.h5"
    refused("340 bytes of images in a split; --gzip", out, "idx", source, out, "--gzip", 1)


def test_disk_that_gets_full(tmp_path: Path) -> None:
    """The size of files is limited instead of the disk: the same error from the same call."""
    source, out = idx_directory(tmp_path / "idx"), tmp_path / "a.h5"
    big = np.zeros((20_000, 5, 4), np.uint8)
    (source / "train-images-idx3-ubyte").write_bytes(idx_bytes(big))
    labels = np.arange(20_000, dtype=np.uint64) % 3
    (source / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels.astype(np.uint8)))
    limit = "import resource, signal, sys\nfrom mpicnn.data.__main__ import main\n"
    limit += "from mpicnn.launch import launch\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)\nlaunch(main)\n"
    job = mpi_jobs.run(0, "-c", limit, "prepare", "idx", source, out)
    assert job.code == 2
    assert "a.h5: could not be written (File too large)" in job.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx"]


def test_many_rounds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("prepare", "folder", folder, tmp_path / "a.h5")
    monkeypatch.setattr(preparing, "BLOCK_BYTES", 200)  # Two images of 90 bytes.
    command("prepare", "folder", folder, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_rounds_give_every_image_to_one_rank(ranks: int) -> None:
    for count in (1, 2, 20, 21, 23):
        edges = list(rounds(count, 3 * ranks, ranks))
        shares = [np.arange(a, b) for each in edges for a, b in zip(each, each[1:], strict=False)]
        assert np.concatenate(shares).tolist() == list(range(count))
        assert max(len(share) for share in shares) <= 3


def test_ranks_share_the_work(folder: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one.h5", tmp_path / "three.h5"
    command("prepare", "folder", folder, one)
    job = mpi_jobs.run(3, "-m", "mpicnn.data", "prepare", "folder", folder, three)
    assert (job.code, job.err) == (0, "")
    assert job.out.count("images  3 x 6 x 5") == 1
    assert one.read_bytes() == three.read_bytes()


def test_what_one_rank_finds_broken_ends_all(folder: Path, tmp_path: Path) -> None:
    cut(folder)  # The eighth of nine: in the last rank's share.
    job = mpi_jobs.run(3, "-m", "mpicnn.data", "prepare", "folder", folder, tmp_path / "a.h5")
    assert job.code == 2
    assert job.err.count("train/a/3.png: no whole image") == 1
    assert "Traceback" not in job.err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    command("info", "embedded")
    lines = capsys.readouterr().out.splitlines()
    assert "images  1 x 28 x 28 (channels x height x width)" in lines
    assert "    9      1000       200  Ankle boot" in lines
    assert "  all     10000      2000" in lines


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "prepare",
        "prepare zip a b",
        "info a b",
        "prepare idx a",
        "prepare idx a b --size 3",
        "prepare idx a b --over",
        "prepare idx a b --per-class 3",
        "prepare idx a b --per-class 3,0",
        "prepare idx a b --classes x,x",
        "prepare idx a b --gzip 10",
        "prepare folder a b --size 0",
        "prepare folder a b --test-fraction 1",
        "prepare folder a b --test-fraction nan",
    ],
)
def test_wrong_command_lines(arguments: str) -> None:
    with pytest.raises(UserError, match="--help"):
        command(*arguments.split())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("idx", "cifar10", "cifar100", "folder"):
        with pytest.raises(SystemExit) as left:
            command("prepare", kind, "--help")
        assert left.value.code == 0
        assert "--overwrite" in capsys.readouterr().out
