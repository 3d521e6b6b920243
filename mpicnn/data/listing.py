"""Find the image files in a folder, and keep count of what is skipped."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from mpicnn.data.images import ENDINGS
from mpicnn.errors import UserError

OTHER_PROGRAMS = frozenset(
    ("#recycle", "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "lost+found",
     "system volume information", "thumbs.db")
)  # fmt: skip
"""Names, in lower case, of what systems and other programs leave in folders."""

HIDDEN = "hidden, or left by other programs"
OTHER_ENDING = "with other endings"
NO_REGULAR_FILE = "neither file nor folder"
SEEN = "linked to a folder that is read already"


class Skipped:
    """Count what is not read, by the reason, with a few names of each."""

    MOST_NAMES = 5

    def __init__(self) -> None:
        self._names: dict[str, Counter[str]] = {}

    def add(self, why: str, name: str) -> None:
        """Count one more; beyond the first few, names that are new are counted without."""
        names = self._names.setdefault(why, Counter())
        names[name if name in names or len(names) < self.MOST_NAMES else ""] += 1

    def lines(self) -> list[str]:
        """Return a line for each reason: how many, why, and of what names."""
        lines = []
        for why, names in sorted(self._names.items()):
            shown = [f"{name} ({n})" if n > 1 else name for name, n in names.items() if name]
            more = [f"{names['']} more"] if names[""] else []
            lines.append(f"{names.total()} {why}: {', '.join(shown + more)}")
        return lines


def hidden(name: str) -> bool:
    """Tell whether a file or folder is not to be read for its name."""
    return name.startswith(".") or name.casefold() in OTHER_PROGRAMS


def scan(root: Path, place: str, skipped: Skipped) -> tuple[list[str], list[str]]:
    """Return the folders and the image files in `root`/`place`, sorted paths relative to `root`.

    Links are followed. Raises UserError for a folder or link that cannot be read; a link to
    nowhere with the ending of an image counts as an image, which decoding then refuses.
    """
    folders, images = [], []
    try:
        with os.scandir(root / place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = os.path.join(place, entry.name)
            ending = os.path.splitext(entry.name)[1].lower()
            if hidden(entry.name):
                skipped.add(HIDDEN, path)
            elif leads_nowhere(entry):
                if ending not in ENDINGS:
                    raise UserError(
                        f"{root / path}: a link that leads nowhere; mend it or remove it"
                    )
                images.append(path)
            elif entry.is_dir():
                folders.append(path)
            elif not entry.is_file():
                skipped.add(NO_REGULAR_FILE, path)
            elif ending not in ENDINGS:
                skipped.add(OTHER_ENDING, ending or "no ending")
            else:
                images.append(path)
    except OSError as error:
        where = error.filename or root / place
        raise UserError(f"{where}: could not be read ({error.strerror})") from error
    return folders, images


def leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a link to nothing, or to itself."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def list_images(root: Path, place: str, skipped: Skipped) -> list[str]:
    """Return the sorted paths, relative to `root`, of all images in `place` and the folders below.

    Every folder is read once, however many links lead to it; so links in a circle do no harm.
    Raises UserError as `scan` does.
    """
    seen = {os.path.realpath(root / above) for above in Path(place).parents}
    found, waiting = [], [place]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(root / here)
        if real in seen:
            skipped.add(SEEN, here)
            continue
        seen.add(real)
        folders, images = scan(root, here, skipped)
        found += images
        waiting += reversed(folders)
    return sorted(found)
