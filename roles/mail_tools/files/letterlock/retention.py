"""A retention run: plan, refuse what is too much, record, expunge.

Two passes over all accounts. The first (`plan`) spools what would go and changes
nothing. Then the ceilings, which need the whole picture. The second (`expunge`)
records each message in the ledger and only then expunges it. Memory holds what is
known of mailboxes, and of the messages of a batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sys
import tempfile
import time
from threading import Lock, local
from typing import TYPE_CHECKING

from letterlock import holds
from letterlock import policies as rules
from letterlock.batches import read_lines, write_lines
from letterlock.doveadm import Doveadm, Failed, uid_set
from letterlock.durations import show_duration
from letterlock.expunge import Expunger
from letterlock.ledger import Ledger, write_durably
from letterlock.marks import Marks
from letterlock.plan import Owners, Planner, parts, undivided
from letterlock.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

    from letterlock.settings import Settings

# A clock that is this much behind the ledger is only being adjusted.
CLOCK_BEHIND_SECONDS = 300


class Refused(Exception):
    """The run deletes nothing before somebody has looked; the message says how to go on."""


class Run:
    """One run over all accounts."""

    def __init__(self, settings: Settings, ledger: Ledger, now: float, socket: str | None = None) -> None:
        """Take what a run depends on; *now* is the clock, in seconds since the epoch."""
        self.settings, self.ledger, self.now = settings, ledger, now
        self.socket = socket
        self.identity = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{secrets.token_hex(3)}"
        self.tally = Tally()
        self.owners = Owners()
        self.marks = Marks(settings.state_directory / "marks.sqlite")
        self.mutex = Lock()
        self.threads = local()

    @property
    def doveadm(self) -> Doveadm:
        """The connection of this thread alone."""
        if not hasattr(self.threads, "doveadm"):
            self.threads.doveadm = Doveadm(self.socket) if self.socket else Doveadm()
        return self.threads.doveadm

    def note(self, text: str) -> None:
        """Say what somebody who reads the journal wants to know."""
        print(text, file=sys.stderr, flush=True)

    def failed(self, account: str, failed: Failed) -> None:
        """Note an account that could not be looked at; the others go on."""
        self.tally.failures.append(f"{account}: {failed}; its journal says more, and `doveadm force-resync -u {account} '*'` may mend it")

    def about(self, row: dict) -> dict | None:
        """Return what the ledger says of a message, or None when *row* does not tell it. No content and no address."""
        if "guid" not in row or "size.physical" not in row:
            return None
        return {
            "guid": row["guid"], "message_id": self.ledger.keyed_hash(row.get("hdr.message-id")), "size": int(row["size.physical"]),
            "received": int(row["date.received.unixtime"]), "saved": int(row["date.saved.unixtime"]),
        }

    def holds_of(self, account: str) -> list[dict]:
        """Return the holds that cover *account*."""
        return [hold for hold in self.settings.holds if account in hold["accounts"]]

    def held_messages(self, account: str) -> set[tuple[str, int]]:
        """Return (mailbox GUID, UID) of what holds with a search keep in *account*."""
        kept = set()
        for hold in self.holds_of(account):
            for row in self.doveadm.one("fetch", user=account, field=["mailbox-guid", "uid"], query=hold["search"] or ["all"]):
                kept.add((row["mailbox-guid"], int(row["uid"])))
        return kept

    # ---- what is too much

    def refusals(self, spool: TextIO, state: dict) -> list[str]:
        """Return why nothing may be deleted before somebody has looked."""
        found = self.clock_refusals()
        total = 0
        for line in undivided(read_lines(spool)):
            going = sum(len(uids) for uids in line["going"].values())
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

    # ---- the whole

    def acknowledgement(self) -> str:
        """Return the word that says: these policies were looked at, and so was the clock if it is in doubt."""
        text = json.dumps([self.settings.raw["policies"], self.settings.folders, bool(self.clock_refusals())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def execute(self, *, acknowledged: str | None = None) -> None:
        """Do the whole run; raise Refused when somebody has to look first."""
        state = read_state(self.settings.state_directory)
        with tempfile.TemporaryFile("w+", dir=self.settings.state_directory) as spool:
            self.plan(state, spool)
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
            Expunger(self).carry_out(spool)
            # What policies have just let go of accounts under a hold went to the hidden mailbox.
            spool.seek(0)
            spool.truncate()
            self.plan_released(state, spool)
            Expunger(self).carry_out(spool)
        self.end()
        self.marks.save(int(self.now), max((policy.keep_for or 0 for policy in self.settings.policies), default=0))
        write_state(self.settings.state_directory, known)

    def plan(self, state: dict, spool: TextIO) -> None:
        """Write to *spool* what would go."""
        accounts = self.doveadm.users()
        self.tally.accounts = len(accounts)
        Planner(self).plan(spool, accounts)
        self.plan_released(state, spool)

    def record_holds(self, state: dict) -> bool:
        """Record which holds were set, changed or lifted since the last look; return whether any was."""
        found = holds.changes(state.get("holds", []), self.settings.raw["holds"])
        if found:
            self.ledger.append(found, self.now)
        return bool(found)

    def plan_released(self, state: dict, spool: TextIO) -> None:
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
                write_lines(spool, parts([{
                    "account": account, "mailbox": self.settings.held_mailbox, "guid": rows[0]["mailbox-guid"], "messages": len(rows),
                    "going": [[int(row["uid"]), "hold", why, None] for row in rows],
                }]))
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
            self.plan(state, spool)
            total = 0
            for line in undivided(read_lines(spool)):
                for policy, uids in line["going"].items():
                    total += len(uids)
                    shown = f"{len(uids)} of {line['messages']} messages, UIDs {uid_set(uids)}"
                    yield f"{line['account']}  {line['mailbox']}  {policy}: {shown}"
            yield f"{total} messages would go; {self.tally.accounts} accounts, {self.tally.held} of them held"
            for refusal in self.refusals(spool, state):
                yield f"needs an acknowledgement: {refusal}"


def read_state(directory: Path) -> dict:
    """Return what the last run that went through knew, or nothing."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((directory / "last_run.json").read_text())
    return {}


def write_state(directory: Path, state: dict) -> None:
    """Remember *state* for the next run."""
    write_durably(directory / "last_run.json", json.dumps(state).encode())
