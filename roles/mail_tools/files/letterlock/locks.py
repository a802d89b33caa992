"""Locks that runs share, so that no two of them change the same thing at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Held by whoever expunges, or writes the ledger or what runs remember.
RETENTION = Path("/var/lib/letterlock/retention.lock")
# Held by whoever writes the repository of backups.
BACKUP = Path("/var/lib/letterlock/backup/lock")
WAIT_SECONDS = 600


class Busy(Exception):
    """Another run holds the lock, and goes on holding it."""


@contextlib.contextmanager
def only_one(lock: Path, seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold *lock*; wait for it *seconds*, then raise Busy.

    A child that is started with `close_fds=False` holds it, too, for as long as it outlives who was killed.
    """
    deadline = time.monotonic() + seconds
    lock.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with lock.open("a", encoding="ascii") as handle:
        os.set_inheritable(handle.fileno(), True)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(f"another run has held {lock} for {seconds:.0f} s") from None
                time.sleep(0.2)
        yield
