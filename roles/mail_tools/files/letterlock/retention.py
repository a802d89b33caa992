"""A retention run: look at every account, refuse what is too much, record, expunge.

Two passes. The first asks Dovecot for what each policy could concern (dates,
sizes and flags, which need no user's key) and spools what would go; nothing is
changed. Then the ceilings, which need the whole picture. The second records
each message in the ledger and only then expunges it, by mailbox GUID and UID.
Memory holds the status of each mailbox, and the messages of a batch of accounts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import tempfile
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Lock, local
from typing import TYPE_CHECKING

from letterlock import holds
from letterlock import policies as rules
from letterlock.doveadm import Doveadm, Failed, in_mailbox, uid_set
from letterlock.durations import show_duration
from letterlock.ledger import Ledger, write_durably
from letterlock.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from letterlock.settings import Settings

# Accounts asked about in one request, and messages in one command.
BATCH = 25
UIDS_AT_ONCE = 500
# Dates in a search may be those of a time zone. What is asked for is a little more, and decided here to the second.
TIME_ZONES_SECONDS = 86400
# Messages by which a mailbox is known again.
SAMPLES = 3
WORKERS = 2
# A clock that is this much behind the ledger is only being adjusted.
CLOCK_BEHIND_SECONDS = 300


class Refused(Exception):
    """The run deletes nothing before somebody has looked; the message says how to go on."""


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Yield *items* in lists of at most *size*."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def bounded_map(work: Callable, items: Iterable) -> Iterator:
    """Yield work(item) for *items* in order, on WORKERS threads that are never far ahead: memory stays flat."""
    under_way: deque = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > 2 * WORKERS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


@dataclass(frozen=True)
class Mailbox:
    """One mailbox as its status shows it, and the policies that limit it."""

    name: str
    guid: str
    messages: int
    first_saved: int | None
    next_uid: int
    policies: tuple[rules.Policy, ...]

    def condition(self, marks: list[tuple[int, int]], now: float) -> list[str]:
        """Return the search for what the policies could let go here; *marks* are (time, next UID) of earlier runs."""
        if any(policy.keep_newest is not None or policy.max_size is not None for policy in self.policies):
            return ["all"]
        terms: list[str] = []
        for policy in self.policies:
            cut = int(now - policy.keep_for)
            key = {"saved": "savedbefore", "received": "before"}[policy.since]
            terms += ["or"] * bool(terms) + [key, str(cut + TIME_ZONES_SECONDS)]
            known = max((next_uid for at, next_uid in marks if at < cut), default=1)
            if policy.since == "saved" and known > 1:
                terms += ["or", "uid", f"1:{known - 1}"]
        return terms


def query_for(mailboxes: list[Mailbox], marks: dict[str, list[tuple[int, int]]], now: float) -> list[str]:
    """Return one search for all that the policies of *mailboxes* could let go."""
    terms: list[str] = []
    for mailbox in mailboxes:
        condition = mailbox.condition(marks.get(mailbox.guid, []), now)
        terms += ["or"] * bool(terms) + ["(", "mailbox", mailbox.name, "(", *condition, ")", ")"]
    return ["(", *terms, ")"]


def saved_at_the_latest(message: rules.Message, marks: list[tuple[int, int]]) -> rules.Message:
    """Return *message*, saved no later than the first run that had seen its UID given out.

    Dovecot keeps saved dates in its cache. When that is lost, a file's ctime stands in, and a restored disk would
    seem to hold new mail only.
    """
    seen = min((at for at, next_uid in marks if message.uid < next_uid), default=message.saved)
    return replace(message, saved=min(message.saved, seen))


def message_of(row: dict) -> rules.Message:
    """Return the message in an answer of doveadm; raise Failed when the answer is not one."""
    try:
        return rules.Message(
            uid=int(row["uid"]), saved=int(row["date.saved.unixtime"]), received=int(row.get("date.received.unixtime", 0)),
            size=int(row.get("size.physical", 0)), flags=frozenset(row["flags"].split()),
        )
    except (KeyError, ValueError) as error:
        raise Failed(f"doveadm's answer can't be read: {row}") from error


def fields_for(mailboxes: list[Mailbox]) -> list[str]:
    """Return what must be known of a message; dates, sizes and flags need no user's key."""
    policies = [policy for mailbox in mailboxes for policy in mailbox.policies]
    fields = ["mailbox-guid", "uid", "flags", "date.saved.unixtime"]
    if any(policy.since == "received" for policy in policies):
        fields.append("date.received.unixtime")
    if any(policy.max_size is not None for policy in policies):
        fields.append("size.physical")
    return fields


