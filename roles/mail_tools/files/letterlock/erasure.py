"""The right to erasure: all that the host keeps of an account, gone and recorded."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from letterlock import fetched, keystore
from letterlock.quarantine import Quarantine
from letterlock.tally import OLDEST

if TYPE_CHECKING:
    from pathlib import Path

    from letterlock.retention import Run


def refusals(run: Run, account: str, confirmed: str) -> list[str]:
    """Return why *account* may not be erased."""
    found = []
    if confirmed != account:
        found.append(f"{confirmed!r} is not the name of the account that would be erased, {account}")
    held = [hold["name"] for hold in run.holds_of(account)]
    if held:
        found.append(f"{account} is held by {', '.join(held)}; lift the hold first (mail_retention_holds)")
    if account in run.doveadm.users():
        found.append(f"{account} still gets mail; set state: absent in mail_accounts_users and deploy first")
    return found


def measure(home: Path) -> tuple[int, int]:
    """Return (files, octets) below *home*."""
    files = octets = 0
    for folder, _, names in os.walk(home):
        for name in names:
            files += 1
            octets += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118  # millions of files
    return files, octets


def erase(run: Run, account: str, home: Path) -> str:
    """Record and delete *home*, with mail, indexes and scripts, and what POP3 sessions left; return what was done."""
    files, octets = measure(home)
    run.ledger.append([{"kind": "erase", "run": run.identity, "account": account, "files": files, "octets": octets}], run.now)
    if home.is_dir() and not home.is_symlink():
        # Out of the way in one step, so that nothing half deleted is ever found as a mailbox.
        doomed = run.settings.mail_root / f".letterlock-erased-{run.identity}"
        home.rename(doomed)
        shutil.rmtree(doomed)
    keystore.remove(account)
    # The next run writes it anew, without this account.
    (run.settings.state_directory / OLDEST).unlink(missing_ok=True)
    records = fetched.forget(run.settings.spool, account)
    line = run.ledger.sequence
    quarantine = Quarantine([])
    items = [item for item in quarantine.items() if item.account == account]
    for item in items:
        quarantine.drop(item, "erased")
    quarantine.record(run)
    return (
        f"{account}: erased {files} files, {octets} octets, {records} records of POP3 sessions, {len(items)} messages in quarantine; "
        f"line {line} of the ledger"
    )
