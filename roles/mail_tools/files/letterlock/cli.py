"""`letterlock`: what an operator asks of a host.

Exit codes: 0 done; 1 done in part, or what was to be proven does not hold;
2 refused before anything changed; 75 another run is under way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from letterlock import (
    backup,
    backup_commands,
    erasure,
    fetched,
    holds,
    keyring,
    keys_commands,
    locks,
    metrics,
    policies,
    remembered,
    restic,
    scan_commands,
    settings,
)
from letterlock.accounts import place_of
from letterlock.age import NotSealed
from letterlock.batches import read_lines
from letterlock.doveadm import Doveadm, Failed
from letterlock.durations import DAY, parse_duration, show_duration
from letterlock.ledger import Broken, Ledger, write_durably
from letterlock.plan import Planner
from letterlock.retention import Refused, Run, read_state, write_state
from letterlock.runs import one_run
from letterlock.tally import OLDEST

EX_TEMPFAIL = 75


def report(run: Run, seconds: float) -> int:
    """Print the journal's lines of a run, write its metrics, and return the exit code."""
    tally = run.tally
    for policy in run.settings.policies:
        age = f", oldest that stays {show_duration(run.now - tally.oldest[policy.name])}" if policy.name in tally.oldest else ""
        print(
            f"{policy.name}: examined {tally.examined[policy.name]}, expunged {tally.expunged[policy.name]} "
            f"({tally.octets[policy.name]} octets){age}"
        )
    for failure in tally.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(
        f"run {run.identity}: {tally.accounts} accounts, {tally.held} held, {sum(tally.expunged.values())} expunged, "
        f"{tally.kept} stayed after all, {len(tally.failures)} failures, {seconds:.1f} s, ledger {run.ledger.sequence} {run.ledger.hash}"
    )
    names = [policy.name for policy in run.settings.policies]
    write_oldest(run, names)
    write_metrics(run, {
        "examined": {name: tally.examined[name] for name in names}, "expunged": {name: tally.expunged[name] for name in names},
        "expunged_bytes": {name: tally.octets[name] for name in names},
        "oldest_remaining_seconds": {name: int(run.now - saved) for name, saved in tally.oldest.items()},
        "failures": len(tally.failures), "held_accounts": tally.held, "seconds": round(seconds, 3),
        **({} if tally.failures else {"last_success_timestamp_seconds": int(run.now)}),
    })
    return int(bool(tally.failures))


def write_oldest(run: Run, names: list[str]) -> None:
    """Write down in which mailboxes the oldest mail lies that stays under the policies of these *names*, for those who verify."""
    found = [
        {"policy": name, "account": account, "mailbox": mailbox, "seconds": int(run.now - saved)}
        for name in names for (account, mailbox), saved in run.tally.nearest(name).items()
    ]
    write_durably(run.settings.state_directory / OLDEST, json.dumps({"at": int(run.now), "mailboxes": found}).encode(), 0o600)


def write_metrics(run: Run, last_run: dict) -> None:
    """Write the textfile: the figures of the last run, those of *last_run* anew, and the totals with this run's added."""
    with remembered.changed(run.settings.state_directory / "figures.json") as figures:
        figures.update(last_run)
        figures.update(metrics.add_totals(figures, run.tally.expunged, run.tally.octets))
        # In the order of the list, without those of which there are none.
        shown = {name: figures[name] for name in metrics.METRICS if figures.get(name, {}) != {}}
        metrics.write(run.settings.metrics_file, shown)


def retention_run(arguments: argparse.Namespace) -> int:
    """Run the policies for all accounts."""
    started = time.monotonic()
    with one_run(writes=not arguments.dry_run) as run:
        if arguments.dry_run:
            run.now -= arguments.late
            for line in run.dry_run():
                print(line)
            for failure in run.tally.failures:
                print(f"FAILED {failure}", file=sys.stderr)
            return int(bool(run.tally.failures))
        run.execute(acknowledged=arguments.acknowledge)
    return report(run, time.monotonic() - started)


