"""The commands of `letterlock backup`. Exit codes are those of `letterlock`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import backup, drill, keystore, locks, metrics, policies, remembered, restore, session_key
from letterlock.asking import ask
from letterlock.durations import show_duration
from letterlock.ledger import Ledger
from letterlock.restic import Restic
from letterlock.settings import read

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

# A second backup gives way to the one that is under way, whose snapshot will be as new as its own.
GIVES_WAY_SECONDS = 0
# What a restore gives the programs of one that was killed, which may still fetch or add messages.
ENDS_SECONDS = 30


def progress(text: str) -> None:
    """Print a line at once where standard output is for something else."""
    print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


@contextlib.contextmanager
def alone(settings: backup.Settings, seconds: float = GIVES_WAY_SECONDS) -> Iterator[None]:
    """Hold the lock of those that use the repository; remove what restic's own lock one that was killed left there."""
    if settings.raw.get("elsewhere"):
        # A backup server has several repositories.
        with locks.only_one(backup.HOME / f"{settings.host}.lock"):
            yield
        return
    with locks.only_one(locks.BACKUP, seconds):
        if backup.read_state().get("unfinished"):
            Restic(progress).unlock()
        backup.write_state(unfinished=True)
        try:
            yield
        finally:
            # Not reached by one that is killed.
            backup.write_state(unfinished=False)


def write_metrics(settings: backup.Settings, **news: float) -> None:
    """Write the textfile, with *news*."""
    with contextlib.ExitStack() as stack:
        # A backup server prunes for several hosts, and each has a textfile of its own there.
        known = {} if settings.raw.get("elsewhere") else stack.enter_context(remembered.changed(backup.HOME / "state.json"))
        figures = known.setdefault("figures", {})
        figures |= news
        metrics.write(settings.metrics_file, figures, metrics.BACKUP_METRICS, "backup")


def run(arguments: argparse.Namespace) -> int:
    """Back up, and forget what is old."""
    settings = backup.read_settings()
    started, now = time.monotonic(), time.time()
    with alone(settings):
        work = backup.Backup(settings, now, say)
        done = work.execute(adopt=arguments.adopt)
        for failure in done.failures:
            print(f"FAILED {failure}", file=sys.stderr)
        print(
            f"snapshot {done.snapshot[:8]}: {done.accounts} accounts, {done.messages} messages, {done.added} octets added, "
            f"{done.gone} expunged meanwhile, {done.unhashed} without a hash, {len(done.failures)} failures, "
            f"{time.monotonic() - started:.1f} s"
        )
        success = {} if done.failures else {"last_success_timestamp_seconds": int(now)}
        seconds = round(time.monotonic() - started, 3)
        write_metrics(settings, messages=done.messages, added_bytes=done.added, failures=len(done.failures), seconds=seconds, **success)
        if settings.raw["prunes"] and is_due(settings, work.snapshots, now):
            forget_due(settings, work.restic.snapshots(), now, dry_run=False)
        else:
            write_figures_of(settings, work.snapshots)
    return int(bool(done.failures))


def is_due(settings: backup.Settings, remembered: list[dict], now: float) -> bool:
    """Tell whether to ask the repository which snapshots are due: one that is *remembered* is, or they make no sense."""
    try:
        return bool(backup.due(settings, remembered, now))
    except backup.Refused:
        # Somebody may have removed that one by hand. If it is there, the repository's own list is refused, too.
        return True


def write_figures_of(settings: backup.Settings, snapshots: list[dict]) -> None:
    """Write how many snapshots of this host there are, and how old they are."""
    times = [backup.parse_time(snapshot["time"]) for snapshot in snapshots if snapshot["hostname"] == settings.host]
    write_metrics(settings, snapshots=len(times), **({"oldest_snapshot_timestamp_seconds": int(min(times))} if times else {}))


