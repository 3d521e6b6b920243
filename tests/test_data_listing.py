"""Which files of a folder are read, which folders are classes, and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from data_samples import picture

from mpicnn.data.folder import Division, FolderSource, open_folder
from mpicnn.data.images import Decoding
from mpicnn.data.listing import Skipped, list_images
from mpicnn.data.source import Found
from mpicnn.errors import UserError

SIZE = Decoding(size=8)


def opened(root: Path, **division: Any) -> FolderSource:
    return open_folder(root, SIZE, Division(**division))


def tree(root: Path, *paths: str) -> Path:
    """Make empty files; the rules for names do not look into them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def classes(root: Path, *places: str) -> Path:
    """Make two images in each folder."""
    return tree(root, *(f"{place}/{k}.png" for place in places for k in range(2)))


def skipped(source: FolderSource) -> list[str]:
    return source.skipped.lines()


def test_what_is_read_and_what_is_counted(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "in",
        *(f"cat/{k}{end}" for k, end in enumerate((".png", ".JPG", ".jfif", ".jpe", ".TIFF"))),
        *("cat/deeper/still/a.webp", "dog/1.png", "dog/2.png", "loose.png", "readme.txt"),
        *("cat/notes.txt", "cat/more.txt", "cat/a.heic", "cat/LICENSE"),
        *("cat/.hidden.png", "cat/._0.png", "cat/.ipynb_checkpoints/0.png", "cat/@eaDir/0.png"),
        *("dog/Thumbs.db", "dog/desktop.ini", "__MACOSX/cat/0.png", ".git/x/0.png"),
    )
    os.mkfifo(root / "dog/pipe.png")
    source = opened(root)
    assert source.classes == ("cat", "dog")
    assert sum(map(len, source.paths.values())) == 6 + 2
    assert skipped(source) == [
        "8 hidden, or left by other programs: .git, __MACOSX, cat/._0.png, cat/.hidden.png, "
        "cat/.ipynb_checkpoints, 3 more",
        "1 neither file nor folder: dog/pipe.png",
        "1 outside the folders of classes: loose.png",
        "5 with other endings: .txt (3), no ending, .heic",
    ]
    assert source.account(Found(transparent=2), 8)[:2] == [
        f"source  {root}: a folder for each class; 10 % of each drawn for testing",
        "read    8 images, 2 of them transparent: put on white",
    ]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", "cat", "dog/below")
    tree(
        tmp_path, "elsewhere/a.png", "elsewhere/below/b.png", "dog.png", "bird/1.png", "bird/2.png"
    )
    for name, target in {
        "cat/far": tmp_path / "elsewhere",
        "cat/again": "far",
        "cat/circle": ".",
        "cat/up": "..",
        "cat/far/back": root / "cat",
        "dog/linked.png": tmp_path / "dog.png",
        "bird": tmp_path / "bird",
        "cat/far/.#lock": "nobody@nowhere",
    }.items():
        (root / name).symlink_to(target)
    source = opened(root)
    found = sorted(path for paths in source.paths.values() for path in paths)
    assert found == [
        *("bird/1.png", "bird/2.png", "cat/0.png", "cat/1.png"),
        *("cat/again/a.png", "cat/again/below/b.png"),
        *("dog/below/0.png", "dog/below/1.png", "dog/linked.png"),
    ]
    links = "cat/again/back, cat/circle, cat/far, cat/up"
    assert f"4 linked to a folder that is read already: {links}" in skipped(source)
    # As predict lists a folder.
    assert len(list_images(root, "", Skipped())) == len(found)


def test_many_links_in_circles_take_no_time(tmp_path: Path) -> None:
    for k in range(12):
        tree(tmp_path / "in", f"cat/{k}/{k}.png")
        for other in range(12):
            (tmp_path / f"in/cat/{k}/to{other}").symlink_to(f"../{other}")
    assert len(list_images(tmp_path / "in", "cat", Skipped())) == 12


def test_what_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "in", "cat", "dog")
    (root / "cat/unmounted").symlink_to("/nowhere/at/all")
    with pytest.raises(UserError, match="cat/unmounted: a link that leads nowhere; mend it"):
        opened(root)
    (root / "cat/unmounted").unlink()
    (root / "cat/locked").mkdir()
    scandir = os.scandir

    def locked(path: Any) -> Any:  # the tests may run as root, who reads everything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"cat/locked: could not be read \(Permission denied\)"):
        opened(root)