def retention_fetched(_arguments: argparse.Namespace) -> int:
    """Expunge what POP3 sessions fetched and what is due."""
    with one_run() as run:
        refusals = run.clock_refusals()
        if refusals:
            raise Refused("nothing was deleted: " + "; ".join(refusals))
        waiting = fetched.expunge_fetched(run)
    if run.tally.expunged:
        write_metrics(run, {})
    for policy, count in run.tally.expunged.items():
        print(f"{policy}: expunged {count} fetched by POP3 ({run.tally.octets[policy]} octets), {waiting} sessions wait for their time")
    for failure in run.tally.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return int(bool(run.tally.failures))


def why_or_why_not(policy: policies.Policy, account: str, mailbox: str, effective: list[policies.Policy]) -> str:
    """Return whether *policy* holds for *mailbox* of *account*, and why."""
    if not policy.covers_account(account):
        return "is for other accounts"
    if not policy.limits:
        return "says something of POP3 only"
    if not policy.covers_mailbox(mailbox):
        return "is for other mailboxes"
    if policy not in effective:
        return f"gives way to {', '.join(other.name for other in effective)}, which overrides"
    return "applies and overrides the others" if policy.override else "applies"


def retention_explain(arguments: argparse.Namespace) -> int:
    """Say which policy holds for a mailbox, and why."""
    wanted = settings.read()
    account, mailbox = arguments.account, arguments.mailbox
    if account not in Doveadm().users():
        print(f"there is no account {account}", file=sys.stderr)
        return 2
    effective = policies.effective(wanted.policies, account, mailbox)
    for policy in wanted.policies:
        print(f"{policy.name} ({policy.describe()}): {why_or_why_not(policy, account, mailbox, effective)}")
    label = f"{account}, {mailbox}:"
    limits = [policy for policy in effective if policy.keep_for is not None]
    if limits:
        strictest = min(limits, key=lambda policy: policy.keep_for)
        print(f"{label} the strictest in time is {strictest.name}, {show_duration(strictest.keep_for)} since {strictest.since}")
    elif not effective:
        print(f"{label} nothing is expunged")
    _, by = policies.effective_after_fetch(wanted.policies, account)
    if mailbox.upper() == "INBOX" and by:
        print(f"{label} {by.name} {by.describe()}")
    for hold in wanted.holds:
        if account in hold["accounts"]:
            print(f"{label} held by {hold['name']}" + (f", only {' '.join(hold['search'])}" if hold["search"] else ": nothing is expunged"))
    return 0


def ledger_verify(_arguments: argparse.Namespace) -> int:
    """Verify the chain and the signature."""
    found = Ledger().verify()
    unsigned = f", {found['unsigned']} of an unfinished run after them" if found["unsigned"] else ""
    print(f"whole: {found['lines']} lines, signed up to {found['signed']}{unsigned}; the last one's hash is {found['hash']}")
    return 0


def ledger_key(_arguments: argparse.Namespace) -> int:
    """Print the public key that verifies the ledger."""
    print(Ledger().public_key(), end="")
    return 0


def ledger_prove(arguments: argparse.Namespace) -> int:
    """State what remains of an account, checked against its mailboxes now."""
    account = arguments.account
    with one_run(writes=False) as run:
        if account not in run.doveadm.users():
            print(f"there is no account {account}", file=sys.stderr)
            return 2
        covering = [policy for policy in run.settings.policies if policy.limits and policy.covers_account(account)]
        kept = run.held_messages(account)
        older: Counter = Counter()
        with Planner(run, thorough=True).plan_group([account]) as part:
            for line in read_lines(part):
                older.update((policy, (line["guid"], uid) in kept, line["mailbox"]) for uid, policy, *_ in line["going"])
        found = run.ledger.verify()
    for failure in run.tally.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    held = ", ".join(hold["name"] for hold in run.holds_of(account))
    for policy in covering:
        remaining = [(is_held, mailbox, count) for (name, is_held, mailbox), count in sorted(older.items()) if name == policy.name]
        if not remaining:
            print(f"{policy.name} ({policy.describe()}): nothing remains that should be gone")
        for is_held, mailbox, count in remaining:
            why = f"held by {held}" if is_held else "NOT SO"
            print(f"{policy.name} ({policy.describe()}): {why}: {count} messages remain in {mailbox}")
    print(f"the ledger is whole: {found['lines']} lines, {found['hash']}")
    return int(bool(run.tally.failures or not all(is_held for _, is_held, _ in older)))


