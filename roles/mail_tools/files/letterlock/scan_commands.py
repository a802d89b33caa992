"""The commands of `letterlock scan` and `letterlock quarantine`. Exit codes are those of `letterlock`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from letterlock import gate, lmtp_front, locks, metrics, remembered, scan_settings, spam
from letterlock.clamd import Unavailable
from letterlock.doveadm import Doveadm
from letterlock.durations import show_duration
from letterlock.notice import headers_of
from letterlock.putback import put_back
from letterlock.quarantine import Item, Quarantine
from letterlock.released import Released
from letterlock.retention import Refused
from letterlock.runs import one_run
from letterlock.signatures import Signatures, version
from letterlock.sweep import Sweep

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

# The first descriptor that systemd passes: sd_listen_fds(3).
FIRST_LISTENER = 3
# What clamsubmit says when its makers have it.
SUBMITTED = "Submission success!"


def write_metrics(wanted: scan_settings.ScanSettings, **news: float) -> None:
    """Write the textfile, with *news*."""
    with remembered.changed(scan_settings.STATE / "figures.json") as figures:
        figures.update(news)
        figures["quarantined"] = len(list(scan_settings.QUARANTINE.glob("*.json")))
        figures["signatures_timestamp_seconds"] = version().newest
        metrics.write(wanted.metrics_file, figures, metrics.SCAN_METRICS, "scan")


# ---- scan


def listeners(unit: str) -> list[socket.socket]:
    """Return the sockets that systemd passes; raise Refused when it does not."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise Refused(f"systemd starts this, by {unit}")
    return [socket.socket(fileno=FIRST_LISTENER + number) for number in range(int(os.environ["LISTEN_FDS"]))]


def front(_arguments: argparse.Namespace) -> int:
    """Serve LMTP on the sockets that systemd holds."""
    return lmtp_front.run(listeners("letterlock-lmtp.socket"))


def ask_gate(_arguments: argparse.Namespace) -> int:
    """Answer Dovecot's sessions on the sockets that systemd holds."""
    return gate.run(listeners("letterlock-gate.socket"))


def run_sweep(_arguments: argparse.Namespace) -> int:
    """Judge all stored mail by the current signatures."""
    started, wanted = time.monotonic(), scan_settings.read()
    if not version().usable:
        raise Refused("there are no signatures")
    with locks.only_one(scan_settings.STATE / "sweep.lock", 0):
        sweep = Sweep(wanted)
        why = None
        try:
            sweep.run()
        except Unavailable as unavailable:
            why = unavailable
        tally, seconds = sweep.tally, time.monotonic() - started
    print(
        f"sweep by signatures {sweep.number}: {tally.mailboxes} mailboxes, {tally.unchanged} without news, {tally.judged} messages judged, "
        f"{tally.taken} taken, {tally.failures} failures, {seconds:.1f} s"
    )
    for count, what in ((tally.passed_over, "accounts whose mail is"), (tally.sealed, "messages that are")):
        if count:
            print(f"passed over {count} {what} encrypted with their users' keys: the gate judges that, in a session")
    write_metrics(
        wanted, sweep_judged=tally.judged, sweep_taken=tally.taken, sweep_failures=tally.failures + bool(why),
        sweep_seconds=round(seconds, 3), **({} if why or tally.failures else {"last_sweep_timestamp_seconds": int(time.time())}),
    )
    if why:
        print(f"FAILED the rest is judged next time: {why}", file=sys.stderr)
    return int(bool(why or tally.failures))


def learn(_arguments: argparse.Namespace) -> int:
    """Have rspamd learn a message from standard input, whose first line says of which kind it is."""
    source = sys.stdin.buffer
    kind = source.readline(16).strip().decode(errors="replace")
    if kind not in (spam.SPAM, spam.HAM):
        raise Refused(f"{kind!r} is neither {spam.SPAM} nor {spam.HAM}")
    wanted = scan_settings.read()
    with tempfile.TemporaryFile(dir=scan_settings.STATE) as message:
        shutil.copyfileobj(source, message)
        said = spam.Rspamd(wanted.raw["spam"]["controller"], wanted.timeout).learn(message, kind)
    # No word of the message, nor whose it is.
    print(f"{kind}: {said}", file=sys.stderr)
    return 0


