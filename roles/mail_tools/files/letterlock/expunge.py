"""The second pass of a run: each message is recorded in the ledger, and only then expunged, by mailbox GUID and UID."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from letterlock.batches import bounded_map, read_lines
from letterlock.doveadm import ACCOUNTS_AT_ONCE, WORTH_A_PROCESS, Failed, any_of, in_mailbox, over, uid_set
from letterlock.plan import ABOUT, by_policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from letterlock.retention import Run

# Messages of one batch, which is in memory.
MESSAGES_AT_ONCE = 2500


def batches(lines: Iterable[dict]) -> Iterator[list[dict]]:
    """Yield *lines* of the plan in lists that fit into memory, and into doveadm's arguments."""
    batch: list[dict] = []
    messages = 0
    for line in lines:
        if batch and (len(batch) == ACCOUNTS_AT_ONCE or messages + len(line["going"]) > MESSAGES_AT_ONCE):
            yield batch
            batch, messages = [], 0
        batch.append(line)
        messages += len(line["going"])
    if batch:
        yield batch


def uids_of(line: dict) -> list[int]:
    """Return the UIDs of a line of the plan."""
    return [uid for uid, *_ in line["going"]]


def is_complete(line: dict) -> bool:
    """Tell whether a line of the plan says of each message what the ledger will."""
    return all(about for *_, about in line["going"])


def group_query(lines: list[dict], spared: dict[str, list[str]], *more: list[str]) -> list[str]:
    """Return one search for the messages of many accounts' *lines*, without what is *spared* by policy, and with *more*.

    Each message is named by its mailbox's GUID and its UID. The union of UIDs before that spares a look at the rest.
    """
    by_name: dict[str, list[dict]] = {}
    for line in lines:
        by_name.setdefault(line["mailbox"], []).append(line)
    terms = []
    for name, of_name in by_name.items():
        exact = [
            ["mailbox-guid", line["guid"], "uid", uid_set(uids), *spared.get(policy, [])]
            for line in of_name for policy, uids in by_policy(line["going"]).items()
        ]
        union = uid_set(list({uid for line in of_name for uid in uids_of(line)}))
        terms.append(["mailbox", name, *any_of([["uid", union, *any_of(exact)], *more])])
    return any_of(terms)


