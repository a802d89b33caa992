"""How far each mailbox's UIDs had come at earlier runs: a bound on saved dates that no lost index takes back.

A message whose UID had been given out when a run looked was saved before that
run. UIDs survive a rebuilt index, a restored disk and a moved host, where the
saved date, which lives in Dovecot's cache, does not.
"""

from __future__ import annotations

import sqlite3
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Marks:
    """The marks of one host: (time, next UID) by mailbox GUID."""

    def __init__(self, file: Path) -> None:
        """Open *file*, or make it."""
        file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.database = sqlite3.connect(file, check_same_thread=False)
        self.database.execute("CREATE TABLE IF NOT EXISTS mark (guid TEXT, time INTEGER, next_uid INTEGER, PRIMARY KEY (guid, time))")
        file.chmod(0o600)
        self.mutex = Lock()
        self.new: list[tuple[str, int, int]] = []

    def of(self, guids: list[str]) -> dict[str, list[tuple[int, int]]]:
        """Return the marks of the mailboxes *guids*."""
        found: dict[str, list[tuple[int, int]]] = {}
        with self.mutex:
            query = f"SELECT guid, time, next_uid FROM mark WHERE guid IN ({','.join('?' * len(guids))}) ORDER BY time"  # noqa: S608  # marks only
            for guid, time, next_uid in self.database.execute(query, guids):
                found.setdefault(guid, []).append((time, next_uid))
        return found

    def note(self, guid: str, time: int, next_uid: int, known: list[tuple[int, int]]) -> None:
        """Remember *next_uid* at *time*, if it is news to the marks that are *known*."""
        if not known or next_uid > max(mark[1] for mark in known):
            with self.mutex:
                self.new.append((guid, time, next_uid))

    def save(self, now: int, longest: int) -> None:
        """Write what was noted; forget marks that only say what a later one, old enough for every policy, says too."""
        with self.mutex, self.database:
            self.database.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", self.new)
            self.database.execute(
                "DELETE FROM mark WHERE time < ? AND EXISTS (SELECT 1 FROM mark AS later WHERE later.guid = mark.guid "
                "AND later.time > mark.time AND later.time < ?)", (now - longest, now - longest),
            )
            self.new = []