def prepare(_arguments: argparse.Namespace) -> int:
    """Put the signatures together before clamd starts with them."""
    signatures = Signatures(scan_settings.read())
    made = signatures.build()
    for fault in signatures.faults:
        print(f"FAILED {fault}", file=sys.stderr)
    print(f"signatures {made.identity}: {made.databases} databases")
    return 0


def refresh(_arguments: argparse.Namespace) -> int:
    """Bring what the sources hold into force, and tell of databases that are broken or old."""
    wanted = scan_settings.read()
    signatures = Signatures(wanted)
    try:
        changed = signatures.follow()
    except Unavailable as why:
        signatures.faults.append(str(why))
        changed = False
    faults = [*signatures.faults, *filter(None, [signatures.age_fault(time.time())])]
    for fault in faults:
        print(f"FAILED {fault}", file=sys.stderr)
    now = version()
    print(f"signatures {now.identity or '(none)'}: number {now.number}, {now.databases} databases, {'new' if changed else 'as before'}")
    write_metrics(wanted, signature_faults=len(faults))
    return int(bool(faults))


def status(_arguments: argparse.Namespace) -> int:
    """Say which signatures are in force, since when, and what is in quarantine."""
    wanted, now = scan_settings.read(), version()
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now.since))
    age = f"the newest {show_duration(time.time() - now.newest)} old" if now.newest else "none of ClamAV's own"
    known = f"number {now.number}, {now.databases} databases, {age}, in force since {since} UTC"
    print(f"signatures: {known if now.usable else 'none'}")
    fault = Signatures(wanted).age_fault(time.time())
    try:
        print(f"scanner: {wanted.clamd().ask('VERSION')}")
    except Unavailable as why:
        fault = str(why)
    print(f"quarantine: {len(list(scan_settings.QUARANTINE.glob('*.json')))} messages")
    if fault:
        print(f"FAILED {fault}", file=sys.stderr)
    return int(bool(fault))


# ---- quarantine


def quarantine() -> Quarantine:
    """Return this host's quarantine."""
    return Quarantine(scan_settings.read().recipients)


def named(arguments: argparse.Namespace) -> Item:
    """Return the item that the command names; raise Refused."""
    try:
        return quarantine().item(arguments.item)
    except KeyError:
        raise Refused(f"there is no item {arguments.item}; `letterlock quarantine list` shows them") from None


@contextlib.contextmanager
def opened(item: Item, arguments: argparse.Namespace) -> Iterator[BinaryIO]:
    """Give the message of *item*, opened with the identity that the command names."""
    with contextlib.ExitStack() as stack:
        if str(arguments.identity) == "-":
            # age reads a file; an identity never goes to the disk.
            identity: BinaryIO = os.fdopen(os.memfd_create("identity"), "r+b")
            identity.write(sys.stdin.buffer.read())
            identity.seek(0)
        else:
            identity = arguments.identity.open("rb")
        stack.enter_context(identity)
        message = stack.enter_context(tempfile.TemporaryFile(dir=scan_settings.STATE))
        quarantine().open(item, identity, message)
        message.seek(0)
        yield message


def show_all(arguments: argparse.Namespace) -> int:
    """List what is in quarantine."""
    items = [item for item in quarantine().items() if arguments.account in (None, item.account)]
    if arguments.json:
        print(json.dumps([asdict(item) for item in items], indent=2))
        return 0
    for item in items:
        print(item.line())
    print(f"{len(items)} messages")
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Show what is known of an item; with the identity, sender, subject and date too."""
    item = named(arguments)
    for name, value in asdict(item).items():
        if value not in (None, ()):
            print(f"{name}: {' '.join(value) if isinstance(value, tuple) else value}")
    if arguments.identity:
        with opened(item, arguments) as message:
            for name, value in headers_of(message).items():
                print(f"{name}: {value}")
    return 0


def release(arguments: argparse.Namespace) -> int:
    """Put a message back to where it was; it is not taken again for the same signature."""
    item = named(arguments)
    if item.account not in Doveadm().users():
        raise Refused(f"there is no account {item.account} any more")
    with opened(item, arguments) as message, one_run() as run:
        Released().add(item.fingerprint, item.signature)
        mailbox = put_back(item, message, scan_settings.read().mail_root)
        quarantine().drop(item, "released", into=mailbox)
        quarantine().record(run)
    print(f"{item.account}: back in {mailbox}" + ("" if mailbox == item.mailbox else f"; {item.mailbox} is not there any more"))
    return 0


def delete(arguments: argparse.Namespace) -> int:
    """Delete an item for good."""
    item = named(arguments)
    with one_run() as run:
        held = [hold["name"] for hold in run.holds_of(item.account)]
        if held:
            raise Refused(f"{item.account} is held by {', '.join(held)}; lift the hold first (mail_retention_holds)")
        quarantine().drop(item, "deleted")
        quarantine().record(run)
    print(f"{item.identity}: deleted")
    return 0


def submit(arguments: argparse.Namespace) -> int:
    """Send a message to ClamAV's makers as a false positive, with clamsubmit; it leaves this host in clear."""
    item = named(arguments)
    with opened(item, arguments) as message, tempfile.NamedTemporaryFile(dir=scan_settings.STATE) as file:
        file.write(message.read())
        file.flush()
        done = subprocess.run(
            ["clamsubmit", "-p", file.name, "-V", item.signature, "-N", arguments.name, "-e", arguments.email],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )
    # It ends with 0 after some faults, too.
    if done.returncode or SUBMITTED not in done.stdout:
        print(f"FAILED clamsubmit: exit code {done.returncode}: {done.stdout.strip()}", file=sys.stderr)
        return 1
    print(f"submitted {item.identity} as a false positive of {item.signature}")
    with one_run() as run:
        quarantine().note(item, "submitted")
        quarantine().record(run)
    return 0


