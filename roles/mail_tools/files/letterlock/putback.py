"""Put a message back into a mailbox with its flags and dates, as doveadm import can."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from letterlock.doveadm import Failed
from letterlock.holds import MAILDIR_FLAGS
from letterlock.restore import doveadm_run

if TYPE_CHECKING:
    from letterlock.quarantine import Item

RECENT = "\\Recent"
MOST_KEYWORDS = 26


def write_maildir(root: Path, directory: Path, item: Item, message: BinaryIO) -> None:
    """Write *message* as a Maildir of one at *directory*, below or at *root*; all belongs to whom the root's parent belongs to."""
    owner = root.parent.stat()
    keywords = [flag for flag in item.flags if not flag.startswith("\\")][:MOST_KEYWORDS]
    letters = "".join(MAILDIR_FLAGS.get(flag, "") for flag in item.flags)
    letters = "".join(sorted(letters)) + "".join(chr(ord("a") + number) for number in range(len(keywords)))
    for folder in {root, directory}:
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True)
    (directory / "dovecot-keywords").write_text("".join(f"{number} {keyword}\n" for number, keyword in enumerate(keywords)))
    received = item.received or item.time
    file = directory / "cur" / f"{received}.{item.identity}.released:2,{letters}"
    message.seek(0)
    with file.open("wb") as stream:
        shutil.copyfileobj(message, stream)
    os.utime(file, (received, received))
    for path in (root, *root.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def put_back(item: Item, message: BinaryIO, mail_root: Path) -> str:
    """Put *message* back to where *item* was, or into INBOX where that mailbox is gone; return the mailbox. Raises Failed."""
    account = item.account
    with tempfile.TemporaryDirectory(prefix=".letterlock-released-", dir=mail_root) as scratch:
        os.chown(scratch, mail_root.stat().st_uid, mail_root.stat().st_gid)
        root, source = Path(scratch) / "Maildir", f"maildir:{scratch}/Maildir"
        if item.mailbox.upper() == "INBOX":
            write_maildir(root, root, item, message)
            doveadm_run("import", "-s", "-u", account, source, "", "mailbox", "INBOX")
            return "INBOX"
        # Only a mailbox's own name decides where import puts its messages; moved from there they keep flags and dates.
        # A Maildir takes a dot for a step down.
        between = f"Released-{item.identity.replace('.', '-')}"
        write_maildir(root, root / f".{between}", item, message)
        doveadm_run("import", "-u", account, source, "", "mailbox", between)
        target = item.mailbox
        try:
            doveadm_run("move", "-u", account, target, "mailbox", between, "all")
        except Failed:
            target = "INBOX"
            doveadm_run("move", "-u", account, target, "mailbox", between, "all")
        doveadm_run("mailbox", "delete", "-u", account, between)
    return target
