"""How far each mailbox's UIDs had come at earlier runs: a bound on saved dates that no lost index takes back.

A message whose UID had been given out when a run looked was saved before that
run. UIDs survive a rebuilt index, a restored disk and a moved host, where the
saved date, which lives in Dovecot's cache, does not. A rebuilt index of sdbox
has another mailbox GUID; that it is the same mailbox is known by samples, the
GUIDs of some of its messages. Mailboxes are kept by account and GUID, under `guid`:
an account that was copied on the disk has its mailboxes' GUIDs, too.

Messages that a restore added to a mailbox that was there have the saved date that a
manifest tells, under `saved`.

Beside that, in which state a run left each mailbox, and until when nothing in it
is due as long as it stays in that state.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS mark (guid TEXT, time INTEGER, next_uid INTEGER, PRIMARY KEY (guid, time));
CREATE TABLE IF NOT EXISTS box (guid TEXT PRIMARY KEY, account TEXT, mailbox TEXT, samples TEXT);
CREATE TABLE IF NOT EXISTS quiet (guid TEXT PRIMARY KEY, state TEXT, time INTEGER, until INTEGER);
CREATE TABLE IF NOT EXISTS saved (guid TEXT, uid INTEGER, time INTEGER, PRIMARY KEY (guid, uid));
CREATE INDEX IF NOT EXISTS box_by_name ON box (account, mailbox);
"""
# A mailbox that no run has met for this long is gone.
FORGET_SECONDS = 90 * 86400
# A statement takes a limited number of values.
VALUES = 500


@dataclass
class Memory:
    """What is known of some mailboxes, by their GUIDs."""

    marks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    samples: dict[str, dict[int, str]] = field(default_factory=dict)
    quiet: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    # {mailbox: {UID: when it was saved first}} of messages that a restore added.
    saved: dict[str, dict[int, int]] = field(default_factory=dict)

    def state(self, guid: str) -> str | None:
        """Return the state in which the last run found a mailbox."""
        return self.quiet.get(guid, (None,))[0]

    def is_quiet(self, guid: str, now: float) -> bool:
        """Tell whether nothing of a mailbox in that state is due at *now*; a clock that went back proves nothing."""
        _, looked, until = self.quiet.get(guid, ("", 0, 0))
        return looked <= now < until


class Marks:
    """What is kept of the mailboxes of one host: (time, next UID), samples, and until when each is quiet."""

    def __init__(self, file: Path) -> None:
        """Open *file*, or make it."""
        file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.database = sqlite3.connect(file, check_same_thread=False)
        self.database.executescript(SCHEMA)
        file.chmod(0o600)
        self.mutex = Lock()
        self.forget_noted()

    def forget_noted(self) -> None:
        """Forget what was noted and not saved."""
        self.marks: list[tuple[str, int, int]] = []
        self.boxes: list[tuple[str, str, str, str]] = []
        self.adopted: list[tuple[str, str]] = []
        self.quiet: list[tuple[str, str, int, int]] = []

    def of(self, guids: list[str]) -> Memory:
        """Return what is known of the mailboxes *guids*."""
        found = Memory()
        with self.mutex:
            for guid, time, next_uid in self.rows("SELECT guid, time, next_uid FROM mark WHERE guid IN ({}) ORDER BY time", guids):
                found.marks.setdefault(guid, []).append((time, next_uid))
            for guid, samples in self.rows("SELECT guid, samples FROM box WHERE guid IN ({})", guids):
                found.samples[guid] = {int(uid): sample for uid, sample in json.loads(samples).items()}
            for guid, *quiet in self.rows("SELECT guid, state, time, until FROM quiet WHERE guid IN ({})", guids):
                found.quiet[guid] = tuple(quiet)
            for guid, uid, time in self.rows("SELECT guid, uid, time FROM saved WHERE guid IN ({})", guids):
                found.saved.setdefault(guid, {})[uid] = time
        return found

    def keep_saved(self, saved: list[tuple[str, int, int]]) -> None:
        """Keep when messages that a restore adds were *saved* first, (mailbox, UID, time): Dovecot takes the restore for it."""
        with self.mutex, self.database:
            self.database.executemany("INSERT OR REPLACE INTO saved VALUES (?, ?, ?)", saved)

    def rows(self, query: str, guids: list[str]) -> Iterator[tuple]:
        """Yield the rows of *query*, with as many marks in its braces as there are *guids*."""
        for start in range(0, len(guids), VALUES):
            some = guids[start : start + VALUES]
            yield from self.database.execute(query.format(",".join("?" * len(some))), some)

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
        return self.of([old]).marks.get(old, [])

    def note(self, guid: str, names: tuple[str, str], mark: tuple[int, int] | None, samples: dict[int, str]) -> None:
        """Remember *samples* of the mailbox *guid*, whose *names* are (account, mailbox), and *mark*, (time, next UID)."""
        with self.mutex:
            if mark:
                self.marks.append((guid, *mark))
            self.boxes.append((guid, *names, json.dumps(samples)))

    def note_quiet(self, guid: str, state: str, now: int, until: int) -> None:
        """Remember that the mailbox *guid* was in *state* at *now*, and that in this state nothing is due *until* then."""
        with self.mutex:
            self.quiet.append((guid, state, now, until))

    def save(self, now: int, longest: int) -> None:
        """Write what was noted; forget marks that only say what a later one, old enough for every policy, says too."""
        with self.mutex, self.database:
            self.database.executemany("UPDATE OR REPLACE mark SET guid = ? WHERE guid = ?", self.adopted)
            self.database.executemany("UPDATE OR REPLACE saved SET guid = ? WHERE guid = ?", self.adopted)
            self.database.executemany("DELETE FROM box WHERE guid = ?", [(old,) for _, old in self.adopted])
            self.database.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", self.marks)
            self.database.executemany("INSERT OR REPLACE INTO box VALUES (?, ?, ?, ?)", self.boxes)
            self.database.executemany("INSERT OR REPLACE INTO quiet VALUES (?, ?, ?, ?)", self.quiet)
            self.database.execute("DELETE FROM quiet WHERE until < ?", (now - FORGET_SECONDS,))
            self.database.execute(
                "DELETE FROM mark WHERE time < ? AND EXISTS (SELECT 1 FROM mark AS later WHERE later.guid = mark.guid "
                "AND later.time > mark.time AND later.time < ?)", (now - longest, now - longest),
            )
            self.forget_noted()