@dataclass
class Tally:
    """What a run came to."""

    examined: Counter = field(default_factory=Counter)
    expunged: Counter = field(default_factory=Counter)
    octets: Counter = field(default_factory=Counter)
    oldest: dict[str, int] = field(default_factory=dict)
    messages_on_host: int = 0
    accounts: int = 0
    held: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)

    def note_oldest(self, policy: str, saved: int) -> None:
        """Remember the oldest saved date that stays under *policy*."""
        self.oldest[policy] = min(saved, self.oldest.get(policy, saved))


class Run:
    """One run over all accounts."""

    def __init__(self, settings: Settings, ledger: Ledger, now: float, socket: str | None = None) -> None:
        """Take what a run depends on; *now* is the clock, in seconds since the epoch."""
        self.settings, self.ledger, self.now = settings, ledger, now
        self.socket = socket
        self.identity = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{secrets.token_hex(3)}"
        self.tally = Tally()
        self.marks = Marks(settings.state_directory / "marks.sqlite")
        self.mutex = Lock()
        self.threads = local()

    @property
    def doveadm(self) -> Doveadm:
        """The connection of this thread alone."""
        if not hasattr(self.threads, "doveadm"):
            self.threads.doveadm = Doveadm(self.socket) if self.socket else Doveadm()
        return self.threads.doveadm

    # ---- the first pass: what would go

    def plan(self, spool) -> None:
        """Write what would go to *spool*, one line a mailbox."""
        accounts = self.doveadm.users()
        self.tally.accounts = len(accounts)
        wanted = []
        for account in accounts:
            covering = [policy for policy in self.settings.policies if policy.limits and policy.covers_account(account)]
            if any(not hold.get("search") for hold in self.holds_of(account)):
                self.tally.held += 1
            elif covering:
                wanted.append((account, covering))
        for lines in bounded_map(self.plan_accounts, chunks(self.covered(wanted), BATCH)):
            for line in lines:
                spool.write(json.dumps(line) + "\n")
        spool.flush()

    def covered(self, wanted: list[tuple[str, list[rules.Policy]]]) -> Iterator[tuple[str, list[Mailbox]]]:
        """Yield the accounts that have mail which a policy limits, with those mailboxes."""
        for account, policies, rows in self.statuses(wanted):
            mailboxes = self.mailboxes_of(policies, rows)
            if mailboxes:
                yield account, mailboxes

    def statuses(self, wanted: list[tuple[str, list[rules.Policy]]]) -> Iterator[tuple[str, list[rules.Policy], list[dict]]]:
        """Yield (account, policies, the status of each of its mailboxes), all from one answer if it can be had."""
        asked = ["messages", "guid", "firstsaved", "uidnext"]
        try:
            by_account: dict[str, list[dict]] = {}
            for row in self.doveadm.one("mailboxStatus", allUsers=True, field=asked, mailboxMask=["*"]):
                by_account.setdefault(row["username"], []).append(row)
                self.tally.messages_on_host += int(row["messages"])
            for account, policies in wanted:
                yield account, policies, by_account.get(account, [])
        except Failed:
            # One account's fault is the whole answer's. Asked one by one, it is that account's alone.
            for some in chunks(wanted, BATCH):
                answers = self.doveadm.batch([
                    ("mailboxStatus", {"user": account, "field": asked, "mailboxMask": ["*"]}) for account, _ in some
                ])
                for (account, policies), rows in zip(some, answers, strict=True):
                    if isinstance(rows, Failed):
                        self.failed(account, rows)
                        continue
                    self.tally.messages_on_host += sum(int(row["messages"]) for row in rows)
                    yield account, policies, rows

    def holds_of(self, account: str) -> list[dict]:
        """Return the holds that cover *account*."""
        return [hold for hold in self.settings.holds if account in hold["accounts"]]

    def plan_accounts(self, covered: list[tuple[str, list[Mailbox]]]) -> list[dict]:
        """Return what would go of some accounts' mailboxes."""
        known: list[tuple[str, list[Mailbox], dict]] = []
        for account, mailboxes in covered:
            try:
                known.append((account, mailboxes, self.marks_of(account, mailboxes)))
            except Failed as failed:
                self.failed(account, failed)
        answers = self.doveadm.batch([
            ("fetch", {"user": account, "field": fields_for(mailboxes), "query": query_for(mailboxes, marks, self.now)})
            for account, mailboxes, marks in known
        ])
        lines = []
        for (account, mailboxes, marks), rows in zip(known, answers, strict=True):
            try:
                if isinstance(rows, Failed):
                    raise rows
                lines += self.plan_account(account, mailboxes, marks, rows)
            except Failed as failed:
                self.failed(account, failed)
        return lines

    def marks_of(self, account: str, mailboxes: list[Mailbox]) -> dict[str, list[tuple[int, int]]]:
        """Return the marks of *mailboxes* by GUID, and note where they have come by now.

        A mailbox that has a new GUID under an old name is the same one with a rebuilt index when its messages are the
        same under the same UIDs; one that its user made anew is not.
        """
        marks = self.marks.of([mailbox.guid for mailbox in mailboxes])
        for mailbox in mailboxes:
            known = marks.get(mailbox.guid, [])
            if known and max(next_uid for _, next_uid in known) >= mailbox.next_uid:
                continue
            earlier = [] if known else self.marks.earlier(account, mailbox.name)
            wanted = {uid for _, samples in earlier for uid in samples} | set(range(mailbox.next_uid - SAMPLES, mailbox.next_uid))
            where = [*in_mailbox(mailbox.name, mailbox.guid), "uid", uid_set([uid for uid in wanted if uid > 0])]
            rows = self.doveadm.one("fetch", user=account, field=["uid", "guid"], query=where)
            now = {int(row["uid"]): row["guid"] for row in rows}
            for old, samples in earlier:
                shared = samples.keys() & now.keys()
                if shared and all(samples[uid] == now[uid] for uid in shared):
                    marks[mailbox.guid] = self.marks.adopt(old, mailbox.guid)
                    break
            newest = dict(sorted(now.items())[-SAMPLES:])
            self.marks.note(mailbox.guid, (account, mailbox.name), (int(self.now), mailbox.next_uid), newest)
        return marks

    def failed(self, account: str, failed: Failed) -> None:
        """Note an account that could not be looked at; the others go on."""
        self.tally.failures.append(f"{account}: {failed}; its journal says more, and `doveadm force-resync -u {account} '*'` may mend it")

    def mailboxes_of(self, policies: list[rules.Policy], rows: list[dict]) -> list[Mailbox]:
        """Return the mailboxes that hold mail and that a policy limits, given the status of all."""
        found = []
        for row in rows:
            messages = int(row["messages"])
            effective = tuple(rules.strictest(policies, row["mailbox"]))
            for policy in effective:
                self.tally.examined[policy.name] += messages
            if effective and messages:
                found.append(Mailbox(
                    name=row["mailbox"], guid=row["guid"], messages=messages, next_uid=int(row["uidnext"]), policies=effective,
                    first_saved=int(row["firstsaved"]) if row["firstsaved"].isdigit() else None,
                ))
        return found

    def plan_account(self, account: str, mailboxes: list[Mailbox], marks: dict, rows: list[dict]) -> list[dict]:
        """Return what would go of one account, given doveadm's *rows* of what could."""
        candidates: dict[str, list[rules.Message]] = {}
        for row in rows:
            guid = row["mailbox-guid"]
            candidates.setdefault(guid, []).append(saved_at_the_latest(message_of(row), marks.get(guid, [])))
        spared = self.held_messages(account)
        lines = []
        for mailbox in mailboxes:
            messages = candidates.get(mailbox.guid, [])
            decided = rules.decide(list(mailbox.policies), messages, self.now)
            going = {uid: why for uid, why in decided.items() if (mailbox.guid, uid) not in spared}
            staying = [message.saved for message in messages if message.uid not in going]
            if not going and mailbox.first_saved is not None:
                staying.append(mailbox.first_saved)
            names = [policy.name for policy in mailbox.policies]
            if staying:
                with self.mutex:
                    for name in names:
                        self.tally.note_oldest(name, min(staying))
            if going:
                lines.append({"account": account, "mailbox": mailbox.name, "guid": mailbox.guid, "messages": mailbox.messages,
                              "policies": names, "going": [[uid, *why] for uid, why in going.items()]})
        return lines

    def held_messages(self, account: str) -> set[tuple[str, int]]:
        """Return (mailbox GUID, UID) of what holds with a search keep in *account*."""
        kept = set()
        for hold in self.holds_of(account):
            for row in self.doveadm.one("fetch", user=account, field=["mailbox-guid", "uid"], query=hold["search"]):
                kept.add((row["mailbox-guid"], int(row["uid"])))
        return kept

    # ---- what is too much

    def refusals(self, spool, state: dict) -> list[str]:
        """Return why nothing may be deleted before somebody has looked."""
        found = self.clock_refusals()
        total = 0
        for line in read_lines(spool):
            going = len(line["going"])
            total += going
            if going > self.settings.always_allowed and going > self.settings.mailbox_share * line["messages"]:
                found.append(
                    f"{line['account']}, {line['mailbox']}: {going} of {line['messages']} messages would go, over "
                    f"mail_retention_ceiling_mailbox_percent ({self.settings.mailbox_share:.0%})"
                )
        if total > self.settings.always_allowed:
            on_host = self.tally.messages_on_host
            if total > self.settings.host_share * on_host:
                found.append(
                    f"{total} of {on_host} messages on this host would go, over mail_retention_ceiling_host_percent "
                    f"({self.settings.host_share:.0%})"
                )
        if total and not self.no_stricter_than(state):
            found.append(f"the policies let more go than those of the last run, and {total} messages would go")
        return found

    def clock_refusals(self) -> list[str]:
        """Return why the clock can't be believed."""
        newest = self.ledger.newest_time
        if not newest:
            return []
        shown = {name: time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value)) for name, value in (("now", self.now), ("newest", newest))}
        if self.now < newest - CLOCK_BEHIND_SECONDS:
            return [f"the clock says {shown['now']} UTC, and the ledger's newest line is of {shown['newest']}"]
        if self.now > newest + self.settings.clock_ahead_seconds:
            limit = show_duration(self.settings.clock_ahead_seconds)
            return [f"the clock says {shown['now']} UTC, more than {limit} after the ledger's newest line ({shown['newest']})"]
        return []

    def no_stricter_than(self, state: dict) -> bool:
        """Tell whether the last run's policies would have let the same go."""
        old, _ = rules.parse_policies(state.get("policies", []), state.get("folders", {}), [])
        return state.get("folders") == self.settings.folders and rules.is_no_stricter(old, self.settings.policies)

    # ---- the second pass

    def carry_out(self, spool) -> None:
        """Record and expunge what *spool* says."""
        for _ in bounded_map(self.carry_out_some, chunks(parts(read_lines(spool)), BATCH)):
            pass

    def carry_out_some(self, lines: list[dict]) -> None:
        """Record and expunge what some lines of the plan say."""
        known, entries = [], []
        for line, details in zip(lines, self.details(lines), strict=True):
            if isinstance(details, Failed):
                self.tally.failures.append(f"{line['account']}, {line['mailbox']}: {details}")
                continue
            about = {int(row["uid"]): row for row in details}
            going = [(uid, policy, why) for uid, policy, why in line["going"] if uid in about]
            if going:
                known.append({**line, "going": going, "about": about})
            entries += [
                {
                    "kind": "expunge", "run": self.identity, "account": line["account"], "mailbox": line["mailbox"],
                    "guid": about[uid]["guid"], "message_id": self.ledger.keyed_hash(about[uid].get("hdr.message-id")),
                    "size": int(about[uid]["size.physical"]), "received": int(about[uid]["date.received.unixtime"]),
                    "saved": int(about[uid]["date.saved.unixtime"]), "policy": policy, "why": why,
                }
                for uid, policy, why in going
            ]
        if not entries:
            return
        # Not recorded, not deleted: a full disk ends the run here.
        self.ledger.append(entries, self.now)
        self.expunge(known)

    def details(self, lines: list[dict]) -> list[list[dict] | Failed]:
        """Return what the ledger says of the messages of each line, and the Message-IDs of those that can be read."""
        fields = ["uid", "guid", "size.physical", "date.received.unixtime", "date.saved.unixtime"]

        def question(line: dict, *more: str) -> tuple[str, dict]:
            return "fetch", {"user": line["account"], "field": [*fields, *more], "query": where_going(line)}

        answers = self.doveadm.batch([question(line, "hdr.message-id") for line in lines])
        # Without the key of a sealed mailbox a header fails; the rest must not.
        sealed = [number for number, answer in enumerate(answers) if isinstance(answer, Failed)]
        for number, answer in zip(sealed, self.doveadm.batch([question(lines[number]) for number in sealed]), strict=True):
            answers[number] = answer
        return answers

    def expunge(self, lines: list[dict]) -> None:
        """Expunge what was recorded; record, too, what stayed after all."""
        commands = []
        for line in lines:
            where = in_mailbox(line["mailbox"], line["guid"])
            for policy, uids in by_policy(line["going"]).items():
                # A flag that was set since the first pass still spares.
                spare = self.spare_terms(policy)
                commands.append(("expunge", {"user": line["account"], "query": [*where, "uid", uid_set(uids), *spare]}))
        failed = [str(answer) for answer in self.doveadm.batch(commands) if isinstance(answer, Failed)]
        self.tally.failures += failed
        # What is left of them, and the first message that stays.
        left = self.doveadm.batch([
            ("fetch", {"user": line["account"], "field": ["uid", "date.saved.unixtime"],
                       "query": [*in_mailbox(line["mailbox"], line["guid"]), "(", "uid", uids_of(line), "or", "1", ")"]})
            for line in lines
        ])
        with self.mutex:
            stayed = self.count(lines, left)
        if stayed:
            self.ledger.append(stayed, self.now)

    def count(self, lines: list[dict], left: list[list[dict] | Failed]) -> list[dict]:
        """Count what is gone; return an entry for each message that is among what is *left*."""
        stayed = []
        for line, answer in zip(lines, left, strict=True):
            rows = [] if isinstance(answer, Failed) else answer
            remaining = {int(row["uid"]) for row in rows}
            if rows:
                first = min(rows, key=lambda row: int(row["uid"]))
                for policy in line.get("policies", []):
                    self.tally.note_oldest(policy, int(first["date.saved.unixtime"]))
            for uid, policy, _ in line["going"]:
                about = line["about"][uid]
                if uid in remaining:
                    stayed.append({"kind": "kept", "run": self.identity, "account": line["account"], "mailbox": line["mailbox"],
                                   "guid": about["guid"], "policy": policy, "why": "it was still there after the expunge"})
                else:
                    self.tally.expunged[policy] += 1
                    self.tally.octets[policy] += int(about["size.physical"])
        self.tally.kept += len(stayed)
        return stayed

    def spare_terms(self, name: str) -> list[str]:
        """Return the search terms for what policy *name* spares."""
        spare = next((policy.spare for policy in self.settings.policies if policy.name == name), frozenset())
        return ["unflagged"] * ("flagged" in spare) + ["seen"] * ("unseen" in spare)

    # ---- the whole

    def acknowledgement(self) -> str:
        """Return the word that says: these policies were looked at, and so was the clock if it is in doubt."""
        text = json.dumps([self.settings.raw["policies"], self.settings.folders, bool(self.clock_refusals())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def execute(self, *, acknowledged: str | None = None) -> None:
        """Do the whole run; raise Refused when somebody has to look first."""
        state = read_state(self.settings.state_directory)
        with tempfile.TemporaryFile("w+", dir=self.settings.state_directory) as spool:
            self.plan(spool)
            self.plan_released(state, spool)
            refusals = self.refusals(spool, state)
            # A run that was acknowledged and then interrupted goes on.
            word = acknowledged or state.get("acknowledged")
            if refusals and word != self.acknowledgement():
                reasons = "\n".join(f"  - {refusal}" for refusal in refusals)
                raise Refused(
                    f"nothing was deleted:\n{reasons}\nLook: letterlock retention run --dry-run\n"
                    f"If it is right: letterlock retention run --acknowledge {self.acknowledgement()}"
                )
            self.begin(refusals)
            self.record_holds(state)
            known = self.known(state)
            write_state(self.settings.state_directory, {**known, "acknowledged": word} if refusals else known)
            self.carry_out(spool)
            # What policies have just let go of accounts under a hold went to the hidden mailbox.
            spool.seek(0)
            spool.truncate()
            self.plan_released(state, spool)
            self.carry_out(spool)
        self.end()
        self.marks.save(int(self.now), max((policy.keep_for or 0 for policy in self.settings.policies), default=0))
        write_state(self.settings.state_directory, known)

    def record_holds(self, state: dict) -> bool:
        """Record which holds were set, changed or lifted since the last look; return whether any was."""
        found = holds.changes(state.get("holds", []), self.settings.raw["holds"])
        if found:
            self.ledger.append(found, self.now)
        return bool(found)

    def plan_released(self, state: dict, spool) -> None:
        """Write to *spool* what users expunged under holds that keep it no longer."""
        for account in sorted(set(self.known(state)["released"]) & set(self.doveadm.users())):
            kept = [holds.expunged_search(hold) for hold in self.holds_of(account)]
            query = ["mailbox", self.settings.held_mailbox, *(word for terms in kept for word in ("not", "(", *terms, ")"))]
            try:
                rows = self.doveadm.one("fetch", user=account, field=["mailbox-guid", "uid"], query=query)
            except Failed as failed:
                self.failed(account, failed)
                continue
            if rows:
                why = "its user expunged it, and no hold keeps it any more"
                spool.write(json.dumps({
                    "account": account, "mailbox": self.settings.held_mailbox, "guid": rows[0]["mailbox-guid"], "messages": len(rows),
                    "going": [[int(row["uid"]), "hold", why] for row in rows],
                }) + "\n")
        spool.flush()

    def known(self, state: dict) -> dict:
        """Return what the next run has to know of this one."""
        holds_ever = [*state.get("holds", []), *self.settings.raw["holds"]]
        once = {account for hold in holds_ever for account in hold["accounts"]} | set(state.get("released", []))
        return {"policies": self.settings.raw["policies"], "folders": self.settings.folders, "holds": self.settings.raw["holds"],
                "released": sorted(once)}

    def begin(self, acknowledged: list[str] | None = None) -> None:
        """Record that a run begins, and what somebody acknowledged for it."""
        policies = json.dumps(self.settings.raw["policies"], sort_keys=True).encode()
        entry = {"kind": "run", "run": self.identity, "policies": hashlib.sha256(policies).hexdigest()}
        self.ledger.append([{**entry, "acknowledged": acknowledged} if acknowledged else entry], self.now)

    def end(self) -> None:
        """Record what the run came to."""
        expunged = sum(self.tally.expunged.values())
        self.ledger.append([{
            "kind": "end", "run": self.identity, "expunged": expunged, "kept": self.tally.kept, "failures": len(self.tally.failures),
        }], self.now)

    def dry_run(self) -> Iterator[str]:
        """Yield, in words, exactly what a run would delete now."""
        state = read_state(self.settings.state_directory)
        with tempfile.TemporaryFile("w+", dir=self.settings.state_directory) as spool:
            self.plan(spool)
            self.plan_released(state, spool)
            total = 0
            for line in read_lines(spool):
                for policy, uids in by_policy(line["going"]).items():
                    total += len(uids)
                    shown = f"{len(uids)} of {line['messages']} messages, UIDs {uid_set(uids)}"
                    yield f"{line['account']}  {line['mailbox']}  {policy}: {shown}"
            yield f"{total} messages would go; {self.tally.accounts} accounts, {self.tally.held} of them held"
            for refusal in self.refusals(spool, state):
                yield f"needs an acknowledgement: {refusal}"


def where_going(line: dict) -> list[str]:
    """Return the search for the messages of a plan's line."""
    return [*in_mailbox(line["mailbox"], line["guid"]), "uid", uids_of(line)]


def uids_of(line: dict) -> str:
    """Return the UIDs of a plan's line."""
    return uid_set([uid for uid, *_ in line["going"]])


def by_policy(going: list) -> dict[str, list[int]]:
    """Return {policy: UIDs} of a plan's line."""
    found: dict[str, list[int]] = {}
    for uid, policy, _ in going:
        found.setdefault(policy, []).append(uid)
    return found


def read_lines(spool) -> Iterator[dict]:
    """Yield the lines of the plan."""
    spool.seek(0)
    for line in spool:
        yield json.loads(line)


def parts(lines: Iterable[dict]) -> Iterator[dict]:
    """Yield *lines* so that none names more messages than one command takes."""
    for line in lines:
        for going in chunks(line["going"], UIDS_AT_ONCE):
            yield {**line, "going": going}


def read_state(directory: Path) -> dict:
    """Return what the last run that went through knew, or nothing."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((directory / "last_run.json").read_text())
    return {}


def write_state(directory: Path, state: dict) -> None:
    """Remember *state* for the next run."""
    write_durably(directory / "last_run.json", json.dumps(state).encode())
