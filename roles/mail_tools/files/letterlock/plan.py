"""The first pass of a run: what would go. It asks for dates, sizes and flags, which need no user's key, and changes nothing.

Accounts are asked in groups, each in two iterations of one doveadm process: the
status of all mailboxes, then what in them a policy could let go. A group that
fails is asked again account by account, so that one account's fault is its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from letterlock import policies as rules
from letterlock.batches import WORKERS, bounded_map, chunks, write_lines
from letterlock.doveadm import (
    ACCOUNTS_AT_ONCE,
    COMMANDS_AT_ONCE,
    WORTH_A_PROCESS,
    Failed,
    any_of,
    in_mailbox,
    over,
    statuses,
    uid_set,
)
from letterlock.durations import DAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TextIO

    from letterlock.marks import Memory
    from letterlock.retention import Run

# A search that names more mailboxes than this is slower than one that looks into all of them.
NAMES_AT_ONCE = 8
UIDS_AT_ONCE = 500
# Messages by which a mailbox is known again.
SAMPLES = 3
# How far ahead a mailbox is looked at: until the first of what is found is due, there is nothing to look for. Where nothing
# changed since the last run it is worth more.
SOON_SECONDS, AHEAD_SECONDS = DAY, 7 * DAY
STATUS = ("messages", "guid", "firstsaved", "uidnext", "highestmodseq")
DATES = ("mailbox-guid", "seq", "uid", "flags", "date.saved.unixtime")
# What the ledger says of a message. Only the header needs a user's key where mail is sealed.
ABOUT = ("guid", "size.physical", "date.received.unixtime", "hdr.message-id")


@dataclass(frozen=True)
class Mailbox:
    """One mailbox as its status shows it, and the policies that limit it."""

    account: str
    name: str
    guid: str
    messages: int
    first_saved: int | None
    next_uid: int
    modseq: int
    policies: tuple[rules.Policy, ...]

    @property
    def key(self) -> str:
        """What it is remembered by: a GUID alone stands in two accounts when one was copied on the disk."""
        return f"{self.account}:{self.guid}"

    @property
    def whole(self) -> bool:
        """Whether the policies can only be decided on all of its messages."""
        return any(policy.keep_newest is not None or policy.max_size is not None for policy in self.policies)

    @property
    def plain(self) -> bool:
        """Whether each message goes at a time of its own, which no flag, no other message and no header changes."""
        return not self.whole and all(policy.since == "saved" and not policy.spare for policy in self.policies)

    def seen_to(self, now: float) -> float:
        """Return the saved date before which a search for what the policies could let go at *now* finds all messages."""
        cuts = [now - policy.keep_for for policy in self.policies if policy.since == "saved" and policy.keep_for is not None]
        return math.inf if self.whole else max(cuts, default=0)

    def condition(self, now: float, marks: list[tuple[int, int]], restored: Iterable[int] = ()) -> list[str]:
        """Return the search for what the policies could let go here.

        *marks* are (time, next UID) of earlier runs, *restored* the UIDs of what a restore added.
        """
        if self.whole:
            return ["all"]
        terms = []
        for policy in self.policies:
            key = {"saved": "savedbefore", "received": "before"}[policy.since]
            terms.append([key, str(int(now - policy.keep_for) + 1)])
        known = self.known(now, marks)
        uids = [f"1:{known - 1}"] * (known > 1) + [uid_set(list(restored))] * bool(restored)
        return any_of([*terms, *(["uid", each] for each in uids)])

    def known(self, now: float, marks: list[tuple[int, int]]) -> int:
        """Return the UID below which all is old enough to go by its saved date, as *marks* tell."""
        cuts = [now - policy.keep_for for policy in self.policies if policy.since == "saved" and policy.keep_for is not None]
        return max((next_uid for at, next_uid in marks if cuts and at < max(cuts)), default=1)


def query_for(
    mailboxes: list[Mailbox], now: float, marks: dict[str, list[tuple[int, int]]], restored: dict[str, dict[int, int]],
) -> list[str]:
    """Return one search for all that the policies of one account's *mailboxes* could let go."""
    return any_of([
        ["mailbox", mailbox.name, *mailbox.condition(now, marks.get(mailbox.guid, []), restored.get(mailbox.key, {}))]
        for mailbox in mailboxes
    ])


