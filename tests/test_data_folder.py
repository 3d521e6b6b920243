"""Folders of image files: decoded right, divided right, and no broken one taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import (
    command,
    contents,
    cut_one,
    picture,
    picture_folder,
    refused,
)
from PIL import Image

from mpicnn.data.file import open_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "in")


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


def test_val_is_for_testing_where_there_is_no_test(folder: Path, tmp_path: Path) -> None:
    command("prepare", "folder", folder, tmp_path / "test.h5")
    (folder / "test").rename(folder / "val")
    command("prepare", "folder", folder, tmp_path / "val.h5")
    assert (tmp_path / "val.h5").read_bytes() == (tmp_path / "test.h5").read_bytes()
    refused("in: has val/", tmp_path / "a.h5", "folder", folder, tmp_path / "a.h5",
            "--test-fraction", 0.5)  # fmt: skip
    # With both, val is not looked at.
    (folder / "test").mkdir()
    refused("in/test: expected a folder for each class", tmp_path / "a.h5", "folder", folder,
            tmp_path / "a.h5")  # fmt: skip


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


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (cut_one, "train/a/3.png: no whole image"),
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
    refused("in/train/a: expected a folder for each", out, "folder", folder / "train/a", out)
    refused("nowhere: could not be read", out, "folder", folder / "nowhere", out)


def test_decompression_bomb(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14)  # Refused from twice as many on.
    refused(
        "B/0.png: no whole image .*bomb", tmp_path / "a.h5", "folder", folder, tmp_path / "a.h5"
    )
