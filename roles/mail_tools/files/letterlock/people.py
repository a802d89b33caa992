"""Who goes first at the scanner: people, who wait for a delivery or a login, before the sweep, for which nobody waits."""

from __future__ import annotations

import contextlib
import fcntl
import time
from typing import TYPE_CHECKING

from letterlock.scan_settings import STATE

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = STATE / "people"
# So long the sweep gives way for one message; where people never stop coming, it goes on slowly.
PATIENCE_SECONDS = 5.0


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Be one of the people. The kernel takes the lock back from a process that dies."""
    STATE.mkdir(mode=0o711, parents=True, exist_ok=True)
    with LOCK.open("a", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


class Patience:
    """What the sweep has with people."""

    def __init__(self) -> None:
        """Open the lock."""
        STATE.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.handle = LOCK.open("a", encoding="ascii")

    def give_way(self) -> None:
        """Wait until nobody waits for the scanner."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(self.handle, fcntl.LOCK_UN)
                return
            time.sleep(0.02)
