"""Tell which folders hold the images for training and for testing, and which are classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mpicnn.data.layout import SPLITS, some
from mpicnn.errors import UserError

TRAINING = frozenset(("train", "training"))
TESTING = frozenset(("test", "testing"))
VALIDATION = frozenset(("dev", "eval", "val", "valid", "validation"))
KNOWN = TRAINING | TESTING | VALIDATION

ARE_CLASSES = "none"
"""What --splits says where the folders are classes, whatever they are called."""

EXPECTED = (
    "expected SOURCE/CLASS/IMAGE, or SOURCE/train/CLASS/IMAGE and SOURCE/test/CLASS/IMAGE; name "
    "the folders by --splits TRAIN,TEST, or give --splits none if they are classes"
)


def find_splits(root: Path, folders: Sequence[str], named: str) -> dict[str, str] | None:
    """Return which of `folders` is for training and which for testing; None if they are classes.

    `named` says it, as --splits does. Where it is empty, the names of the folders do, in whatever
    case: one for training, and one for testing or, without that, for validation. Raises UserError
    where two would serve.
    """
    if named == ARE_CLASSES:
        return None
    if named:
        return dict(zip(SPLITS, named.split(","), strict=True))
    training = among(folders, TRAINING)
    testing = among(folders, TESTING) or among(folders, VALIDATION)
    if not training or not testing:
        return None
    for names in (training, testing):
        if len(names) > 1:
            raise UserError(f"{root}: has {' and '.join(names)}; say which by --splits TRAIN,TEST")
    return dict(zip(SPLITS, (*training, *testing), strict=True))


def among(folders: Sequence[str], known: Collection[str]) -> list[str]:
    """Return those of `folders` that have one of the `known` names, in whatever case."""
    return [name for name in folders if name.casefold() in known]


def check_classes(root: Path, files: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError where the folders of `root` seem to hold classes instead of being some.

    `files` are the images, relative to `root`, by folder. Images in folders below a class's are
    of that class; but a class has images of its own too, or each has them in one folder of the
    same name, like CLASS/images. A folder `train` is no class where it has none of its own.
    """
    below = {
        name: {path.split("/")[1] for path in paths}
        for name, paths in files.items()
        if all(path.count("/") > 1 for path in paths)
    }
    all_known = len(among(list(files), KNOWN)) == len(files)
    all_below = below.keys() == files.keys() and not (len(files) > 1 and one_name(below.values()))
    odd = list(files) if all_known or all_below else among(list(below), KNOWN)
    if odd:
        holds = f" ({odd[0]}/{min(below[odd[0]])} holds images)" if odd[0] in below else ""
        alone = among(odd, TRAINING) == list(files) and len(files) == 1
        draw = f"; to draw images for testing, give {root / odd[0]} as SOURCE" if alone else ""
        raise UserError(f"{root}: is {some(odd)} a class{holds}? {EXPECTED}{draw}")


def one_name(sets: Collection[Collection[str]]) -> bool:
    """Tell whether all of `sets` are of one and the same name."""
    return all(len(each) == 1 for each in sets) and len({min(each) for each in sets}) == 1
