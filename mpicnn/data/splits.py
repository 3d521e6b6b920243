"""Tell the folders of splits from those of classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mpicnn.data.layout import SPLITS, VALIDATION, some
from mpicnn.errors import UserError

TRAINING = frozenset(("train", "training"))
TESTING = frozenset(("test", "testing"))
VALIDATING = frozenset(("dev", "eval", "val", "valid", "validation"))
KNOWN = TRAINING | TESTING | VALIDATING

ARE_CLASSES = "none"
"""What --splits says where the folders are classes, whatever they are called."""

EXPECTED = (
    "expected SOURCE/CLASS/IMAGE, or SOURCE/train/CLASS/IMAGE and SOURCE/test/CLASS/IMAGE; name "
    "the folders by --splits TRAIN,TEST, or give --splits none if they are classes"
)

NAMED = "--splits TRAIN,TEST or TRAIN,VALIDATION,TEST"


def find_splits(root: Path, folders: Sequence[str], named: str) -> dict[str, str] | None:
    """Return which of `folders` is for which split; None if they are classes.

    `named` says it, as --splits does. Where it is empty, the names of the folders do, in whatever
    case: one for training, one for testing and perhaps one for validation, which is for testing
    where no other is. Raises UserError where two would serve.
    """
    if named == ARE_CLASSES:
        return None
    if named:
        names = named.split(",")
        return dict(zip(parts_of(len(names)), names, strict=True))
    training, validating = among(folders, TRAINING), among(folders, VALIDATING)
    testing = among(folders, TESTING)
    if not testing:
        testing, validating = validating, []
    if not training or not testing:
        return None
    for names in (training, validating, testing):
        if len(names) > 1:
            raise UserError(f"{root}: has {' and '.join(names)}; say which by {NAMED}")
    found = (*training, *validating, *testing)
    return dict(zip(parts_of(len(found)), found, strict=True))


def parts_of(count: int) -> list[str]:
    """Return the names of `count` splits, 2 or 3: of two, none is for validation."""
    return [name for name in SPLITS if count == len(SPLITS) or name != VALIDATION]


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
