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
import stat
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of a mailbox, and of the list of mailboxes; each with a log.
INDEXES = ("dovecot.index", "dovecot.list.index")
# Where sdbox has a mailbox's messages, and what Maildir has beside its indexes.
DBOX, MAILDIR = "dbox-Mails", {"cur", "new", "tmp"}
LOCK_SECONDS = 60
PAUSE_SECONDS = 0.01


class Busy(Exception):
    """A lock was not to be had."""


@dataclass(frozen=True)
class Messages:
    """Message files of one directory, as it was when its indexes were copied; `directory` is below the mail's root."""

    directory: str
    names: tuple[str, ...]
    # Whether they are renamed when their flags change.
    renames: bool


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
    """Copy *source* to *target* with its times, owner and mode, in parts if it is large, and only what is not that copy already."""
    status = source.stat(follow_symlinks=False)
    there = [part.stat(follow_symlinks=False) for part in parts.of(target)]
    newest = max((part.st_mtime_ns for part in there), default=0)
    if newest == status.st_mtime_ns and sum(part.st_size for part in there) == status.st_size:
        return
    with source.open("rb") as stream:
        for part in parts.write(target, status.st_size, lambda: stream.read(parts.BYTES)):
            os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
            part.chmod(stat.S_IMODE(status.st_mode))
            os.chown(part, status.st_uid, status.st_gid)


def copy_index(directory: Path, target: Path, index: str, there: list[str]) -> None:
    """Copy the files of *index*, of those that are *there*, from *directory* to *target*, and remove what is no more; the lock is held."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = {name for name in there if name.startswith(index) and not name.endswith((".lock", ".tmp", ".newlock"))}
    for name in names:
        copy_changed(directory / name, target / name)
    for name in names_in(target):
        if name.startswith(index) and parts.whole(name) not in names:
            (target / name).unlink()


def messages_in(directory: Path, root: Path, names: list[str]) -> Iterator[Messages]:
    """Yield the message files of a mailbox's *directory*, which holds *names*: u.UID of sdbox, those in cur and new of Maildir."""
    relative = str(directory.relative_to(root))
    if dbox := [name for name in names if name.startswith("u.")]:
        yield Messages(relative, tuple(dbox), renames=False)
    if set(names) >= MAILDIR:
        found = [name for folder in ("cur", "new") for name in names_in(directory / folder)]
        if found:
            yield Messages(relative, tuple(found), renames=True)


def directories(home: Path) -> Iterator[Path]:
    """Yield *home* and all directories below it that may hold indexes; what lies in a mailbox's own are messages, perhaps many."""
    below = [home]
    while below:
        directory = below.pop()
        yield directory
        if directory.name == DBOX:
            continue
        # A mailbox may have been deleted since its parent was read.
        with suppress(FileNotFoundError), os.scandir(directory) as entries:
            below += [Path(entry.path) for entry in entries if entry.name not in MAILDIR and entry.is_dir(follow_symlinks=False)]


def capture(root: Path, home: Path, stage: Path) -> Iterator[Messages]:
    """Copy the indexes of the account at *home*, below the mail's *root*, to *stage*; yield its message files. Raises Busy."""
    kept = set()
    for directory in directories(home):
        target = stage / directory.relative_to(root)
        found: list[Messages] = []
        for index in INDEXES:
            if (directory / f"{index}.log").is_file() or (directory / index).is_file():
                with locked(directory, index):
                    names = names_in(directory)
                    copy_index(directory, target, index, names)
                    kept.add(str(target))
                    if index == INDEXES[0]:
                        found = list(messages_in(directory, root, names))
        yield from found
    forget(stage / home.relative_to(root), kept)


def forget(stage: Path, kept: set[str]) -> None:
    """Remove what is staged of mailboxes that are no more: every directory that neither is in *kept* nor holds one that is."""
    for folder, _, names in os.walk(stage, topdown=False):
        if folder not in kept:
            for name in names:
                (Path(folder) / name).unlink()
            if not names_in(Path(folder)):
                Path(folder).rmdir()
