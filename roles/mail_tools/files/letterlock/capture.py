"""Copies of what changes in place, taken while mail comes and goes.

Message files are written once and then only renamed or removed: restic may read
them live. Indexes are written in place, several files that belong together, and
hold flags, UIDs and saved dates. They are copied here, a mailbox at a time, while
they are locked as Dovecot itself locks them: for milliseconds, in which a delivery
to that mailbox waits. The copies are what the backup holds.

https://doc.dovecot.org/latest/core/config/mail_index_files.html
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of a mailbox, and of the list of mailboxes; each with a log.
INDEXES = ("dovecot.index", "dovecot.list.index")
LOCK_SECONDS = 60
PAUSE_SECONDS = 0.01


class Busy(Exception):
    """A lock was not to be had."""


@dataclass(frozen=True)
class Messages:
    """Message files of one directory, as it was when its indexes were copied; `directory` is below the mail's root."""

    directory: str
    names: tuple[str, ...]


def lock(path: Path) -> int | None:
    """Return an open file with Dovecot's lock on it, -1 when there is no such file, or None when somebody else holds it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Not the lock of a file that was replaced meanwhile.
        if os.fstat(handle).st_ino == path.stat(follow_symlinks=False).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


def locked(directory: Path, index: str) -> ExitStack:
    """Return a context that holds the locks on *index* in *directory*, its log's and its cache's; raise Busy.

    Dovecot takes both. Whoever waited for one while holding the other could wait forever.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        stack = ExitStack()
        for name in (f"{index}.log", f"{index}.cache"):
            handle = lock(directory / name)
            if handle is None:
                break
            if handle >= 0:
                stack.callback(os.close, handle)
        else:
            return stack
        stack.close()
        if time.monotonic() > deadline:
            raise Busy(f"{directory / index}: locked for more than {LOCK_SECONDS} s")
        time.sleep(PAUSE_SECONDS)


def names_in(directory: Path) -> list[str]:
    """Return the names in *directory*."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def copy_changed(source: Path, target: Path) -> None:
    """Copy *source* to *target* with its times, owner and mode, unless it is that copy already: what stays costs nothing."""
    status = source.stat(follow_symlinks=False)
    try:
        before = target.stat(follow_symlinks=False)
        if (before.st_size, before.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return
    except FileNotFoundError:
        pass
    shutil.copy2(source, target, follow_symlinks=False)
    os.chown(target, status.st_uid, status.st_gid)


def copy_index(directory: Path, target: Path, index: str) -> None:
    """Copy the files of *index* from *directory* to *target*, and remove from there what is no more; the lock is held."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = {name for name in names_in(directory) if name.startswith(index) and not name.endswith((".lock", ".tmp", ".newlock"))}
    for name in names:
        copy_changed(directory / name, target / name)
    for name in names_in(target):
        if name.startswith(index) and name not in names:
            (target / name).unlink()


def messages_in(directory: Path, root: Path) -> Iterator[Messages]:
    """Yield the message files of a mailbox's *directory*: u.UID of sdbox, those in cur and new of Maildir."""
    names = names_in(directory)
    relative = str(directory.relative_to(root))
    if dbox := [name for name in names if name.startswith("u.")]:
        yield Messages(relative, tuple(dbox))
    if {"cur", "new", "tmp"} <= set(names):
        found = [name for folder in ("cur", "new") for name in names_in(directory / folder)]
        if found:
            yield Messages(relative, tuple(found))


def capture(root: Path, home: Path, stage: Path) -> Iterator[Messages]:
    """Copy the indexes of the account at *home*, below the mail's *root*, to *stage*; yield its message files. Raises Busy."""
    kept = set()
    for folder, folders, names in os.walk(home):
        directory = Path(folder)
        target = stage / directory.relative_to(root)
        found: list[Messages] = []
        for index in INDEXES:
            if f"{index}.log" in names or index in names:
                with locked(directory, index):
                    copy_index(directory, target, index)
                    kept.add(str(target))
                    if index == INDEXES[0]:
                        found = list(messages_in(directory, root))
        yield from found
        folders[:] = [name for name in folders if name not in ("cur", "new", "tmp")]
    forget(stage / home.relative_to(root), kept)


def forget(stage: Path, kept: set[str]) -> None:
    """Remove what is staged of mailboxes that are no more: every directory that neither is in *kept* nor holds one that is."""
    for folder, _, names in os.walk(stage, topdown=False):
        if folder not in kept:
            for name in names:
                (Path(folder) / name).unlink()
            if not names_in(Path(folder)):
                Path(folder).rmdir()
