"""Which messages were judged by which signatures: each by its GUID, and each mailbox up to which UID.

A mailbox whose UIDs have not grown since it was judged as a whole costs one row, so that a
login without news, and a sweep with the signatures of the last one, look at no message. A
message that was moved or copied has a new UID and the same GUID, and is not judged again.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from letterlock.scan_settings import STATE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS message (guid TEXT PRIMARY KEY, number INTEGER, time INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS box (
    account TEXT, guid TEXT, validity INTEGER, next_uid INTEGER, gate INTEGER, sweep INTEGER, PRIMARY KEY (account, guid)
) WITHOUT ROWID;
"""
BOXES = "SELECT account, guid, validity, next_uid, gate, sweep FROM box"
BOXES_OF = f"{BOXES} WHERE account = ?"
NUMBERS = "SELECT guid, number FROM message WHERE guid IN ({})"
# A statement takes a limited number of values.
VALUES = 500
# What no sweep has met for so long is gone.
FORGET_SECONDS = 90 * 86400


@dataclass(frozen=True)
class Box:
    """A mailbox of which every message below `next_uid` was judged once.

    `gate` is the number of the signatures by which a gate has judged what it has to, `sweep` that by which all was judged.
    """

    validity: int = 0
    next_uid: int = 1
    gate: int = 0
    sweep: int = 0


class Judged:
    """What is remembered on one host. Safe to use from several threads and processes."""

    def __init__(self, file: Path = STATE / "judged.sqlite") -> None:
        """Open *file*, or make it."""
        file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.database = sqlite3.connect(file, timeout=60, check_same_thread=False)
        # What a power cut takes is judged again.
        self.database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + SCHEMA)
        file.chmod(0o600)
        self.mutex = threading.Lock()

    def boxes(self, account: str | None = None) -> dict[tuple[str, str], Box]:
        """Return {(account, mailbox GUID): what is known} of one account or all."""
        question, values = (BOXES_OF, (account,)) if account else (BOXES, ())
        with self.mutex:
            rows = self.database.execute(question, values).fetchall()
        return {(row[0], row[1]): Box(*row[2:]) for row in rows}

    def numbers(self, guids: list[str]) -> dict[str, int]:
        """Return {GUID: number of the signatures that judged it} of those *guids* that were judged."""
        found: dict[str, int] = {}
        with self.mutex:
            for start in range(0, len(guids), VALUES):
                some = guids[start : start + VALUES]
                found.update(self.database.execute(NUMBERS.format(",".join("?" * len(some))), some))
        return found

    def note(self, guids: Iterable[str], number: int) -> None:
        """Remember that the signatures *number* found nothing in the messages *guids*."""
        now = int(time.time())
        with self.mutex, self.database:
            self.database.executemany("INSERT OR REPLACE INTO message VALUES (?, ?, ?)", [(guid, number, now) for guid in guids])

    def note_boxes(self, boxes: Iterable[tuple[str, str, Box]]) -> None:
        """Remember mailboxes, (account, GUID, what is known)."""
        rows = [(account, guid, box.validity, box.next_uid, box.gate, box.sweep) for account, guid, box in boxes]
        with self.mutex, self.database:
            self.database.executemany("INSERT OR REPLACE INTO box VALUES (?, ?, ?, ?, ?, ?)", rows)

    def forget_old(self, present: set[tuple[str, str]]) -> None:
        """Forget mailboxes that are not *present*, (account, GUID), and messages that no sweep has met for long."""
        gone = set(self.boxes()) - present
        with self.mutex, self.database:
            self.database.executemany("DELETE FROM box WHERE account = ? AND guid = ?", gone)
            self.database.execute("DELETE FROM message WHERE time < ?", (int(time.time()) - FORGET_SECONDS,))

    def close(self) -> None:
        """Close the file."""
        self.database.close()