def forget_due(settings: backup.Settings, snapshots: list[dict], now: float, *, dry_run: bool) -> None:
    """Forget those of the *snapshots* whose time has passed, record it, and prune."""
    restic = Restic(say)
    going = backup.due(settings, snapshots, now)
    for snapshot in going:
        print(f"{'would forget' if dry_run else 'forgets'} {snapshot['short_id']} of {snapshot['time'][:19]}")
    if going and not dry_run:
        restic.run("forget", *(snapshot["id"] for snapshot in going))
        restic.run("prune")
        with locks.only_one(locks.RETENTION):
            record([{"kind": "forget", "snapshot": snapshot["id"], "made": snapshot["time"]} for snapshot in going], now)
    left = [snapshot for snapshot in snapshots if snapshot not in going]
    write_figures_of(settings, left)
    if not dry_run and not settings.raw.get("elsewhere"):
        backup.write_state(snapshots=[snapshot for snapshot in left if snapshot["hostname"] == settings.host])


def record(entries: list[dict], now: float) -> None:
    """Write *entries* into the ledger, signed; the caller holds retention's lock."""
    ledger = Ledger()
    ledger.open()
    try:
        ledger.append(entries, now)
        ledger.sign(now)
    finally:
        ledger.close()


def forget(arguments: argparse.Namespace) -> int:
    """Forget what is old."""
    settings = backup.read_settings(arguments.settings)
    with alone(settings):
        if not settings.raw["prunes"] and not arguments.dry_run:
            raise backup.Refused(f"{settings.raw['pruned_by']} forgets the backups of this host, as mail_backup_pruned_by says")
        forget_due(settings, Restic(say).snapshots(), time.time(), dry_run=arguments.dry_run)
    return 0


def check(_arguments: argparse.Namespace) -> int:
    """Let restic read a share of the repository."""
    settings = backup.read_settings()
    with alone(settings):
        restic = Restic(say)
        # A random share, another one each time.
        restic.check(f"--read-data-subset={settings.raw['check_percent']}%")
    write_metrics(settings, last_check_timestamp_seconds=int(time.time()))
    print(f"whole, as far as {settings.raw['check_percent']}% of the data tell")
    return 0


def show(_arguments: argparse.Namespace) -> int:
    """List the snapshots."""
    settings = backup.read_settings()
    for snapshot in Restic(say).snapshots():
        if snapshot["hostname"] == settings.host and backup.GONE not in snapshot["tags"]:
            goes = backup.parse_time(snapshot["time"]) + settings.keep_seconds
            print(f"{snapshot['short_id']}  {snapshot['time'][:19]}  until {time.strftime('%Y-%m-%d', time.gmtime(goes))}")
    print(f"each stays for {show_duration(settings.keep_seconds)}")
    bound = policies.gone_everywhere_after(read().policies, settings.keep_seconds)
    if bound:
        print(f"mail under a policy is gone from the host and from all of them {show_duration(bound[0])} after it was saved ({bound[1]})")
    return 0


def bring_back(arguments: argparse.Namespace) -> int:
    """Bring mail back from a snapshot."""
    settings = backup.read_settings()
    keys = {}
    if arguments.password:
        if len(arguments.account) != 1:
            raise backup.Refused("--password is that of one account; name it alone")
        ring = keystore.read(arguments.account[0])
        keys[ring.account] = session_key.settings_for(ring, ask("password"), settings.raw["about"]["dovecot"])
    # Retention must not run in between, nor a backup of a host that is half restored.
    with alone(settings, ENDS_SECONDS), locks.only_one(locks.RETENTION):
        work = restore.Restore(settings, arguments.snapshot, arguments.host, say)
        work.keys = keys
        into = f"Restored/{work.snapshot['time'][:10]}" if arguments.beside else arguments.into
        wish = restore.Wish(tuple(arguments.account), tuple(arguments.mailbox), tuple(shlex.split(arguments.search)), into)
        outcome = work.execute(wish, dry_run=arguments.dry_run)
        if not arguments.dry_run:
            if not wish.accounts and not wish.selective:
                backup.write_state(repository=work.repository)
            added = sum(outcome.added.values())
            record([{"kind": "restore", "snapshot": work.snapshot["id"], "host": work.host, "accounts": len(outcome.restored),
                     "added": added, "differences": len(outcome.differences)}], time.time())
    for line in restore.lines(outcome, dry_run=arguments.dry_run):
        say(line)
    return int(bool(outcome.differences))


