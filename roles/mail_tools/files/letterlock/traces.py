"""What the file system tells, for a thousandth of Dovecot's price, of whether an account may have new mail.

A message comes into a mailbox as a new name in the directory of its messages, in both
formats, whoever puts it there; its UID comes after that, with a line in the mailbox's log.
A flag of sdbox changes the log alone. So a directory that has not changed holds no new
message, and of one that has changed of late the log must be the same, too: of a message
whose name is there its UID may not have been.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from letterlock.stored import DBOX_MAILBOXES, DBOX_MESSAGES, MAILDIR, MAILDIR_MESSAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIBC = ctypes.CDLL(None)
LOG = "dovecot.index.log"
# Longer than any delivery hangs between a message's name and its UID.
SETTLED_SECONDS = 300
# A directory tells its time by the tick of the kernel's clock: of two changes in one tick the second is not to be seen.
TICK_SECONDS = 1


@dataclass(frozen=True)
class Trace:
    """One directory of messages. Times are nanoseconds since the epoch."""

    inode: int
    changed: int
    # Inode, size and time of the mailbox's log, or None where it does not matter any more.
    log: tuple[int, int, int] | None


def state_of_log(directory: str) -> tuple[int, int, int]:
    """Return what tells one state of a mailbox's log from another."""
    try:
        status = os.stat(f"{directory}/{LOG}")  # noqa: PTH116  # for each mailbox of each login
    except FileNotFoundError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


def directories(home: Path) -> Iterator[tuple[str, str]]:
    """Yield (directory of messages, directory of their log) of the account whose *home* it is."""
    maildir = home / MAILDIR
    if maildir.is_dir():
        with os.scandir(maildir) as entries:
            boxes = [str(maildir), *(entry.path for entry in entries if entry.name.startswith(".") and entry.is_dir())]
        yield from ((f"{box}/{name}", box) for box in boxes for name in MAILDIR_MESSAGES)
        return
    left = [str(home / DBOX_MAILBOXES)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.name == DBOX_MESSAGES:
                    yield entry.path, entry.path
                elif entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)


@contextlib.contextmanager
def with_eyes_of(uid: int) -> Iterator[None]:
    """Look at files as user *uid*: this thread alone, which then needs no capability to pass by modes. See setfsuid(2)."""
    mine = LIBC.setfsuid(uid)
    try:
        yield
    finally:
        LIBC.setfsuid(mine)


def of(home: Path, uid: int) -> dict[str, Trace]:
    """Return {directory: its trace} of an account whose mail belongs to *uid*; nothing where it has none yet, or can't be looked at."""
    found = {}
    with with_eyes_of(uid), contextlib.suppress(OSError):
        for directory, log in directories(home):
            status = os.stat(directory)  # noqa: PTH116  # for each mailbox of each login
            found[directory] = Trace(status.st_ino, status.st_mtime_ns, state_of_log(log))
        return found
    return {}


class Quiet:
    """Accounts in which nothing was left to be judged, by their traces. For one process, and safe to use from its threads."""

    def __init__(self) -> None:
        """Begin with none."""
        self.known: dict[str, tuple[int, dict[str, Trace]]] = {}

    def note(self, account: str, number: int, found: dict[str, Trace], taken_at: float) -> None:
        """Remember that the signatures *number* have nothing left to judge in *account*, whose traces were *found* at *taken_at*."""
        ages = {name: taken_at - trace.changed / 1e9 for name, trace in found.items()}
        if not found or min(ages.values()) < TICK_SECONDS:
            self.known.pop(account, None)
            return
        self.known[account] = number, {
            name: Trace(trace.inode, trace.changed, None) if ages[name] > SETTLED_SECONDS else trace for name, trace in found.items()
        }

    def is_still(self, account: str, number: int, found: dict[str, Trace]) -> bool:
        """Tell whether *account*, of which *found* are the traces now, holds no message that the signatures *number* have to judge."""
        known_number, known = self.known.get(account, (-1, {}))
        return known_number == number and known.keys() == found.keys() != set() and all(
            (trace.inode, trace.changed) == (found[name].inode, found[name].changed) and trace.log in (None, found[name].log)
            for name, trace in known.items()
        )
