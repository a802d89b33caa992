"""What an operator released from quarantine, and is not taken again for the same signature: by its fingerprint."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from letterlock.scan_settings import RELEASED

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "CREATE TABLE IF NOT EXISTS released (fingerprint TEXT, signature TEXT, PRIMARY KEY (fingerprint, signature))"


class Released:
    """A small table; each question opens it anew, as it is asked only of what clamd has found something in."""

    def __init__(self, file: Path = RELEASED) -> None:
        """Remember where it lies."""
        self.file = file

    def connection(self) -> sqlite3.Connection:
        """Return a connection."""
        self.file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        connection = sqlite3.connect(self.file, timeout=30)
        connection.execute(SCHEMA)
        self.file.chmod(0o600)
        return connection

    def add(self, fingerprint: str, signature: str) -> None:
        """Remember that the message *fingerprint* is not malware for *signature*."""
        with closing(self.connection()) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO released VALUES (?, ?)", (fingerprint, signature))

    def has(self, fingerprint: str, signature: str) -> bool:
        """Tell whether it was released for *signature*."""
        with closing(self.connection()) as connection:
            found = connection.execute("SELECT 1 FROM released WHERE fingerprint = ? AND signature = ?", (fingerprint, signature))
            return found.fetchone() is not None
