"""The sweep: all stored mail is judged again by the current signatures, newest first, each message once."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from letterlock import keystore, people
from letterlock.batches import chunks
from letterlock.doveadm import ACCOUNTS_AT_ONCE, Doveadm, Failed, any_of, in_mailbox, over, statuses, uid_set
from letterlock.gate import STATUS
from letterlock.judged import Box, Judged
from letterlock.rescan import MESSAGE_FIELDS, Judge, Message, messages_of
from letterlock.scan_settings import STATE
from letterlock.signatures import version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from letterlock.scan_settings import ScanSettings

MESSAGES_AT_ONCE = 400
LAST_UID = 2**32 - 1
WORKERS = max(1, len(os.sched_getaffinity(0)))


@dataclass
class Tally:
    """What a sweep came to."""

    mailboxes: int = 0
    unchanged: int = 0
    judged: int = 0
    taken: int = 0
    failures: int = 0
    sealed: int = 0
    # Accounts that have keys of their own.
    passed_over: int = 0


class Sweep:
    """One sweep over all accounts."""

    def __init__(self, settings: ScanSettings) -> None:
        """Take the settings."""
        self.settings = settings
        self.judged = Judged()
        self.doveadm = Doveadm()
        self.number = version().number
        self.tally = Tally()
        # {(account, GUID): what will be known when all its messages are judged}
        self.boxes: dict[tuple[str, str], Box] = {}
        self.names: dict[str, dict[str, str]] = {}
        self.left: dict[tuple[str, str], int] = {}

    def run(self) -> Tally:
        """Judge all that these signatures have not; raise Unavailable. What was judged by then is remembered."""
        users, theirs = self.doveadm.users(), set(keystore.accounts())
        accounts = [account for account in users if account not in theirs]
        self.tally.passed_over = len(users) - len(accounts)
        known = self.judged.boxes()
        news: dict[str, list[tuple[str, Box]]] = {}
        present = {key for key in known if key[0] in theirs}
        for some in chunks(accounts, ACCOUNTS_AT_ONCE):
            for account, boxes in statuses(self.doveadm, some, tuple(STATUS)).items():
                if isinstance(boxes, Failed):
                    self.failed(account, boxes)
                    present |= {key for key in known if key[0] == account}
                    continue
                for status in boxes:
                    key = account, status["guid"]
                    present.add(key)
                    self.note_status(key, status, known.get(key, Box()), news)
        with tempfile.TemporaryFile("w+", dir=STATE) as spool:
            count = self.plan(news, spool)
            if count:
                print(f"{count} messages to be judged by the signatures {self.number}", flush=True)
            self.judge_all(spool, count)
        self.finish_empty()
        self.judged.forget_old(present)
        return self.tally

    def note_status(self, key: tuple[str, str], status: dict, box: Box, news: dict[str, list[tuple[str, Box]]]) -> None:
        """Note what is known of a mailbox, and whether it has *news*."""
        self.tally.mailboxes += 1
        validity, next_uid = int(status["uidvalidity"]), int(status["uidnext"])
        if box.validity != validity:
            box = Box(validity=validity)
        if box.sweep == self.number and box.next_uid == next_uid:
            self.tally.unchanged += 1
            return
        account, guid = key
        self.names.setdefault(account, {})[guid] = status["mailbox"]
        self.boxes[key] = Box(validity, next_uid, self.number, self.number)
        self.left[key] = 0
        news.setdefault(account, []).append((guid, box))

    def plan(self, news: dict[str, list[tuple[str, Box]]], spool: TextIO) -> int:
        """Write to *spool* the messages to be judged, the newest first; return how many."""
        count = 0
        rows: list[tuple[int, int]] = []
        whole = [account for account, boxes in news.items() if all(box.sweep != self.number for _, box in boxes)]
        for some in [*chunks(whole, ACCOUNTS_AT_ONCE), *([account] for account in set(news) - set(whole))]:
            for messages in chunks(self.messages(some, news), MESSAGES_AT_ONCE):
                numbers = self.judged.numbers([message.guid for message in messages])
                for message in messages:
                    if numbers.get(message.guid, 0) >= self.number:
                        continue
                    rows.append((-message.saved, spool.tell()))
                    spool.write(json.dumps(message.__dict__) + "\n")
                    self.left[message.account, message.box] += 1
                    count += 1
        self.order = [offset for _, offset in sorted(rows)]
        return count

    def messages(self, accounts: list[str], news: dict[str, list[tuple[str, Box]]]) -> Iterator[Message]:
        """Yield the messages of *accounts* that may have to be judged. One account's fault is its own."""
        query = ["all"]
        if len(accounts) == 1:
            query = any_of([self.new_in(accounts[0], guid, box) for guid, box in news[accounts[0]]])
        try:
            for row in over(accounts, ["fetch"], " ".join(MESSAGE_FIELDS), *query):
                yield from messages_of(row["username"], self.names[row["username"]], [row])
        except (Failed, ValueError, KeyError):
            # A ValueError or KeyError: where a field can't be read, doveadm's columns shift. Some are yielded twice then, which
            # does no harm.
            for account in accounts:
                yield from self.messages([account], news) if len(accounts) > 1 else self.readable(account, news[account])

    def new_in(self, account: str, guid: str, box: Box) -> list[str]:
        """Return the search for what these signatures may not have judged in a mailbox."""
        return [*in_mailbox(self.names[account][guid], guid), "uid", f"{box.next_uid if box.sweep == self.number else 1}:{LAST_UID}"]

    def readable(self, account: str, boxes: list[tuple[str, Box]]) -> Iterator[Message]:
        """Yield the messages of an account of which some can't be read, and tell of those: what is there the indexes know."""
        for guid, box in boxes:
            try:
                rows = self.doveadm.one("fetch", user=account, field=["uid"], query=self.new_in(account, guid, box))
            except Failed as failed:
                self.failed(account, failed)
                self.left[account, guid] += 1
                continue
            parts = [[int(row["uid"]) for row in rows]]
            while parts:
                some = parts.pop()
                query = [*in_mailbox(self.names[account][guid], guid), "uid", uid_set(some)]
                try:
                    rows = self.doveadm.one("fetch", user=account, field=MESSAGE_FIELDS, query=query) if some else []
                    found = list(messages_of(account, self.names[account], rows))
                except (Failed, ValueError, KeyError) as fault:
                    half = len(some) // 2
                    if half:
                        parts += [some[half:], some[:half]]
                    else:
                        self.failed(f"{account}: {self.names[account][guid]}, UID {some[0]}", fault)
                        self.left[account, guid] += 1
                else:
                    yield from found

    def judge_all(self, spool: TextIO, count: int) -> None:
        """Judge what *spool* holds in its order; raise Unavailable."""
        spool.flush()
        judge = Judge(self.settings, "sweep", before_each=people.Patience().give_way)
        done, told = 0, time.monotonic()
        for offsets in chunks(self.order, MESSAGES_AT_ONCE):
            some = []
            for offset in offsets:
                spool.seek(offset)
                raw = json.loads(spool.readline())
                some.append(Message(**{**raw, "flags": tuple(raw["flags"])}))
            outcome = judge.judge(some, WORKERS, lambda: True)
            self.judged.note([message.guid for message in outcome.clean], self.number)
            self.tally.judged += len(outcome.clean)
            self.tally.taken += len(outcome.taken)
            self.tally.failures += len(outcome.failed)
            self.tally.sealed += len(outcome.sealed)
            unjudged = {message.key for message in [*outcome.failed, *outcome.sealed]}
            for message in some:
                # What is in no list was gone when it was read.
                self.left[message.account, message.box] -= message.key not in unjudged
            self.finish({(message.account, message.box) for message in some})
            done += len(some)
            if time.monotonic() - told > 10:  # seconds
                told = time.monotonic()
                print(f"{done} of {count} judged, {self.tally.taken} taken", flush=True)

    def finish(self, keys: set[tuple[str, str]]) -> None:
        """Remember those mailboxes of which no message is left to be judged."""
        self.judged.note_boxes([(*key, self.boxes.pop(key)) for key in keys if key in self.boxes and not self.left[key]])

    def finish_empty(self) -> None:
        """Remember those that had none."""
        self.finish(set(self.boxes))

    def failed(self, what: str, fault: Exception) -> None:
        """Count an account or a message that could not be looked at."""
        self.tally.failures += 1
        print(f"FAILED {what}: {fault}", file=sys.stderr, flush=True)
