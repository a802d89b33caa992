"""A run that may write the ledger: alone on the host, with the settings of retention."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from letterlock import locks, settings
from letterlock.ledger import Ledger
from letterlock.retention import Run

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def one_run(*, wait: float = locks.WAIT_SECONDS, writes: bool = True) -> Iterator[Run]:
    """Give a run with its ledger open, alone on the host; sign the ledger when it ends, whatever became of it."""
    now = time.time()
    wanted = settings.read()
    with locks.only_one(locks.RETENTION, wait):
        ledger = Ledger()
        ledger.open()
        try:
            if writes:
                ledger.rotate(now=now, segment_seconds=wanted.ledger_keep_seconds / 8)
            before = ledger.sequence
            try:
                yield Run(wanted, ledger, now)
            finally:
                if writes and ledger.sequence != before:
                    ledger.sign(now, now - wanted.ledger_keep_seconds)
        finally:
            ledger.close()
