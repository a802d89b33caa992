"""What changed in an account since its last manifest: of a mailbox of 100,000 messages mostly a few.

Dovecot numbers each change of a message (MODSEQ, RFC 7162). What has no higher number than its mailbox had at the last
manifest is as it was, or gone; that nothing is gone, the number of messages proves.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from letterlock.doveadm import any_of, in_mailbox
from letterlock.durations import DAY

if TYPE_CHECKING:
    from collections.abc import Iterable

# An account with fewer messages is asked for all of them, with others: a command for it alone costs as much.
WORTH_A_COMMAND = 200
# Each account's manifest is made anew once in so many days, whatever MODSEQs say: it costs as much as a hundred that go on.
ANEW_DAYS = 28
# What only grows in a mailbox that goes on.
NUMBERS = ("uidnext", "highestmodseq")


def is_worth(account: str, boxes: list[dict], now: float) -> bool:
    """Tell whether to ask *account* for changes only."""
    anew = zlib.crc32(account.encode()) % ANEW_DAYS == int(now // DAY) % ANEW_DAYS
    return not anew and sum(int(box["messages"]) for box in boxes) >= WORTH_A_COMMAND


def continues(box: dict, was: dict | None) -> bool:
    """Tell whether the mailbox with the status *box* is the one that *was* in the last manifest, and its numbers went on."""
    return (
        was is not None and was.get("highestmodseq") is not None and int(box["uidvalidity"]) == was["uidvalidity"]
        and all(was[name] <= int(box[name]) for name in NUMBERS)
    )


def is_same(box: dict, was: dict) -> bool:
    """Tell whether nothing changed, and nothing was changing when the last manifest was made."""
    settled = all(message[-1] for message in was["messages"])
    return settled and len(was["messages"]) == int(box["messages"]) and all(was[name] == int(box[name]) for name in NUMBERS)


class Changes:
    """What still holds of an account's last manifest, and the search for the rest."""

    def __init__(self, last: dict, boxes: list[dict]) -> None:
        """Take the *last* manifest and the status of all mailboxes now."""
        self.boxes = boxes
        before = {box["guid"]: box for box in last["mailboxes"]}
        self.last = {box["guid"]: before[box["guid"]] for box in boxes if continues(box, before.get(box["guid"]))}
        # {mailbox GUID: {UID: message}}.
        self.standing = {
            guid: {message[0]: message for message in was["messages"] if message[-1]} for guid, was in self.last.items()
        }

    @property
    def query(self) -> list[str]:
        """The search for what does not stand, empty when all does."""
        terms = []
        for box in self.boxes:
            was = self.last.get(box["guid"])
            if was is None and int(box["messages"]):
                terms.append(in_mailbox(box["mailbox"], box["guid"]))
            elif was is not None and not is_same(box, was):
                terms.append([*in_mailbox(box["mailbox"], box["guid"]), "modseq", str(was["highestmodseq"] + 1)])
        return any_of(terms) if terms else []

    def is_whole(self, rows: Iterable[dict]) -> bool:
        """Tell whether what stands and *rows*, what the search found, are all messages that the mailboxes held."""
        uids = {box["guid"]: set(self.standing.get(box["guid"], ())) for box in self.boxes}
        next_uid = {box["guid"]: int(box["uidnext"]) for box in self.boxes}
        for row in rows:
            guid, uid = row["mailbox-guid"], int(row["uid"])
            if uid < next_uid.get(guid, 0):
                uids[guid].add(uid)
        return all(len(uids[box["guid"]]) == int(box["messages"]) for box in self.boxes)