def exercise(arguments: argparse.Namespace) -> int:
    """Restore a host's backup here, read every message back, print the report as JSON, and remove it."""
    settings = backup.read_settings()
    with alone(settings), locks.only_one(locks.RETENTION):
        begun = arguments.begun or time.time()
        report = drill.Drill(settings, arguments.host, arguments.percent, begun, progress).execute(arguments.snapshot)
    print(json.dumps({**dataclasses.asdict(report), "proven": report.proven}, indent=2))
    return int(not report.proven)


def note_drill(arguments: argparse.Namespace) -> int:
    """Write down, on the host whose backup it was, that a drill proved it."""
    settings = backup.read_settings()
    write_metrics(
        settings, last_drill_timestamp_seconds=int(arguments.ended), drill_rto_seconds=round(arguments.rto, 1),
        drill_messages=arguments.messages,
    )
    return 0


def add_to(area: argparse._SubParsersAction, command: Callable) -> None:
    """Add the commands to the command line."""
    command(area, "run", run, "Back up, and forget what is old.").add_argument(
        "--adopt", action="store_true", help="go on with a repository that holds backups of an earlier host of this name"
    )
    command(area, "list", show, "List the snapshots of this host.")
    command(area, "check", check, "Let restic read a share of the repository's data.")
    old = command(area, "forget", forget, "Forget the snapshots whose time has passed, and prune.")
    old.add_argument("--dry-run", action="store_true", help="say which would go, and change nothing")
    old.add_argument("--settings", type=Path, default=backup.FILE, help="on a backup server: what to do for which host")
    bring = command(area, "restore", bring_back, "Bring mail back from a snapshot, into place or beside it, and compare it.")
    bring.add_argument("account", nargs="*", help="accounts; all of the snapshot if none is named")
    bring.add_argument("--snapshot", default="latest", help="latest, an identity, or a day or moment up to which it was made")
    bring.add_argument("--host", help="the host whose snapshot it is, if not this one's")
    bring.add_argument("--mailbox", action="append", default=[], help="this mailbox only; may be given more than once")
    bring.add_argument("--search", default="", help="what this search finds only, such as 'from ada@example.org since 2026-11-01'")
    where = bring.add_mutually_exclusive_group()
    where.add_argument("--into", default="", metavar="MAILBOX", help="put it below this mailbox")
    where.add_argument("--beside", action="store_true", help="put it below Restored/ and the day of the snapshot")
    bring.add_argument("--password", action="store_true", help="ask for the account's password, where its mail is encrypted")
    bring.add_argument("--dry-run", action="store_true", help="say what would come back, and change nothing")
    test = command(area, "drill", exercise, "On a scratch host: restore a host's backup, read it back over IMAPS and POP3S, remove it.")
    test.add_argument("--host", required=True, help="the host whose backup it is")
    test.add_argument("--snapshot", default="latest", help="latest, an identity, or a day or moment up to which it was made")
    test.add_argument("--percent", type=int, default=100, help="how many of each mailbox's messages are read in full (100)")
    test.add_argument("--begun", type=float, help="when the drill began, in seconds since the epoch, if before this command")
    note = command(area, "note-drill", note_drill, "On the host whose backup it was: note for the metrics that a drill proved it.")
    note.add_argument("--ended", type=float, required=True, help="when, in seconds since the epoch")
    note.add_argument("--rto", type=float, required=True, help="how long it took until all mail was back, in seconds")
    note.add_argument("--messages", type=int, required=True, help="how many messages were read back")
