"""What a run leaves for the next, as JSON."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from letterlock import locks
from letterlock.ledger import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read(file: Path) -> dict:
    """Return what *file* remembers; nothing, before the first run."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads(file.read_text())
    return {}


@contextlib.contextmanager
def changed(file: Path) -> Iterator[dict]:
    """Yield what *file* remembers, and remember what became of it. Whoever else wants to change it waits: neither's news is lost."""
    with locks.only_one(file.with_suffix(".lock")):
        known = read(file)
        yield known
        write_durably(file, json.dumps(known).encode())
