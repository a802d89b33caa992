"""Manifests: what a backup holds of each account, message by message, as Dovecot itself says it.

A message whose MODSEQ is above what its mailbox's was when the indexes were copied
changed after that; it is marked as unsettled, and of it a restore may hold the
flags of either moment, another saved date, or nothing if it was expunged. All others
must come back as they are here.
"""

from __future__ import annotations

import io
import json
from itertools import groupby
from typing import TYPE_CHECKING

from letterlock import doveadm, parts
from letterlock.accounts import place_of
from letterlock.batches import WORKERS, bounded_map, chunks
from letterlock.doveadm import Doveadm, Failed, over

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

STATUS = ("messages", "guid", "uidvalidity", "uidnext", "highestmodseq")
# What a manifest says of a message, in this order.
MESSAGE = ("uid", "guid", "size", "flags", "saved", "received", "hash", "settled")
SIZE, FLAGS, HASH = map(MESSAGE.index, ("size", "flags", "hash"))
TRIES = 8
UNSETTLED = ("flags", "saved")
# What two manifests are not compared in: the text is read to be compared.
APART = ("settled", "hash")
MISSING = "missing"
FIELDS = ("mailbox-guid", "uid", "guid", "modseq", "flags", "size.virtual", "date.saved.unixtime", "date.received.unixtime")


def statuses(accounts: list[str], held: dict[str, str]) -> dict[str, list[dict] | Failed]:
    """Return the status of each account's mailboxes, or why there is none; *held* are {account: mailbox hidden from it}."""
    speaker = Doveadm()
    found = doveadm.statuses(speaker, accounts, STATUS)
    for account in set(held) & set(accounts):
        # A mailbox that an ACL hides is found only by its name, and asking for the status of one that is not there is an error.
        (there,) = speaker.batch([("fetch", {"user": account, "field": ["uid"], "query": ["mailbox", held[account], "1"]})])
        if isinstance(there, Failed) or not there:
            continue
        (hidden,) = speaker.batch([doveadm.status(account, held[account], STATUS)])
        if not isinstance(hidden, Failed) and not isinstance(found[account], Failed):
            found[account] = [*found[account], *hidden]
    return found


def patiently(account: str) -> list[dict] | Failed:
    """Return the messages of one account, or why they can't be had.

    A message that is expunged while doveadm reads it fails the whole answer. What it read before is cached by then, so that
    the next try is faster than whoever expunges.
    """
    for _ in range(TRIES):
        try:
            return list(over([account], ["fetch"], " ".join(FIELDS), "all"))
        except Failed as failed:
            fault = failed
    return fault


def of_group(accounts: list[str]) -> dict[str, list[dict] | Failed]:
    """Return {account: its messages, or why they can't be had}, without those of hidden mailboxes."""
    try:
        rows = over(accounts, ["fetch"], " ".join(FIELDS), "all")
        return {account: list(of_one) for account, of_one in groupby(rows, key=lambda row: row["username"])}
    except Failed:
        return {account: patiently(account) for account in accounts}


def of_searches(searches: list[tuple[str, list[str]]]) -> dict[str, list[dict] | Failed]:
    """Return {account: the messages that its search finds, or why they can't be had}."""
    speaker = Doveadm()
    found: dict[str, list[dict] | Failed] = {}
    for some in chunks(searches, doveadm.COMMANDS_AT_ONCE):
        answers = speaker.batch([("fetch", {"user": account, "field": list(FIELDS), "query": query}) for account, query in some])
        found |= {account: answer for (account, _), answer in zip(some, answers, strict=True)}
    return found


def shares(items: list) -> Iterator[list]:
    """Yield *items* in as many lists as work is done at once."""
    yield from (items[first::WORKERS] for first in range(min(WORKERS, len(items))))


def messages(
    accounts: list[str], held: dict[str, str], searches: dict[str, list[str]] | None = None,
) -> Iterator[tuple[str, list[dict] | Failed]]:
    """Yield (account, its messages, or why they can't be had): those that its search finds where *searches* has one."""
    searches = searches or {}
    found: dict[str, list[dict] | Failed] = {account: [] for account in searches}
    for group in bounded_map(of_group, shares([account for account in accounts if account not in searches])):
        found |= group
    for group in bounded_map(of_searches, shares([(account, query) for account, query in searches.items() if query])):
        found |= group
    for account in accounts:
        rows = found.get(account, [])
        if account in held and account not in searches and not isinstance(rows, Failed):
            (hidden,) = Doveadm().batch([("fetch", {"user": account, "field": list(FIELDS), "query": ["mailbox", held[account]]})])
            rows = rows if isinstance(hidden, Failed) else rows + hidden
        yield account, rows


def flags_of(row: dict) -> list[str]:
    """Return a message's flags and keywords, but not the one that belongs to a session."""
    return sorted(flag for flag in row["flags"].split() if flag != "\\Recent")