class Expunger:
    """Carries out a plan."""

    def __init__(self, run: Run) -> None:
        """Take the run."""
        self.run = run
        # A flag that was set since the first pass still spares.
        self.spared = {
            policy.name: ["unflagged"] * ("flagged" in policy.spare) + ["seen"] * ("unseen" in policy.spare)
            for policy in run.settings.policies
        }

    def carry_out(self, spool: TextIO) -> None:
        """Record and expunge what *spool* says."""
        deque(bounded_map(self.carry_out_some, batches(read_lines(spool))), maxlen=0)

    def carry_out_some(self, lines: list[dict]) -> None:
        """Record and expunge what some lines of the plan say; record, too, what stayed after all."""
        lines = self.with_details(lines)
        if not lines:
            return
        run = self.run
        # Not recorded, not deleted: a full disk ends the run here.
        run.ledger.append([
            {"kind": "expunge", "run": run.identity, "account": line["account"], "mailbox": line["mailbox"],
             **about, "policy": policy, "why": why}
            for line in lines for _, policy, why, about in line["going"]
        ], run.now)
        self.expunge(lines)
        left = self.left(lines)
        with run.mutex:
            stayed = self.count(lines, left)
        if stayed:
            run.ledger.append(stayed, run.now)

    def with_details(self, lines: list[dict]) -> list[dict]:
        """Return *lines* with what the ledger says of each message, without those messages that are gone by themselves."""
        known = [line for line in lines if is_complete(line)]
        asked = [line for line in lines if not is_complete(line)]
        for line, rows in zip(asked, self.details(asked), strict=True):
            if isinstance(rows, Failed):
                self.run.tally.failures.append(f"{line['account']}, {line['mailbox']}: {rows}")
                continue
            about = {int(row["uid"]): self.run.about(row) for row in rows}
            going = [[uid, policy, why, about[uid]] for uid, policy, why, _ in line["going"] if uid in about]
            if going:
                known.append({**line, "going": going})
        return known

    def details(self, lines: list[dict]) -> list[list[dict] | Failed]:
        """Return what the ledger says of the messages of each line, and the Message-IDs of those that can be read."""
        def question(line: dict, fields: tuple[str, ...]) -> tuple[str, dict]:
            where = [*in_mailbox(line["mailbox"], line["guid"]), "uid", uid_set(uids_of(line))]
            return "fetch", {"user": line["account"], "field": ["uid", "date.saved.unixtime", *fields], "query": where}

        answers = self.run.doveadm.batch([question(line, ABOUT) for line in lines])
        # Without the key of a sealed mailbox a header fails; the rest must not.
        sealed = [number for number, answer in enumerate(answers) if isinstance(answer, Failed)]
        for number, answer in zip(sealed, self.run.doveadm.batch([question(lines[number], ABOUT[:-1]) for number in sealed]), strict=True):
            answers[number] = answer
        return answers

    def parted(self, lines: list[dict]) -> tuple[list[dict], list[dict]]:
        """Return those *lines* that one iteration can do, and those that need a command each.

        A mailbox that is hidden by an ACL is found only where nothing else is searched; a name with a wildcard finds others,
        and so does a GUID that two accounts have.
        """
        together, alone = [], []
        hidden = self.run.settings.held_mailbox
        for line in lines:
            exact = line["mailbox"] != hidden and not set(line["mailbox"]) & set("*%") and not self.run.owners.share(line["guid"])
            (together if exact else alone).append(line)
        return (together, alone) if len({line["account"] for line in together}) >= WORTH_A_PROCESS else ([], lines)

    def expunge(self, lines: list[dict]) -> None:
        """Expunge what was recorded."""
        together, alone = self.parted(lines)
        if together:
            accounts = list(dict.fromkeys(line["account"] for line in together))
            try:
                deque(over(accounts, ["expunge"], *group_query(together, self.spared)), maxlen=0)
            except Failed as failed:
                self.run.note(f"expunged one by one, because of a fault: {failed}")
                alone = lines
        commands = [
            ("expunge", {"user": line["account"], "query": [
                *in_mailbox(line["mailbox"], line["guid"]), "uid", uid_set(uids), *self.spared.get(policy, []),
            ]})
            for line in alone for policy, uids in by_policy(line["going"]).items()
        ]
        self.run.tally.failures += [str(answer) for answer in self.run.doveadm.batch(commands) if isinstance(answer, Failed)]

    def left(self, lines: list[dict]) -> dict[tuple[str, str], dict[int, dict]]:
        """Return {(account, mailbox GUID): {UID: row}} of what is left of *lines*, and of the first message that stays."""
        together, alone = self.parted(lines)
        fields = ["mailbox-guid", "uid", "guid", "date.saved.unixtime"]
        rows: list[tuple[str, dict]] = []
        if together:
            accounts = list(dict.fromkeys(line["account"] for line in together))
            try:
                answer = over(accounts, ["fetch"], " ".join(fields), *group_query(together, {}, ["1"]))
                rows = [(row["username"], row) for row in answer]
            except Failed as failed:
                self.run.note(f"looked after one by one, because of a fault: {failed}")
                alone, rows = lines, []
        answers = self.run.doveadm.batch([
            ("fetch", {"user": line["account"], "field": fields, "query": [
                *in_mailbox(line["mailbox"], line["guid"]), *any_of([["uid", uid_set(uids_of(line))], ["1"]]),
            ]})
            for line in alone
        ])
        for line, answer in zip(alone, answers, strict=True):
            rows += [] if isinstance(answer, Failed) else [(line["account"], row) for row in answer]
        found: dict[tuple[str, str], dict[int, dict]] = {}
        for account, row in rows:
            found.setdefault((account, row["mailbox-guid"]), {})[int(row["uid"])] = row
        return found

    def count(self, lines: list[dict], left: dict[tuple[str, str], dict[int, dict]]) -> list[dict]:
        """Count what is gone; return an entry for each message that is *left*."""
        tally, stayed = self.run.tally, []
        for line in lines:
            remaining = left.get((line["account"], line["guid"]), {})
            if remaining:
                first = remaining[min(remaining)]
                tally.note_oldest(line.get("policies", []), int(first["date.saved.unixtime"]))
                if not line.get("sampled", True):
                    self.run.marks.note(line["key"], (line["account"], line["mailbox"]), None, {int(first["uid"]): first["guid"]})
            for uid, policy, _, about in line["going"]:
                if uid in remaining:
                    stayed.append({"kind": "kept", "run": self.run.identity, "account": line["account"], "mailbox": line["mailbox"],
                                   "guid": about["guid"], "policy": policy, "why": "it was still there after the expunge"})
                else:
                    tally.expunged[policy] += 1
                    tally.octets[policy] += about["size"]
        tally.kept += len(stayed)
        return stayed
