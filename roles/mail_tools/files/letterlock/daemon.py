"""Programs that run behind systemd's sockets, and end when newer ones are there: the next connection starts those."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_SECONDS = 2


def program_state() -> list[tuple[str, int]]:
    """Return what tells one version of the kit's programs from another."""
    return sorted((file.name, file.stat().st_mtime_ns) for file in Path(__file__).parent.glob("*.py"))


class Steps:
    """What such a program counts: work that it does not end under."""

    def __init__(self) -> None:
        """Begin with none."""
        self.begun_as = program_state()
        self.mutex = threading.Lock()
        self.under_way = 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count some work."""
        with self.mutex:
            self.under_way += 1
        try:
            yield
        finally:
            with self.mutex:
                self.under_way -= 1

    def step_aside(self) -> None:
        """Return when the programs have changed and nothing is under way."""
        while True:
            time.sleep(LOOK_SECONDS)
            with contextlib.suppress(FileNotFoundError):  # being replaced just now
                if program_state() != self.begun_as and not self.under_way:
                    return