def group_query(mailboxes: Iterable[Mailbox], now: float) -> list[str]:
    """Return one search for what the policies of many accounts' *mailboxes* could let go, and the first message of each.

    It may find more than that; what is found is decided by each mailbox's GUID.
    """
    names: dict[tuple[str, ...], set[str]] = {}
    for mailbox in mailboxes:
        names.setdefault(tuple(mailbox.condition(now, [])), set()).add(mailbox.name)
    terms = []
    for condition, where in sorted(names.items()):
        inside = any_of([["mailbox", name] for name in sorted(where)]) if len(where) <= NAMES_AT_ONCE else []
        terms.append([*inside, *any_of([list(condition), ["1"]])])
    return any_of(terms)


def may_lack(rows: list[tuple[int, int]], messages: int, known: int) -> bool:
    """Tell whether *rows*, (sequence number, UID) of what a search found, may lack a message with a UID below *known*.

    >>> may_lack([(1, 5), (2, 9)], messages=2, known=20), may_lack([(1, 5), (2, 9)], messages=3, known=20)
    (False, True)
    >>> may_lack([(1, 5), (2, 19)], messages=3, known=20), may_lack([], messages=3, known=1)
    (False, False)
    """
    newest = found = 0
    for sequence, uid in sorted(rows):
        if sequence != found + 1:
            break
        newest, found = uid, sequence
    return found < messages and newest < known - 1


def saved_at_the_latest(message: rules.Message, marks: list[tuple[int, int]], restored: dict[int, int]) -> rules.Message:
    """Return *message*, saved no later than the first run that had seen its UID given out, or than a restore knew it.

    Dovecot keeps saved dates in its cache. When that is lost, a file's ctime stands in, and a restored disk would
    seem to hold new mail only.
    """
    if not marks and not restored:
        return message
    seen = min((at for at, next_uid in marks if message.uid < next_uid), default=message.saved)
    return replace(message, saved=min(message.saved, seen, restored.get(message.uid, seen)))


def message_of(row: dict) -> rules.Message:
    """Return the message in an answer of doveadm; raise Failed when the answer is not one."""
    try:
        return rules.Message(
            uid=int(row["uid"]), saved=int(row["date.saved.unixtime"]), received=int(row.get("date.received.unixtime", 0)),
            size=int(row.get("size.physical", 0)), flags=frozenset(row["flags"].split()),
        )
    except (KeyError, ValueError) as error:
        raise Failed(f"doveadm's answer can't be read: {row}") from error


def fields_for(mailboxes: Iterable[Mailbox]) -> list[str]:
    """Return what must be known of a message to decide."""
    policies = [policy for mailbox in mailboxes for policy in mailbox.policies]
    received = ["date.received.unixtime"] * any(policy.since == "received" for policy in policies)
    size = ["size.physical"] * any(policy.max_size is not None for policy in policies)
    return [*DATES, *received, *size]


def parts(lines: Iterable[dict]) -> Iterator[dict]:
    """Yield *lines* so that none names more messages than one command takes."""
    for line in lines:
        for going in chunks(line["going"], UIDS_AT_ONCE):
            yield {**line, "going": going}


def undivided(lines: Iterable[dict]) -> Iterator[dict]:
    """Yield *lines* as they were before `parts`, with UIDs by policy only."""
    for _, of_one in groupby(lines, key=lambda line: (line["account"], line["guid"])):
        going: dict[str, list[int]] = {}
        for line in of_one:
            for policy, uids in by_policy(line["going"]).items():
                going.setdefault(policy, []).extend(uids)
        yield {**line, "going": going}


def by_policy(going: list) -> dict[str, list[int]]:
    """Return {policy: UIDs} of a line of the plan."""
    found: dict[str, list[int]] = {}
    for uid, policy, *_ in going:
        found.setdefault(policy, []).append(uid)
    return found


