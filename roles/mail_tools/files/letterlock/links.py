"""Files that restic makes one, and that are not one.

A restore links what has the same inode number in the snapshot. A file that is removed while the backup runs leaves its number
to the next one that is made, and a busy Maildir removes and makes files all the time: its list of UIDs, which is replaced by a
new file, came back as a link to another user's message, or not at all. The repository holds what each of them was: what
differs, or is not there, is fetched again, apart from the others.

https://github.com/restic/restic/blob/v0.18.0/internal/restorer/restorer.go
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock.batches import chunks

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator

    from letterlock.restic import Restic

# Of a file in a snapshot: links have all of them in common, unless one was linked or renamed while the backup was made.
SAME = ("size", "mtime", "ctime")
# The first restic that makes links where files are already, and goes on with the files that an interrupted restore brought. 0.14
# writes all of them anew, and removes a file that it takes for a link without making one:
# https://github.com/restic/restic/blob/v0.14.0/internal/restorer/restorer.go
RELINKS = (0, 17)
# Each pattern costs a tenth of a second for 100,000 files.
PATTERNS_AT_ONCE = 200


def linked(directory: Path) -> Iterator[tuple[int, str]]:
    """Yield (inode number, path) of the files below *directory* that have more links than one."""
    below = [str(directory)] if directory.is_dir() else []
    while below:
        with os.scandir(below.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink > 1:
                    yield status.st_ino, entry.path


def unlink(directory: Path) -> None:
    """Remove the files below *directory* that have more links than one: to write to one would change others."""
    for _, path in list(linked(directory)):
        os.unlink(path)  # noqa: PTH108  # perhaps many


def rounds(groups: Iterable[list[str]], known: dict[str, tuple]) -> list[list[str]]:
    """Return what is to be fetched, together and after each other, of *groups* of paths that restic made one; *known* is what each was.

    >>> rounds([["a", "b"], ["c", "d", "e"]], {"a": (1,), "b": (1,), "c": (1,), "d": (2,), "e": (2,)})
    [['c'], ['d', 'e']]
    """
    made: list[list[str]] = []
    for paths in groups:
        apart: dict[tuple, list[str]] = {}
        for path in paths:
            apart.setdefault(known[path], []).append(path)
        if len(apart) > 1:
            made += ([] for _ in range(len(apart) - len(made)))
            for one_round, of_one in zip(made, apart.values(), strict=False):
                one_round.extend(of_one)
    return made


def restore(restic: Restic, snapshot: str, target: Path, paths: Iterable[Path], unless: threading.Event | None = None) -> None:
    """Let *restic* bring *paths* of *snapshot* to *target*, *unless* that is set, each file as it was; raise Fault."""
    paths = list(map(str, paths))
    restic.restore(snapshot, target, paths, unless)
    separate(restic, snapshot, target, paths)


def separate(restic: Restic, snapshot: str, target: Path, paths: list[str]) -> None:
    """Bring back, each as it was, what restic made one or lost below *paths* of *snapshot* in *target*; raise Fault."""
    groups = made_one(target, paths)
    if not groups and restic.version() >= RELINKS:
        return
    of_groups = set(chain.from_iterable(groups))
    known: dict[str, tuple] = {}
    lost = []
    for row in restic.listed(snapshot, paths):
        if row["path"] in of_groups:
            known[row["path"]] = tuple(row[what] for what in SAME)
        elif row["type"] == "file" and is_missing(target, row["path"]):
            lost.append(row["path"])
    # What has a name that JSON can't hold is no message.
    apart = rounds(([file for file in files if file in known] for files in groups), known)
    for file in chain.from_iterable(apart):
        os.unlink(f"{target}{file}")  # noqa: PTH108  # perhaps many
    for some in (*apart, lost):
        for files in chunks(some, PATTERNS_AT_ONCE):
            restic.restore(snapshot, target, files)
    # Of those that were lost, two may have had one number.
    for file in lost:
        if is_missing(target, file):
            restic.restore(snapshot, target, [file])


def made_one(target: Path, paths: list[str]) -> list[list[str]]:
    """Return the files, as the snapshot names them, that are links of each other in *target*, below whichever of *paths*."""
    groups: dict[int, list[str]] = {}
    for inode, file in chain.from_iterable(linked(Path(f"{target}{path}")) for path in paths):
        groups.setdefault(inode, []).append(file.removeprefix(str(target)))
    return list(groups.values())


def is_missing(target: Path, file: str) -> bool:
    """Tell whether a *file* of a snapshot is not in *target*."""
    return not os.path.lexists(f"{target}{file}")