def of_account(
    account: str, boxes: list[dict], rows: Iterable[dict], hashes: dict[str, dict[int, str]] | None = None,
    standing: dict[str, dict[int, list]] | None = None,
) -> dict:
    """Return the manifest of one account: *boxes* are the statuses from before its indexes were copied, *rows* come from after.

    *hashes* are {mailbox GUID: {UID: hash of the text}}, and *standing* {mailbox GUID: {UID: message}} what still holds of
    an earlier manifest where no row says otherwise.
    """
    found: dict[str, dict[int, list]] = {box["guid"]: (standing or {}).get(box["guid"], {}) for box in boxes}
    modseq = {box["guid"]: int(box["highestmodseq"]) for box in boxes}
    for row in rows:
        guid = row["mailbox-guid"]
        # A mailbox that was made after the statuses is not in this backup.
        if guid in found:
            uid = int(row["uid"])
            found[guid][uid] = [
                uid, row["guid"], int(row["size.virtual"]), flags_of(row), int(row["date.saved.unixtime"]),
                int(row["date.received.unixtime"]), "", int(row["modseq"]) <= modseq[guid],
            ]
    for guid, of_box in (hashes or {}).items():
        for uid, message in found.get(guid, {}).items():
            message[HASH] = of_box.get(uid, "")
    return {
        "account": account,
        "mailboxes": [
            # What changes most often comes last, with what is new.
            {"messages": [message for _, message in sorted(found[box["guid"]].items())], "name": box["mailbox"], "guid": box["guid"],
             "uidvalidity": int(box["uidvalidity"]), "uidnext": int(box["uidnext"]), "highestmodseq": modseq[box["guid"]]}
            for box in boxes
        ],
    }


def path_of(stage: Path, account: str) -> Path:
    """Return where the manifest of *account* lies in *stage*."""
    return stage / "manifests" / f"{place_of(account)}.json"


def read(stage: Path, account: str) -> dict | None:
    """Return the manifest of *account* that is in *stage*, if there is one that is whole."""
    try:
        return json.loads(b"".join(part.read_bytes() for part in parts.of(path_of(stage, account))))
    except (FileNotFoundError, ValueError):
        return None


def hashes_in(manifest: dict | None) -> dict[str, dict[int, str]]:
    """Return {mailbox GUID: {UID: hash}} of what has a hash in a *manifest*, if there is one."""
    boxes = manifest["mailboxes"] if manifest else []
    return {box["guid"]: {message[0]: message[HASH] for message in box["messages"] if message[HASH]} for box in boxes}


def write(stage: Path, manifest: dict) -> None:
    """Write a manifest; what says the same stays as it is, which costs a backup nothing.

    It need not survive a power cut: what matters is the copy in the repository, and what is broken here is made anew.
    """
    file = path_of(stage, manifest["account"])
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = io.BytesIO(json.dumps(manifest).encode())
    for part in parts.write(file, len(text.getbuffer()), lambda: text.read(parts.BYTES)):
        part.chmod(0o600)


def settled_flags(before: dict, now: dict) -> Iterator[tuple[str, str, int, list[str], list[str]]]:
    """Yield (mailbox, its GUID, UID, flags before, flags now) of the settled messages of *before* that are there *now*."""
    found = {(box["guid"], message[0]): message[FLAGS] for box in now["mailboxes"] for message in box["messages"]}
    for box in before["mailboxes"]:
        for message in box["messages"]:
            uid, *_, settled = message
            if settled and (box["guid"], uid) in found:
                yield box["name"], box["guid"], uid, message[FLAGS], found[box["guid"], uid]


def differences(before: dict, now: dict) -> Iterator[str]:
    """Yield how an account *now* differs from its manifest of *before*, in words."""
    boxes = {box["name"]: box for box in now["mailboxes"]}
    for box in before["mailboxes"]:
        there = boxes.get(box["name"])
        if there is None:
            yield f"{MISSING}: the mailbox {box['name']} with {len(box['messages'])} messages"
            continue
        for what in ("guid", "uidvalidity"):
            if there[what] != box[what]:
                yield f"{box['name']}: {what} was {box[what]} and is {there[what]}"
        if there["uidnext"] < box["uidnext"]:
            yield f"{box['name']}: uidnext was {box['uidnext']} and is {there['uidnext']}"
        yield from message_differences(box, there)


def message_differences(before: dict, now: dict) -> Iterator[str]:
    """Yield how the messages of one mailbox differ; what was unsettled may be gone, or have other flags."""
    found = {message[0]: message for message in now["messages"]}
    for message in before["messages"]:
        uid, *_, settled = message
        if uid not in found:
            if settled:
                yield f"{MISSING}: {before['name']}, UID {uid}"
            continue
        for what, was, now_is in zip(MESSAGE, message, found[uid], strict=True):
            if was != now_is and what not in APART and (settled or what not in UNSETTLED):
                yield f"{before['name']}, UID {uid}: {what} was {was} and is {now_is}"
