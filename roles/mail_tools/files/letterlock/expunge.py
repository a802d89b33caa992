"""The second pass of a run: each message is recorded in the ledger, and only then expunged, by mailbox GUID and UID."""

from __future__ import annotations

import math
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


def about_row(about: dict) -> dict:
    """Return the row of a message that the ledger tells *about*."""
    return {"guid": about["guid"], "date.saved.unixtime": about["saved"]}


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
        doubtful = self.expunge(lines)
        left = self.left([line for line in lines if id(line) in doubtful or not self.is_known(line)])
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

    def is_known(self, line: dict) -> bool:
        """Tell whether a look at what is left in a mailbox after the expunge would tell nothing new.

        What goes goes, and nothing that stays unseen there is older than what is known to stay under its policies.
        """
        oldest = self.run.tally.oldest
        return bool(line.get("policies")) and line["sampled"] and all(
            not self.spared[policy] and oldest.get(policy, math.inf) <= line["seen_to"] for policy in line["policies"]
        )

    def expunge(self, lines: list[dict]) -> set[int]:
        """Expunge what was recorded; return the `id` of those *lines* of which it is not certain."""
        together, alone = self.parted(lines)
        if together:
            accounts = list(dict.fromkeys(line["account"] for line in together))
            try:
                deque(over(accounts, ["expunge"], *group_query(together, self.spared)), maxlen=0)
            except Failed as failed:
                self.run.note(f"expunged one by one, because of a fault: {failed}")
                alone = lines
        commands = [
            (line, ("expunge", {"user": line["account"], "query": [
                *in_mailbox(line["mailbox"], line["guid"]), "uid", uid_set(uids), *self.spared.get(policy, []),
            ]}))
            for line in alone for policy, uids in by_policy(line["going"]).items()
        ]
        answers = self.run.doveadm.batch([command for _, command in commands])
        failed = [(line, answer) for (line, _), answer in zip(commands, answers, strict=True) if isinstance(answer, Failed)]
        with self.run.mutex:
            self.run.tally.failures += [str(answer) for _, answer in failed]
        return {id(line) for line, _ in failed}

    def left(self, lines: list[dict]) -> dict[tuple[str, str], dict[int, dict]]:
        """Return {(account, mailbox GUID): {UID: row}} of what is left of *lines*, and of the first message that stays.

        Where that can't be seen, all that should be gone is left.
        """
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
        found: dict[tuple[str, str], dict[int, dict]] = {}
        for line, answer in zip(alone, answers, strict=True):
            if isinstance(answer, Failed):
                found.setdefault((line["account"], line["guid"]), {}).update({uid: about_row(about) for uid, *_, about in line["going"]})
            else:
                rows += [(line["account"], row) for row in answer]
        for account, row in rows:
            found.setdefault((account, row["mailbox-guid"]), {})[int(row["uid"])] = row
        return found

    def count(self, lines: list[dict], left: dict[tuple[str, str], dict[int, dict]]) -> list[dict]:
        """Count what is gone; return an entry for each message that is *left*."""
        tally, stayed = self.run.tally, []
        for line in lines:
            remaining = left.get((line["account"], line["guid"]), {})
            if remaining:
                uid = min(remaining)
                first = remaining[uid]
                tally.note_oldest(line.get("policies", []), int(first["date.saved.unixtime"]), (line["account"], line["mailbox"]))
                if not line.get("sampled", True):
                    self.run.marks.note(line["key"], (line["account"], line["mailbox"]), None, {uid: first["guid"]})
            for uid, policy, _, about in line["going"]:
                if uid in remaining:
                    stayed.append({"kind": "kept", "run": self.run.identity, "account": line["account"], "mailbox": line["mailbox"],
                                   "guid": about["guid"], "policy": policy, "why": "it was still there after the expunge"})
                    if "key" in line:
                        self.run.marks.note_quiet(line["key"], "", int(self.run.now), 0)
                else:
                    tally.expunged[policy] += 1
                    tally.octets[policy] += about["size"]
        tally.kept += len(stayed)
        return stayed
