"""How far each mailbox's UIDs had come at earlier runs: a bound on saved dates that no lost index takes back.

A message whose UID had been given out when a run looked was saved before that
run. UIDs survive a rebuilt index, a restored disk and a moved host, where the
saved date, which lives in Dovecot's cache, does not. A rebuilt index of sdbox
has another mailbox GUID; that it is the same mailbox is known by samples, the
GUIDs of some of its messages.
"""

from __future__ import annotations

import json
import sqlite3
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS mark (guid TEXT, time INTEGER, next_uid INTEGER, PRIMARY KEY (guid, time));
CREATE TABLE IF NOT EXISTS box (guid TEXT PRIMARY KEY, account TEXT, mailbox TEXT, samples TEXT);
CREATE INDEX IF NOT EXISTS box_by_name ON box (account, mailbox);
"""


class Marks:
    """The marks of one host: (time, next UID) by mailbox GUID."""

    def __init__(self, file: Path) -> None:
        """Open *file*, or make it."""
        file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.database = sqlite3.connect(file, check_same_thread=False)
        self.database.executescript(SCHEMA)
        file.chmod(0o600)
        self.mutex = Lock()
        self.marks: list[tuple[str, int, int]] = []
        self.boxes: list[tuple[str, str, str, str]] = []
        self.adopted: list[tuple[str, str]] = []

    def of(self, guids: list[str]) -> dict[str, list[tuple[int, int]]]:
        """Return the marks of the mailboxes *guids*."""
        found: dict[str, list[tuple[int, int]]] = {}
        with self.mutex:
            query = f"SELECT guid, time, next_uid FROM mark WHERE guid IN ({','.join('?' * len(guids))}) ORDER BY time"  # noqa: S608  # marks only
            for guid, time, next_uid in self.database.execute(query, guids):
                found.setdefault(guid, []).append((time, next_uid))
        return found

    def earlier(self, account: str, mailbox: str) -> list[tuple[str, dict[int, str]]]:
        """Return (GUID, {UID: message GUID}) of what once was *mailbox* of *account*, the newest first."""
        with self.mutex:
            rows = self.database.execute(
                "SELECT guid, samples FROM box WHERE account = ? AND mailbox = ? ORDER BY rowid DESC", (account, mailbox)
            ).fetchall()
        return [(guid, {int(uid): sample for uid, sample in json.loads(samples).items()}) for guid, samples in rows]

    def adopt(self, old: str, new: str) -> list[tuple[int, int]]:
        """Return the marks of the mailbox *old*, which is *new* from the next save on."""
        with self.mutex:
            self.adopted.append((new, old))
        return self.of([old]).get(old, [])

    def note(self, guid: str, names: tuple[str, str], mark: tuple[int, int], samples: dict[int, str]) -> None:
        """Remember *mark*, (time, next UID), and *samples* of the mailbox *guid*, whose *names* are (account, mailbox)."""
        with self.mutex:
            self.marks.append((guid, *mark))
            self.boxes.append((guid, *names, json.dumps(samples)))

    def save(self, now: int, longest: int) -> None:
        """Write what was noted; forget marks that only say what a later one, old enough for every policy, says too."""
        with self.mutex, self.database:
            self.database.executemany("UPDATE OR REPLACE mark SET guid = ? WHERE guid = ?", self.adopted)
            self.database.executemany("DELETE FROM box WHERE guid = ?", [(old,) for _, old in self.adopted])
            self.database.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", self.marks)
            self.database.executemany("INSERT OR REPLACE INTO box VALUES (?, ?, ?, ?)", self.boxes)
            self.database.execute(
                "DELETE FROM mark WHERE time < ? AND EXISTS (SELECT 1 FROM mark AS later WHERE later.guid = mark.guid "
                "AND later.time > mark.time AND later.time < ?)", (now - longest, now - longest),
            )
            self.marks, self.boxes, self.adopted = [], [], []
