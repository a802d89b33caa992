"""What POP3 sessions fetched: the records that `pop3_session` leaves, turned into recorded expunges.

A record lies in the spool from the end of its session until its messages are
gone, so that a crash at any moment leaves either the mail and the record, or
neither. The spool belongs to the mail user; it is read here with root's rights
and therefore never through a link.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from letterlock import policies as rules
from letterlock.doveadm import EX_NOUSER, Failed
from letterlock.durations import show_duration
from letterlock.expunge import Expunger
from letterlock.plan import parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from letterlock.retention import Run

RECORD_BYTES = 4 * 1024 * 1024
# %08Xu%08Xv and %{uid|hex(8)}%{uidvalidity|hex(8)}; else it is %g or %{guid}, which in Maildir is a file's name.
BY_UID = re.compile(r"[0-9A-Fa-f]{16}")
NEW, WAITING = "fetched", "waiting"


@dataclass(frozen=True)
class Record:
    """One session: whose, when it ended (seconds since the epoch), and the unique ids of what it fetched."""

    name: str
    account: str
    ended: float
    uidls: tuple[str, ...]


def open_directory(path: Path, inside: int | None = None) -> int:
    """Open *path*, or a name inside an open directory, without following a link; raise OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=inside)


def read_records(directory: int) -> Iterator[Record]:
    """Yield the records in the open *directory*; what is none is left alone."""
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except OSError:
            continue
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                continue
            try:
                raw = json.loads(stream.read(RECORD_BYTES))
                yield Record(name, str(raw["account"]), float(raw["ended"]), tuple(str(uidl) for uidl in raw["uidls"]))
            except (ValueError, KeyError, TypeError):
                continue


def uids_of(run: Run, account: str, uidls: set[str]) -> tuple[str, dict[int, str]]:
    """Return (INBOX's GUID, {UID: unique id}) for those *uidls* that still name a message there."""
    (status,) = run.doveadm.one("mailboxStatus", user=account, field=["guid", "uidvalidity"], mailboxMask=["INBOX"])
    by_uid = {uidl for uidl in uidls if BY_UID.fullmatch(uidl)}
    found = {int(uidl[:8], 16): uidl for uidl in by_uid if int(uidl[8:], 16) == int(status["uidvalidity"])}
    guids = uidls - by_uid
    if guids:
        for row in run.doveadm.one("fetch", user=account, field=["uid", "guid"], query=["mailbox", "INBOX"]):
            if row["guid"] in guids:
                found[int(row["uid"])] = row["guid"]
    return status["guid"], found


def expunge_fetched(run: Run) -> int:
    """Expunge what is due of what POP3 fetched; return how many records wait for their time, or for the next try."""
    with ExitStack() as stack:
        def opened(path: Path | str, inside: int | None = None) -> int:
            handle = open_directory(path, inside)
            stack.callback(os.close, handle)
            return handle

        spool = opened(run.settings.spool)
        new, waiting = opened(NEW, spool), opened(WAITING, spool)
        # What is not done with now must leave the directory that systemd watches, even what is no record.
        for name in os.listdir(new):  # noqa: PTH208  # of an open directory, which no link can replace
            os.rename(name, name, src_dir_fd=new, dst_dir_fd=waiting)
        records: dict[str, list[Record]] = {}
        for record in read_records(waiting):
            records.setdefault(record.account, []).append(record)
        left = 0
        for account, sessions in records.items():
            done = done_of(run, account, sessions)
            left += len(sessions) - len(done)
            for record in done:
                os.unlink(record.name, dir_fd=waiting)
        os.fsync(waiting)
        return left


def done_of(run: Run, account: str, sessions: list[Record]) -> list[Record]:
    """Expunge what is due of one account; return the records that are done with, all of them when the account is gone."""
    try:
        return expunge_of(run, account, sessions)
    except Failed as failed:
        if failed.code == EX_NOUSER:
            return sessions
        run.tally.failures.append(f"{account}: {failed}")
        return []


def expunge_of(run: Run, account: str, sessions: list[Record]) -> list[Record]:
    """Expunge what is due of one account's *sessions*; return those that are done with."""
    after, policy = rules.effective_after_fetch(run.settings.policies, account)
    if policy is None or after == rules.KEEP:
        return sessions
    due = [record for record in sessions if record.ended + after <= run.now]
    if any(not hold.get("search") for hold in run.holds_of(account)):
        return due
    uidls = {uidl for record in due for uidl in record.uidls}
    if not uidls:
        return due
    guid, uids = uids_of(run, account, uidls)
    spared = run.held_messages(account)
    why = "fetched by POP3" + (f" over {show_duration(after)} ago" if after else "")
    going = [[uid, policy.name, why, None] for uid in sorted(uids) if (guid, uid) not in spared]
    failures = len(run.tally.failures)
    if going:
        Expunger(run).carry_out_some(list(parts([{"account": account, "mailbox": "INBOX", "guid": guid, "going": going}])))
    return due if len(run.tally.failures) == failures else []


def forget(spool: Path, account: str) -> int:
    """Remove the records of *account*'s sessions; return how many there were."""
    count = 0
    for name in (NEW, WAITING):
        try:
            directory = open_directory(spool / name)
        except FileNotFoundError:
            continue
        try:
            for record in read_records(directory):
                if record.account == account:
                    os.unlink(record.name, dir_fd=directory)
                    count += 1
        finally:
            os.close(directory)
    return count