def hold_named(wanted: settings.Settings, name: str) -> dict:
    """Return the hold *name*; raise Refused when there is none."""
    for hold in wanted.holds:
        if hold["name"] == name:
            return hold
    raise Refused(f"there is no hold {name}; `letterlock hold list` shows them, mail_retention_holds sets them")


def hold_list(_arguments: argparse.Namespace) -> int:
    """List the holds."""
    for hold in settings.read().holds:
        print(f"{hold['name']}: {', '.join(hold['accounts'])}" + (f" ({' '.join(hold['search'])})" if hold["search"] else ""))
    return 0


def hold_show(arguments: argparse.Namespace) -> int:
    """Show what a hold covers, by account and mailbox."""
    wanted = settings.read()
    hold = hold_named(wanted, arguments.name)
    for account in hold["accounts"]:
        rows = holds.held_messages(Doveadm(), hold, account, wanted.held_mailbox)
        counts = Counter(row["mailbox"] for row in rows)
        print(f"{account}: {len(rows)} messages")
        for mailbox, count in sorted(counts.items()):
            print(f"  {mailbox}: {count}" + (" (expunged by the user)" if mailbox == wanted.held_mailbox else ""))
    return 0


def hold_export(arguments: argparse.Namespace) -> int:
    """Export what a hold covers, with a manifest of hashes."""
    wanted = settings.read()
    hold = hold_named(wanted, arguments.name)
    if arguments.directory.exists():
        raise Refused(f"{arguments.directory} is there already; name a new directory")
    for line in holds.export(Doveadm(), hold, wanted.held_mailbox, arguments.directory, arguments.format):
        print(line)
    return 0


def hold_record(_arguments: argparse.Namespace) -> int:
    """Record in the ledger which holds were set or lifted; a deployment does this by itself."""
    with one_run() as run:
        state = read_state(run.settings.state_directory)
        if run.record_holds(state):
            write_state(run.settings.state_directory, {**state, **{name: run.known(state)[name] for name in ("holds", "released")}})
    return 0


def copies_in_backups(now: float) -> str:
    """Return what copies of an account that was erased *now* remain, and until when."""
    try:
        kept = backup.read_settings()
    except backup.Refused:
        return "the kit makes none of this host; delete what your own backup has"
    # The next backup after that day forgets what is older.
    until = time.strftime("%Y-%m-%d", time.gmtime(now + kept.keep_seconds + DAY))
    by = "" if kept.raw["prunes"] else f", which {kept.raw['pruned_by']} sees to"
    return f"in snapshots until {until}{by}"


