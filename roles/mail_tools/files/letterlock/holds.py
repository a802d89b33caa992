"""Legal holds: which mail nothing may expunge, what of it its users have expunged, and how it leaves the host."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

from letterlock.doveadm import in_mailbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from letterlock.doveadm import Doveadm

def hold_search(hold: dict) -> list[str]:
    """Return doveadm's search for what *hold* covers within its accounts; empty when it covers all of them."""
    terms: list[str] = []
    boxes: list[str] = []
    for mailbox in hold.get("mailboxes") or ():
        boxes += ["or"] * bool(boxes) + ["mailbox", mailbox]
    if boxes:
        terms += ["(", *boxes, ")"]
    for name, key in (("saved_since", "savedsince"), ("saved_before", "savedbefore")):
        if hold.get(name):
            terms += [key, hold[name]]
    people: list[str] = []
    for address in hold.get("addresses") or ():
        for header in ("from", "to", "cc", "bcc"):
            people += ["or"] * bool(people) + [header, address]
    if people:
        terms += ["(", *people, ")"]
    return terms


def hold_faults(hold: dict, accounts: list[str]) -> list[str]:
    """Return what is wrong with *hold*; *accounts* are those that exist."""
    label = f"mail_retention_holds: {hold['name']!r}"
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", hold["name"]):
        faults.append(f"{label}: a name has letters, digits and . _ - and begins with a letter or digit")
    if not hold["accounts"]:
        faults.append(f"{label}: accounts: empty; name whose mail is held")
    faults += [f"{label}: accounts: there is no account {account}" for account in hold["accounts"] if account not in accounts]
    for name in ("saved_since", "saved_before"):
        if hold.get(name):
            try:
                datetime.date.fromisoformat(hold[name])
            except ValueError:
                faults.append(f"{label}: {name}: {hold[name]!r} is not a day such as 2026-11-24")
    for name in ("mailboxes", "addresses"):
        faults += [f"{label}: {name}: {text!r} is empty or has control characters"
                   for text in hold.get(name) or () if not text or re.search(r"[\x00-\x1f\x7f]", text)]
    return faults


def changes(before: list[dict], after: list[dict]) -> list[dict]:
    """Return what the ledger says of the way from the holds *before* to those *after*."""
    old, new = ({hold["name"]: hold for hold in holds} for holds in (before, after))
    found = []
    for name in sorted(set(old) | set(new)):
        if old.get(name) == new.get(name):
            continue
        action = "lifted" if name not in new else "changed" if name in old else "set"
        hold = new.get(name) or old[name]
        found.append({"kind": "hold", "hold": name, "action": action, "accounts": hold["accounts"], "covers": hold_search(hold)})
    return found


def expunged_search(hold: dict) -> list[str]:
    """Return the search for what *hold* keeps of the mail that its users expunged.

    That mail doesn't say any more from which mailbox it came; a hold on named mailboxes keeps all of it.
    """
    return hold_search({**hold, "mailboxes": None}) or ["all"]


def held_messages(doveadm: Doveadm, hold: dict, account: str, held_mailbox: str) -> list[dict]:
    """Return mailbox, mailbox-guid, uid, guid, flags and dates of what *hold* covers in *account*."""
    fields = ["mailbox", "mailbox-guid", "uid", "guid", "flags", "date.received.unixtime", "date.saved.unixtime"]
    # Dovecot lists no mailbox that its owner may not see; asked for by its name alone it is there.
    present = doveadm.one("fetch", user=account, field=fields, query=hold_search(hold) or ["all"])
    expunged = doveadm.one("fetch", user=account, field=fields, query=["mailbox", held_mailbox, *expunged_search(hold)])
    return present + expunged


def read_message(account: str, row: dict) -> bytes:
    """Return the message's octets with CRLF, as doveadm gives them; raise OSError."""
    where = in_mailbox(row["mailbox"], row["mailbox-guid"])
    command = ["doveadm", "fetch", "-u", account, "text", *where, "uid", str(row["uid"])]
    done = subprocess.run(command, capture_output=True, check=False)
    begins, ends = b"text:\n", b"\n\f\n"
    if done.returncode or not done.stdout.startswith(begins):
        raise OSError(f"{account}, {row['mailbox']}, UID {row['uid']}: {done.stderr.decode(errors='replace').strip()}")
    return re.sub(rb"\r?\n", b"\r\n", done.stdout[len(begins):].removesuffix(ends).removesuffix(b"\f\n"))


# https://cr.yp.to/proto/maildir.html
MAILDIR_FLAGS = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}


def write_maildir(directory: Path, account: str, row: dict, message: bytes) -> str:
    """Write *message* into the account's Maildir below *directory*; return its path there."""
    cur = directory / account / "cur"
    for name in ("cur", "new", "tmp"):
        (directory / account / name).mkdir(parents=True, exist_ok=True)
    flags = "".join(sorted(MAILDIR_FLAGS[flag] for flag in row["flags"].split() if flag in MAILDIR_FLAGS))
    file = cur / f"{row['date.received.unixtime']}.{row['guid']}.{row['uid']}:2,{flags}"
    file.write_bytes(message)
    received = int(row["date.received.unixtime"])
    os.utime(file, (received, received))
    return str(file.relative_to(directory))


def write_mbox(directory: Path, account: str, row: dict, message: bytes) -> str:
    """Append *message* to the account's mbox (RFC 4155, lines that begin with From quoted); return its path."""
    file = directory / f"{account}.mbox"
    when = datetime.datetime.fromtimestamp(int(row["date.received.unixtime"]), datetime.UTC)
    quoted = re.sub(rb"(?m)^(>*From )", rb">\1", message.replace(b"\r\n", b"\n"))
    with file.open("ab") as stream:
        stream.write(f"From letterlock@localhost {when:%a %b %d %H:%M:%S %Y}\n".encode() + quoted.rstrip(b"\n") + b"\n\n")
    return file.name


WRITERS = {"maildir": write_maildir, "mbox": write_mbox}


def export(doveadm: Doveadm, hold: dict, held_mailbox: str, directory: Path, form: str) -> Iterator[str]:
    """Write all that *hold* covers below the new *directory*, with a manifest of SHA-256; yield what was done."""
    directory.mkdir(mode=0o700, parents=True)
    with (directory / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for account in hold["accounts"]:
            rows = held_messages(doveadm, hold, account, held_mailbox)
            for number, row in enumerate(rows, 1):
                message = read_message(account, row)
                path = WRITERS[form](directory, account, row, message)
                manifest.write(json.dumps({
                    "account": account, "mailbox": row["mailbox"], "uid": int(row["uid"]), "guid": row["guid"],
                    "received": int(row["date.received.unixtime"]), "saved": int(row["date.saved.unixtime"]), "flags": row["flags"],
                    "octets": len(message), "sha256": hashlib.sha256(message).hexdigest(), "file": path,
                }) + "\n")
                if number % 1000 == 0:
                    yield f"{account}: {number} of {len(rows)}"
            yield f"{account}: {len(rows)} messages"