def by_mailbox(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """Return *rows* by mailbox GUID."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["mailbox-guid"], []).append(row)
    return found


class Owners:
    """Which mailbox GUIDs stand in more than one account, as those of an account that was copied on the disk do."""

    def __init__(self) -> None:
        """Know of none."""
        self.owner: dict[str, str] = {}
        self.shared: set[str] = set()

    def see(self, guid: str, account: str) -> None:
        """Take note of a mailbox of *account*."""
        if self.owner.setdefault(guid, account) != account:
            self.shared.add(guid)

    def share(self, guid: str) -> bool:
        """Tell whether accounts share *guid*, as far as was seen."""
        return guid in self.shared


@dataclass(frozen=True)
class Look:
    """What is asked of accounts that the same policies cover: *until* a time that may lie *ahead* of now, in seconds."""

    wanted: dict[str, list[Mailbox]]
    memory: Memory
    now: float
    ahead: int
    # What is to be noted if all goes well: (function, arguments).
    notes: list[tuple[Callable, tuple]] = field(default_factory=list)

    @property
    def mailboxes(self) -> list[Mailbox]:
        """All that is looked into."""
        return [mailbox for mailboxes in self.wanted.values() for mailbox in mailboxes]

    @property
    def whole(self) -> bool:
        """Whether all messages are asked for."""
        return any(mailbox.whole for mailbox in self.mailboxes)

    @property
    def until(self) -> float:
        """The time at which what is asked for would go."""
        return self.now + self.ahead


class Planner:
    """Finds what would go."""

    def __init__(self, run: Run, *, thorough: bool = False) -> None:
        """Take the run. If it is *thorough*, it finds what holds keep, too, and relies on no earlier look."""
        self.run, self.thorough = run, thorough
        raw = run.settings.raw
        self.digest = hashlib.sha256(json.dumps([raw["policies"], raw["folders"], raw["holds"]]).encode()).hexdigest()[:16]
        # A group's headers could be read so far.
        self.headers = True

    def plan(self, spool: TextIO, accounts: list[str]) -> None:
        """Write what would go of *accounts* to *spool*: a line a mailbox, or more where much goes."""
        size = max(1, min(ACCOUNTS_AT_ONCE, math.ceil(len(accounts) / WORKERS)))
        for part in bounded_map(self.plan_group, chunks(accounts, size)):
            with part:
                part.seek(0)
                shutil.copyfileobj(part, spool)
        spool.flush()

    def plan_group(self, accounts: list[str]) -> TextIO:
        """Return a temporary file with what would go of *accounts*."""
        part = tempfile.TemporaryFile("w+", dir=self.run.settings.state_directory)  # noqa: SIM115  # the caller closes it
        covered = list(self.covered(accounts))
        memory = self.run.marks.of([mailbox.key for _, _, mailboxes in covered for mailbox in mailboxes])
        kinds: dict[tuple, dict[str, list[Mailbox]]] = {}
        for account, policies, mailboxes in covered:
            due = [mailbox for mailbox in mailboxes if not self.is_quiet(mailbox, memory)]
            with self.run.mutex:
                for mailbox in mailboxes:
                    if mailbox not in due and mailbox.first_saved is not None:
                        names = [policy.name for policy in mailbox.policies]
                        self.run.tally.note_oldest(names, mailbox.first_saved, (account, mailbox.name))
            if due:
                # What a restore added is found by its UIDs, which are each account's own.
                alone = account if any(mailbox.key in memory.saved for mailbox in due) else ""
                unchanged = all(memory.state(mailbox.key) == self.state(mailbox) for mailbox in due)
                ahead = 0 if self.thorough else AHEAD_SECONDS if unchanged else SOON_SECONDS
                kinds.setdefault((ahead, alone, *(policy.name for policy in policies)), {})[account] = due
        for (ahead, *_), wanted in kinds.items():
            self.plan_kind(part, Look(wanted, memory, self.run.now, ahead))
        return part

    def covered(self, accounts: list[str]) -> Iterator[tuple[str, list[rules.Policy], list[Mailbox]]]:
        """Yield (account, the policies that cover it, those of its mailboxes that hold mail which they limit)."""
        run = self.run
        for account, rows in statuses(run.doveadm, accounts, STATUS).items():
            if isinstance(rows, Failed):
                run.failed(account, rows)
                continue
            policies = [policy for policy in run.settings.policies if policy.limits and policy.covers_account(account)]
            held = any(not hold.get("search") for hold in run.holds_of(account))
            with run.mutex:
                run.tally.messages_on_host += sum(int(row["messages"]) for row in rows)
                run.tally.held += held
                for row in rows:
                    run.owners.see(row["guid"], account)
            mailboxes = [] if held and not self.thorough else self.mailboxes_of(account, policies, rows)
            if mailboxes:
                yield account, policies, mailboxes

    def mailboxes_of(self, account: str, policies: list[rules.Policy], rows: list[dict]) -> list[Mailbox]:
        """Return the mailboxes of *account* that hold mail and that a policy limits, given the status of all."""
        found = []
        for row in rows:
            messages = int(row["messages"])
            effective = tuple(rules.strictest(policies, row["mailbox"]))
            with self.run.mutex:
                for policy in effective:
                    self.run.tally.examined[policy.name] += messages
            if effective and messages:
                found.append(Mailbox(
                    account=account, name=row["mailbox"], guid=row["guid"], messages=messages, policies=effective,
                    next_uid=int(row["uidnext"]), modseq=int(row["highestmodseq"]),
                    first_saved=int(row["firstsaved"]) if row["firstsaved"].isdigit() else None,
                ))
        return found

    # ---- mailboxes in which nothing can be due

    def state(self, mailbox: Mailbox) -> str:
        """Return what is another text as soon as something changed that could make mail in *mailbox* go earlier.

        That is new mail and the policies and holds; where flags or the number of messages count, they too.
        """
        changing = "" if mailbox.plain else f"{mailbox.messages}:{mailbox.modseq}"
        return f"{mailbox.next_uid}:{changing}:{self.digest}"

    def is_quiet(self, mailbox: Mailbox, memory: Memory) -> bool:
        """Tell whether *mailbox* is as an earlier run left it, and none of its mail is due yet."""
        return not self.thorough and memory.state(mailbox.key) == self.state(mailbox) and memory.is_quiet(mailbox.key, self.run.now)

    def quiet_until(self, mailbox: Mailbox, staying: list[rules.Message], ahead: int) -> float:
        """Return when the first of *staying* is due, all that a search found that looked *ahead* seconds."""
        dues = [
            getattr(message, policy.since) + policy.keep_for
            for policy in mailbox.policies if policy.keep_for is not None for message in staying if not rules.is_spared(policy, message)
        ]
        return min([*dues, self.run.now + (AHEAD_SECONDS if mailbox.whole else ahead)])

    # ---- what in them would go

    def plan_kind(self, part: TextIO, look: Look) -> None:
        """Write to *part* what would go of accounts that the same policies cover."""
        named = {mailbox.name for mailbox in look.mailboxes if mailbox.whole}
        if len(look.wanted) < WORTH_A_PROCESS or len(named) > NAMES_AT_ONCE:
            self.plan_one_by_one(part, look, list(look.wanted))
            return
        begun = part.tell()
        fields = fields_for(look.mailboxes)
        # What the ledger says is asked for at once, but not of whole mailboxes: most of them stays.
        for about in [ABOUT] * (self.headers and not look.whole) + [()]:
            try:
                asked = " ".join(dict.fromkeys([*fields, *about]))
                silent = self.plan_rows(part, look, over(list(look.wanted), ["fetch"], asked, *group_query(look.mailboxes, look.until)))
            except Failed as failed:
                part.seek(begun)
                part.truncate()
                look.notes.clear()
                self.run.note(f"asked again, because of a fault: {failed}")
            else:
                self.write_notes(look)
                self.headers = self.headers and (bool(about) or look.whole)
                self.plan_one_by_one(part, look, silent)
                return
        self.plan_one_by_one(part, look, list(look.wanted))

    def plan_rows(self, part: TextIO, look: Look, rows: Iterator[dict]) -> list[str]:
        """Write to *part* what would go, given the *rows* of an iteration account by account; return accounts that had none."""
        silent = dict.fromkeys(look.wanted)
        for account, of_one in groupby(rows, key=lambda row: row["username"]):
            # Where a field can't be read, doveadm's columns shift; its exit code tells, but only at the end.
            if account not in silent:
                raise Failed(f"doveadm's answer can't be read: it names {account!r}")
            del silent[account]
            write_lines(part, self.plan_account(look, account, of_one))
        return list(silent)

    def plan_one_by_one(self, part: TextIO, look: Look, accounts: list[str]) -> None:
        """Write to *part* what would go of *accounts*, each with a command of its own."""
        for some in chunks(accounts, COMMANDS_AT_ONCE):
            answers = self.run.doveadm.batch([self.question(look, account, {}) for account in some])
            for account, rows in zip(some, answers, strict=True):
                try:
                    if isinstance(rows, Failed):
                        raise rows
                    write_lines(part, list(self.plan_account(look, account, rows)))
                except Failed as failed:
                    look.notes.clear()
                    self.run.failed(account, failed)
                else:
                    self.write_notes(look)

    def write_notes(self, look: Look) -> None:
        """Note what was learnt of accounts that were looked at without a fault."""
        with self.run.mutex:
            for function, arguments in look.notes:
                function(*arguments)
        look.notes.clear()

    def question(self, look: Look, account: str, marks: dict[str, list[tuple[int, int]]]) -> tuple[str, dict]:
        """Return the command that asks one account what could go."""
        mailboxes = look.wanted[account]
        return "fetch", {"user": account, "field": fields_for(mailboxes), "query": query_for(
            mailboxes, look.until, marks, look.memory.saved,
        )}

    def plan_account(self, look: Look, account: str, rows: Iterable[dict]) -> Iterator[dict]:
        """Yield what would go of one account, given doveadm's *rows* of what could."""
        mailboxes = look.wanted[account]
        marks = {mailbox.guid: self.marks_of(look, mailbox) for mailbox in mailboxes}
        found = by_mailbox(rows)
        if any(self.may_lack(mailbox, found, marks) for mailbox in mailboxes):
            name, parameters = self.question(look, account, marks)
            found = by_mailbox(self.run.doveadm.one(name, **parameters))
        spared = set() if self.thorough else self.run.held_messages(account)
        for mailbox in mailboxes:
            about = {int(row["uid"]): row for row in found.get(mailbox.guid, [])}
            restored = look.memory.saved.get(mailbox.key, {})
            messages = [saved_at_the_latest(message_of(row), marks[mailbox.guid], restored) for row in about.values()]
            decided = rules.decide(list(mailbox.policies), messages, self.run.now)
            going = {uid: why for uid, why in decided.items() if (mailbox.guid, uid) not in spared}
            staying = [message for message in messages if message.uid not in going]
            dates = [message.saved for message in staying] + [mailbox.first_saved] * (not going and mailbox.first_saved is not None)
            if dates:
                names = [policy.name for policy in mailbox.policies]
                look.notes.append((self.run.tally.note_oldest, (names, min(dates), (account, mailbox.name))))
            guids = {message.uid: about[message.uid].get("guid") for message in staying}
            known = self.remember_samples(look, mailbox, guids, going=bool(going))
            until = self.run.now if going and not mailbox.plain else self.quiet_until(mailbox, staying, look.ahead)
            look.notes.append((self.run.marks.note_quiet, (mailbox.key, self.state(mailbox), int(self.run.now), int(until))))
            if going:
                yield from parts([{
                    "account": account, "mailbox": mailbox.name, "guid": mailbox.guid, "key": mailbox.key, "messages": mailbox.messages,
                    "policies": [policy.name for policy in mailbox.policies], "sampled": known, "seen_to": mailbox.seen_to(look.until),
                    "going": [[uid, *why, self.run.about(about[uid])] for uid, why in going.items()],
                }])

    # ---- what earlier runs knew

    def may_lack(self, mailbox: Mailbox, found: dict[str, list[dict]], marks: dict[str, list[tuple[int, int]]]) -> bool:
        """Tell whether what was *found* may lack mail that *marks* know to be old: Dovecot's cache may be lost."""
        rows = [(int(row["seq"]), int(row["uid"])) for row in found.get(mailbox.guid, [])]
        return not mailbox.whole and may_lack(rows, mailbox.messages, mailbox.known(self.run.now, marks[mailbox.guid]))

    def marks_of(self, look: Look, mailbox: Mailbox) -> list[tuple[int, int]]:
        """Return the marks of *mailbox*.

        A mailbox that has a new GUID under an old name is the same one with a rebuilt index when its messages are the
        same under the same UIDs; one that its user made anew is not.
        """
        known = look.memory.marks.get(mailbox.key, [])
        if known:
            return known
        for old, samples in self.run.marks.earlier(mailbox.account, mailbox.name):
            now = self.guids(mailbox, samples) if samples else {}
            if now and all(samples[uid] == now[uid] for uid in samples.keys() & now.keys()):
                return self.run.marks.adopt(old, mailbox.key)
        return []

    def guids(self, mailbox: Mailbox, uids: Iterable[int]) -> dict[int, str]:
        """Return {UID: message GUID} of those *uids* that are in *mailbox*."""
        where = [*in_mailbox(mailbox.name, mailbox.guid), "uid", uid_set(list(uids))]
        rows = self.run.doveadm.one("fetch", user=mailbox.account, field=["uid", "guid"], query=where)
        return {int(row["uid"]): row["guid"] for row in rows}

    def remember_samples(self, look: Look, mailbox: Mailbox, staying: dict[int, str | None], *, going: bool) -> bool:
        """Note how far *mailbox* has come, and by which messages it will be known again; return whether any of those is known.

        Where something is *going* and none that stays was looked at, the second pass meets one.
        """
        memory = look.memory
        advanced = mailbox.next_uid > max((next_uid for _, next_uid in memory.marks.get(mailbox.key, [])), default=0)
        before = memory.samples.get(mailbox.key, {})
        seen = {uid: guid for uid, guid in staying.items() if guid}
        if advanced and not seen and not going:
            seen = self.guids(mailbox, range(max(1, mailbox.next_uid - SAMPLES), mailbox.next_uid))
        # The oldest that are here now, and the newest that were ever asked for.
        samples = dict([*sorted(seen.items())[:SAMPLES], *sorted({**before, **seen}.items())[-SAMPLES:]])
        if advanced or samples != before:
            mark = (int(self.run.now), mailbox.next_uid) if advanced else None
            look.notes.append((self.run.marks.note, (mailbox.key, (mailbox.account, mailbox.name), mark, samples)))
        return bool(seen or before)