def erase(arguments: argparse.Namespace) -> int:
    """Erase what the host keeps of an account that exists no longer."""
    account = arguments.account
    local = account.rpartition("@")[0]
    with one_run() as run:
        refusals = erasure.refusals(run, account, arguments.confirm)
        if not local or "/" in account or local.startswith("."):
            refusals.append(f"{account!r} is not an account's full address")
        if refusals:
            raise Refused("nothing was erased:\n" + "\n".join(f"  - {refusal}" for refusal in refusals))
        print(erasure.erase(run, account, run.settings.mail_root / place_of(account)))
    print(f"copies in backups: {copies_in_backups(time.time())}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="letterlock", description="What an operator asks of a mail host.")
    areas = top.add_subparsers(required=True, metavar="AREA")

    def command(area, name: str, action, text: str) -> argparse.ArgumentParser:
        made = area.add_parser(name, help=text, description=text)
        made.set_defaults(action=action)
        return made

    area = areas.add_parser("retention", help="policies and their runs").add_subparsers(required=True, metavar="COMMAND")
    run = command(area, "run", retention_run, "Run the policies for all accounts.")
    run.add_argument("--dry-run", action="store_true", help="say exactly what would go, and change nothing")
    run.add_argument(
        "--late", type=parse_duration, default=0, metavar="DURATION", help="with --dry-run: only what should have gone so long ago",
    )
    run.add_argument("--acknowledge", metavar="WORD", help="go on after a refusal, with the word that it printed")
    command(area, "fetched", retention_fetched, "Expunge what POP3 sessions fetched, as the policies say.")
    explain = command(area, "explain", retention_explain, "Say which policy holds for a mailbox, and why.")
    explain.add_argument("account")
    explain.add_argument("mailbox")
    area = areas.add_parser("ledger", help="the record of deletions").add_subparsers(required=True, metavar="COMMAND")
    command(area, "verify", ledger_verify, "Find a line that was removed, changed or moved, or an end that was cut off.")
    command(area, "key", ledger_key, "Print the public key that verifies the ledger.")
    command(area, "prove", ledger_prove, "State what remains of an account, checked against its mailboxes now.").add_argument("account")
    area = areas.add_parser("hold", help="legal holds").add_subparsers(required=True, metavar="COMMAND")
    command(area, "list", hold_list, "List the holds.")
    command(area, "show", hold_show, "Show what a hold covers, by account and mailbox.").add_argument("name")
    command(area, "record", hold_record, "Record in the ledger which holds were set or lifted; a deployment does this by itself.")
    export = command(area, "export", hold_export, "Export what a hold covers, with a manifest of hashes.")
    export.add_argument("name")
    export.add_argument("directory", type=Path, help="a new directory")
    export.add_argument("--format", choices=sorted(holds.WRITERS), default="maildir", help="maildir (the default) or mbox")
    scan_commands.add_scan_to(areas.add_parser("scan", help="malware").add_subparsers(required=True, metavar="COMMAND"), command)
    area = areas.add_parser("quarantine", help="mail that nobody may see").add_subparsers(required=True, metavar="COMMAND")
    scan_commands.add_quarantine_to(area, command)
    keys_commands.add_to(areas.add_parser("keys", help="keys that only their user's password opens").add_subparsers(
        required=True, metavar="COMMAND"), command)
    keys_commands.add_audit_to(areas, command)
    backup_commands.add_to(areas.add_parser("backup", help="backups").add_subparsers(required=True, metavar="COMMAND"), command)
    command_erase = areas.add_parser("erase", help="the right to erasure", description="Erase an account that exists no longer.")
    command_erase.set_defaults(action=erase)
    command_erase.add_argument("account")
    command_erase.add_argument("--confirm", required=True, metavar="ACCOUNT", help="the account's name once more")
    return top


def give_way() -> None:
    """Let those whom the host serves go first, where this is a service of its own and not a command in somebody's session.

    The kernel shares processors among sessions before it looks at what is nice in them. Where systemd has cgroups to share
    them by, CPUWeight= of the unit does the same. https://man7.org/linux/man-pages/man7/sched.7.html (autogroup)
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")


def main() -> int:
    """Run one command."""
    arguments = parser().parse_args()
    give_way()
    try:
        return arguments.action(arguments)
    except locks.Busy as busy:
        print(f"letterlock: {busy}", file=sys.stderr)
        return EX_TEMPFAIL
    except (Refused, backup.Refused, settings.Unusable, keyring.WrongSecret) as refused:
        print(f"letterlock: {refused}", file=sys.stderr)
        return 2
    except (Broken, Failed, NotSealed, restic.Fault, OSError) as fault:
        print(f"letterlock: {fault}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