def expire(_arguments: argparse.Namespace) -> int:
    """Delete what mail_scan_quarantine_keep_for lets go, but nothing of an account under a hold."""
    wanted = scan_settings.read()
    kept = quarantine()
    kept.drop_halves()
    with one_run() as run:
        items = kept.items()
        old = [item for item in items if item.time < run.now - wanted.keep_seconds]
        refusals = run.clock_refusals() if old else []
        if refusals:
            raise Refused("nothing was deleted: " + "; ".join(refusals))
        gone = [item for item in old if not run.holds_of(item.account)]
        for item in gone:
            kept.drop(item, "expired")
        quarantine().record(run)
    print(f"{len(gone)} of {len(items)} messages expired, {len(old) - len(gone)} stay because of holds")
    write_metrics(wanted)
    return 0


def record(_arguments: argparse.Namespace) -> int:
    """Write into the ledger what was put into quarantine since the last time."""
    with one_run() as run:
        count = quarantine().record(run)
    print(f"{count} lines in the ledger")
    write_metrics(scan_settings.read())
    return 0


def add_scan_to(area: argparse._SubParsersAction, command: Callable) -> None:
    """Add `letterlock scan`."""
    command(area, "front", front, "Serve LMTP on the sockets that systemd holds, and judge what comes in.")
    command(area, "gate", ask_gate, "Answer Dovecot's sessions on the sockets that systemd holds.")
    command(area, "sweep", run_sweep, "Judge all stored mail by the current signatures, newest first.")
    command(area, "learn", learn, "Have rspamd learn a message from standard input; Sieve calls it.")
    command(area, "prepare", prepare, "Put the signatures together before clamd starts.")
    command(area, "signatures", refresh, "Bring the databases of all sources into force; tell of those that are broken or old.")
    command(area, "status", status, "Say which signatures are in force, since when, and what is in quarantine.")


def add_quarantine_to(area: argparse._SubParsersAction, command: Callable) -> None:
    """Add `letterlock quarantine`."""
    listing = command(area, "list", show_all, "List what is in quarantine.")
    listing.add_argument("--account", help="of this account only")
    listing.add_argument("--json", action="store_true", help="as JSON, with all that is known of each")
    for name, action, text in (
        ("show", show, "Show what is known of an item."),
        ("release", release, "Put a message back; it is not taken again for the same signature."),
        ("delete", delete, "Delete an item for good."), ("submit", submit, "Send it to ClamAV's makers as a false positive, in clear."),
    ):
        made = command(area, name, action, text)
        made.add_argument("item")
        if name != "delete":
            made.add_argument(
                "--identity", type=Path, required=name != "show", metavar="FILE",
                help="the age identity that opens it; - reads it from standard input",
            )
        if name == "submit":
            made.add_argument("--name", required=True, help="who submits it")
            made.add_argument("--email", required=True, help="where the answer goes")
    command(area, "expire", expire, "Delete what mail_scan_quarantine_keep_for lets go.")
    command(area, "record", record, "Write into the ledger what it does not know yet.")