@pytest.mark.parametrize(
    ("folders", "expected", "division"),
    [
        ("train test", "train test", "train/ for training, test/ for testing"),
        ("Training Testing", "Training Testing", "Training/ for training, Testing/ for testing"),
        ("TRAIN Validation", "TRAIN Validation", "TRAIN/ for training, Validation/ for testing"),
        ("train valid", "train valid", "train/ for training, valid/ for testing"),
        ("train dev", "train dev", "train/ for training, dev/ for testing"),
        (
            "extra train val test", "train val test",
            "train/ for training, val/ for validation, test/ for testing",
        ),
        (
            "TEST Dev training", "training Dev TEST",
            "training/ for training, Dev/ for validation, TEST/ for testing",
        ),
    ],
)  # fmt: skip
def test_known_names_of_splits(tmp_path: Path, folders: str, expected: str, division: str) -> None:
    root = classes(tmp_path, *(f"{name}/{c}" for name in folders.split() for c in ("cat", "dog")))
    source = opened(root)
    assert source.classes == ("cat", "dog")
    splits = ["train", "validation", "test"] if len(expected.split()) == 3 else ["train", "test"]
    found = {split: {path.split("/")[0] for path in of} for split, of in source.paths.items()}
    assert found == {split: {name} for split, name in zip(splits, expected.split(), strict=True)}
    assert list(found) == splits
    assert source.division == division
    lines = ["1 beside train, val and test: extra"]
    assert skipped(source) == (lines if "extra" in folders else [])


REFUSED = {
    "one split": ("train/cat train/dog", r"is train a class \(train/cat holds images\)\?"),
    "unknown splits": ("fold1/cat fold1/dog fold2/cat fold2/dog", "is fold1, fold2 a class"),
    "twice below": ("seg_train/seg_train/cat seg_test/seg_test/cat", "is seg_test, seg_train a"),
    "one level too high": ("photos/cat photos/dog", r"is photos a class \(photos/cat holds"),
    "flat": ("train", r"is train a class\?"),
    "flat splits": ("train test", "train: expected a folder for each class, found none$"),
    "unlabelled test": (
        "train/cat train/dog test",
        "test: expected a folder for each class, found none; to draw images for testing, give",
    ),
    "split among classes": ("cat dog test/cat test/dog", r"is test a class \(test/cat holds"),
    "two for training": ("train/a training/a test/a", "has train and training; say which by --sp"),
    "other classes": ("train/cat train/dog val/cat", "only one of train and val has dog; expected"),
    "other classes for validation": (
        "train/cat test/cat val/cat val/dog",
        "only one of train and val has dog; expected",
    ),
    "two for validation": (
        "train/a val/a dev/a test/a",
        "has dev and val; say which by --splits TRAIN,TEST or TRAIN,VALIDATION,TEST$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_not_understood(tmp_path: Path, case: str) -> None:
    places, message = REFUSED[case]
    root = classes(tmp_path / "in", *places.split())
    with pytest.raises(UserError, match=message):
        opened(root)


def test_splits_are_named(tmp_path: Path) -> None:
    root = classes(tmp_path, "fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog")
    source = opened(root, splits="fold2,fold1")
    assert source.paths["train"] == [f"fold2/{c}/{k}.png" for c in ("cat", "dog") for k in (0, 1)]
    assert opened(root, splits="none").classes == ("fold1", "fold2")
    classes(root, "fold3/cat", "fold3/dog")
    three = opened(root, splits="fold3,fold1,fold2").paths
    assert [of[0].split("/")[0] for of in three.values()] == ["fold3", "fold1", "fold2"]
    assert list(three) == ["train", "validation", "test"]
    with pytest.raises(UserError, match=r"fold4: could not be read \(No such file"):
        opened(root, splits="fold1,fold4")
    with pytest.raises(UserError, match="has fold1/; --test-fraction is for a directory without"):
        opened(root, splits="fold2,fold1", fraction=0.5)


def test_classes_that_are_understood(tmp_path: Path) -> None:
    """Folders below a class's, as ImageFolder reads them, and names that splits have too."""
    for k, (places, expected) in enumerate(
        (
            ("cat cat/deeper dog/only/deeper", ("cat", "dog")),
            ("cat/images dog/images", ("cat", "dog")),  # as in Tiny ImageNet
            ("bus car train", ("bus", "car", "train")),
        )
    ):
        assert opened(classes(tmp_path / str(k), *places.split())).classes == expected


def test_class_names(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", "train/cafe\u0301", "test/caf\u00e9", "train/zoo", "test/zoo")
    assert opened(root).classes == ("caf\u00e9", "zoo")
    classes(root, "train/caf\u00e9")
    with pytest.raises(UserError, match="two folders have this name in different spellings"):
        opened(root)
    for name, shown, why in (
        (b"caf\xe9", r"caf\\xe9", "not UTF-8"),
        (b"a\x1b[31m", r"a\\x1b\[31m", "cannot be printed"),
    ):
        root = classes(tmp_path / shown, "dog")
        os.mkdir(os.fsencode(root) + b"/" + name)
        with pytest.raises(UserError, match=f"{shown}: its name .*{why}; rename the folder"):
            opened(root)


def test_shape_of_the_first_image_that_can_be_read(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", "cat")
    with pytest.raises(UserError, match=r"none of 1 image can be read; the first: .*cat/[01].png"):
        open_folder(root, Decoding(), Division())
    picture(root / "cat/2.png", 6, 5, 3)
    source = open_folder(root, Decoding(), Division(), without=["cat/1.png"])
    assert source.shape == (3, 6, 5) and len(source.paths["train"]) == 1
