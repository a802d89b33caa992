"""A backup: manifests and indexes first, then all files by restic, then the proof that nothing was passed over.

What the snapshot promises: every message that was in a mailbox when its indexes
were copied is in it, with its flags, UID and dates of that moment, unless it was
expunged before restic came to its file. Which those are is written down in a
small snapshot of its own (tag `gone`), so that nothing missing is ever unexplained.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import capture, keystore, locks, manifest, parts, remembered, stored
from letterlock.accounts import place_of
from letterlock.batches import chunks, read_lines
from letterlock.changes import Changes, is_worth
from letterlock.doveadm import ACCOUNTS_AT_ONCE, Doveadm, Failed
from letterlock.durations import parse_duration, show_duration
from letterlock.ledger import write_durably
from letterlock.restic import INCOMPLETE, KEY_HINT_FILE, NO_PARENT, NO_REPOSITORY, PRUNER_PASSWORD_FILE, TAG, Fault, Restic, literal, parsed
from letterlock.scan_settings import QUARANTINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TextIO

CONFIGURATION = Path("/etc/letterlock")
FILE = CONFIGURATION / "dovecot/current/backup.json"
STATE = Path("/var/lib/letterlock")
HOME = STATE / "backup"
STAGE = HOME / "stage"
# Messages whose manifests are in memory.
MESSAGES_AT_ONCE = 100_000
# restic passes over a file that is renamed under its eyes; what it missed it finds when it looks again.
LOOKS = 4
# What restic says of most files, millions of them: a name without an escape, for which no JSON need be parsed.
PLAIN_ITEM = re.compile(r'\{"message_type":"verbose_status","action":"[a-z ]+","item":"([^"\\]+)"')
# The first restic that can do without a scan.
SCANS_LESS = (0, 15)
CLOCK_SECONDS = 300
GONE = "gone"
# Where a restore puts mail before it is in its place, below the mail's root.
SCRATCH = ".letterlock-restore"


class Refused(Exception):
    """Nothing was changed; the message says why and how to go on."""


@dataclass(frozen=True)
class Settings:
    """What the role says of backups. Times are seconds."""

    raw: dict
    host: str
    mail_root: Path
    keep_seconds: int
    metrics_file: Path
    held: dict[str, str]


def read_settings(file: Path = FILE) -> Settings:
    """Return the settings; raise Refused where no backup is configured."""
    try:
        raw = json.loads(file.read_text())
    except FileNotFoundError:
        raise Refused(f"{file}: not there; mail_backup_repository is not set for this host") from None
    return Settings(
        raw=raw, host=raw["host"], mail_root=Path(raw["mail_root"]), keep_seconds=parse_duration(raw["keep_for"]),
        metrics_file=Path(raw["metrics_file"]), held=dict.fromkeys(raw["held_accounts"], raw["held_mailbox"]),
    )


@dataclass
class Outcome:
    """What a backup came to."""

    snapshot: str = ""
    accounts: int = 0
    messages: int = 0
    added: int = 0
    gone: int = 0
    # Messages whose text can't be read from their files.
    unhashed: int = 0
    failures: list[str] = field(default_factory=list)


def read_state() -> dict:
    """Return what earlier backups left: the repository's identity, and figures."""
    return remembered.read(HOME / "state.json")


def write_state(**news: object) -> None:
    """Add *news* to the state."""
    with remembered.changed(HOME / "state.json") as known:
        known.update(news)


class Backup:
    """One backup."""

    def __init__(self, settings: Settings, now: float, say: Callable[[str], None] = print) -> None:
        """Take the settings and the clock; *say* gets a line now and then."""
        self.settings, self.now, self.say = settings, now, say
        self.restic = Restic(say)
        self.outcome = Outcome()
        # Of all hosts, the oldest first.
        self.snapshots: list[dict] = []
        self.scans_less = False
        # Whether message files change their names: then restic may pass one over without a word.
        self.renames = False

    def execute(self, *, adopt: bool = False) -> Outcome:
        """Do all of it; raise Fault or Refused when there is no snapshot to rely on."""
        if self.settings.raw["drill"]:
            raise Refused("this is a scratch host (mail_backup_drill), of which nothing is backed up")
        STAGE.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", dir=HOME) as spool:
            # The repository's answers take as long as the manifests of a small host.
            with ThreadPoolExecutor(1) as beside:
                opening = beside.submit(self.open_repository, adopt=adopt)
                self.stage(spool)
                opening.result()
            for left in reversed(range(LOOKS)):
                missing = self.restic.patiently(lambda: self.known_snapshot(spool, adopt=adopt))
                passed_over = self.on_disk(missing)
                if not passed_over:
                    break
                if not left:
                    raise Fault(f"{len(passed_over)} messages are not in the snapshot, such as {'/'.join(passed_over[0])}")
                self.say(f"{len(passed_over)} messages were renamed while restic looked; it looks again")
        self.write_gone(missing)
        return self.outcome

    def open_repository(self, *, adopt: bool) -> None:
        """Get to know the repository if this host has none yet; raise Fault or Refused.

        That it is still the one it was shows when restic finds this host's last snapshot in it: to ask before would take half a
        second, in which the password becomes a key.
        """
        state = read_state()
        self.snapshots = state.get("snapshots", [])
        if not state.get("last") or not self.snapshots:
            self.get_to_know(state.get("repository"), adopt=adopt)
        self.let_pruner_in()
        self.scans_less = self.restic.version() >= SCANS_LESS

    def known_snapshot(self, spool: TextIO, *, adopt: bool) -> list[tuple[str, str]]:
        """Make the snapshot, and return what `snapshot` does; if this host's last one is not there, say what became of the repository."""
        try:
            return self.snapshot(spool)
        except Fault as fault:
            if not str(fault).startswith((NO_PARENT, NO_REPOSITORY)):
                raise
        self.get_to_know(read_state().get("repository"), adopt=adopt)
        return self.snapshot(spool)

    def get_to_know(self, known: str | None, *, adopt: bool) -> None:
        """Make the repository if this host never had one; raise Fault when the one it had, of the *known* identity, is not there.

        A host that never made a backup, and finds some of its name, was lost and set up again: a backup of its empty
        mailboxes must not become the newest. It is refused unless it is to *adopt* them.
        """
        identity = self.restic.identity()
        if identity is None:
            if known:
                raise Fault(
                    f"mail_backup_repository holds no repository; this host's backups went to one with the identity {known}; "
                    f"if it was changed on purpose, remove {HOME / 'state.json'}"
                )
            self.restic.run("init")
            identity = self.restic.identity()
            self.say("made the repository")
        if known and known != identity:
            raise Fault(
                f"mail_backup_repository is not the one that this host's backups went to ({known}); if it was changed on purpose, "
                f"remove {HOME / 'state.json'}"
            )
        self.snapshots = self.restic.snapshots()
        if not known and not adopt and (own := list(filter(self.is_own, self.snapshots))):
            raise Refused(
                f"this host never made a backup, and the repository holds {len(own)} of a host of its name; bring that one's mail back "
                "first (letterlock backup restore), or go on without it (letterlock backup run --adopt)"
            )
        write_state(repository=identity)
        self.note_snapshots()

    def note_snapshots(self) -> None:
        """Remember which snapshots of this host there are; of those that another host forgets, which it can't have forgotten yet."""
        own = list(filter(self.is_own, self.snapshots))
        if not self.settings.raw["prunes"]:
            oldest = self.now - self.settings.keep_seconds
            own = [snapshot for snapshot in own[:-1] if parse_time(snapshot["time"]) > oldest] + own[-1:]
        write_state(snapshots=own)

    def is_own(self, snapshot: dict) -> bool:
        """Tell whether a snapshot is of this host."""
        return snapshot["hostname"] == self.settings.host

    def let_pruner_in(self) -> None:
        """Add the password of the host that prunes to the repository, once."""
        if not PRUNER_PASSWORD_FILE.is_file():
            return
        digest = hashlib.sha256(PRUNER_PASSWORD_FILE.read_bytes()).hexdigest()
        if read_state().get("pruner") != digest:
            self.restic.run("key", "add", "--new-password-file", str(PRUNER_PASSWORD_FILE))
            own = next(key["id"] for key in json.loads(self.restic.run("key", "list", "--json")) if key["current"])
            write_durably(KEY_HINT_FILE, own.encode())
            self.restic = Restic(self.say)
            write_state(pruner=digest)
            self.say("gave the host that prunes a key of its own")

    # ---- what changes in place

    def stage(self, spool: TextIO) -> None:
        """Copy indexes, write manifests, and write to *spool* which message files there are."""
        accounts = Doveadm().users()
        homes = {self.home(account) for account in accounts}
        for some in chunks(accounts, ACCOUNTS_AT_ONCE):
            before = manifest.statuses(some, self.settings.held)
            for part in self.parts(before):
                self.stage_accounts(part, before, spool)
        self.outcome.accounts = len(accounts)
        self.forget_accounts(accounts)
        # Mail of accounts that were removed but not erased.
        for home in sorted(set(self.settings.mail_root.glob("*/*")) - homes):
            if home.is_dir() and not home.is_symlink() and not home.parent.name.startswith("."):
                self.capture(home, spool)
        self.stage_state()
        about = {"begun": int(self.now), "accounts": len(accounts), "messages": self.outcome.messages, **self.settings.raw["about"]}
        write_durably(STAGE / "manifest.json", json.dumps(about).encode())

    @staticmethod
    def parts(statuses: dict[str, list[dict] | Failed]) -> Iterator[list[str]]:
        """Yield the accounts in lists whose messages fit into memory."""
        part, messages = [], 0
        for account, boxes in statuses.items():
            count = 0 if isinstance(boxes, Failed) else sum(int(box["messages"]) for box in boxes)
            if part and messages + count > MESSAGES_AT_ONCE:
                yield part
                part, messages = [], 0
            part.append(account)
            messages += count
        if part:
            yield part

    def stage_accounts(self, accounts: list[str], before: dict[str, list[dict] | Failed], spool: TextIO) -> None:
        """Copy the indexes of *accounts* and write their manifests; *before* are the statuses of their mailboxes."""
        last = {account: manifest.read(STAGE, account) for account in accounts}
        since = self.changes(last, before)
        # Asked before the indexes are copied, because asking makes Dovecot cache a saved date that a busy delivery did not.
        found = dict(manifest.messages(accounts, self.settings.held, {account: changes.query for account, changes in since.items()}))
        self.ask_for_all(found, since, [
            account for account, changes in since.items()
            if isinstance(found[account], Failed) or not changes.is_whole(found[account])
        ])
        for account in accounts:
            self.capture(self.home(account), spool)
        after = manifest.statuses(accounts, self.settings.held)
        self.ask_for_all(found, since, [account for account in accounts if after[account] != before[account]])
        hashes = self.hashes(last, before, found)
        for account in accounts:
            boxes, rows = before[account], found[account]
            if isinstance(boxes, Failed) or isinstance(rows, Failed):
                self.outcome.failures.append(f"{account}: no manifest: {boxes if isinstance(boxes, Failed) else rows}")
                parts.remove(manifest.path_of(STAGE, account))
                continue
            standing = since[account].standing if account in since else {}
            made = manifest.of_account(account, boxes, rows, hashes[account], standing)
            manifest.write(STAGE, made)
            of_messages = [message for box in made["mailboxes"] for message in box["messages"]]
            self.outcome.messages += len(of_messages)
            self.outcome.unhashed += sum(not message[manifest.HASH] for message in of_messages)

    def changes(self, last: dict[str, dict | None], statuses: dict[str, list[dict] | Failed]) -> dict[str, Changes]:
        """Return {account: what changed since its *last* manifest} of those that are asked for that only."""
        return {
            account: Changes(made, statuses[account]) for account, made in last.items()
            if made and account not in self.settings.held and not isinstance(statuses[account], Failed)
            and is_worth(account, statuses[account], self.now)
        }

    def ask_for_all(self, found: dict[str, list[dict] | Failed], since: dict[str, Changes], accounts: list[str]) -> None:
        """Ask *accounts* for all messages, whatever was *found*; of their last manifests nothing holds any more."""
        if accounts:
            found |= manifest.messages(accounts, self.settings.held)
        for account in accounts:
            since.pop(account, None)

    def hashes(
        self, last: dict[str, dict | None], statuses: dict[str, list[dict] | Failed], rows: dict[str, list[dict] | Failed],
    ) -> dict[str, dict[str, dict[int, str]]]:
        """Return {account: {mailbox GUID: {UID: hash of the text}}}: what the *last* manifests have, and that of other *rows*."""
        found: dict[str, dict[str, dict[int, str]]] = {}
        wanted: list[tuple[Path, str, set[int]]] = []
        of_wanted: list[dict[int, str]] = []
        for account, made in last.items():
            if isinstance(statuses[account], Failed) or isinstance(rows[account], Failed):
                continue
            found[account] = manifest.hashes_in(made)
            uids: dict[str, set[int]] = {}
            for row in rows[account]:
                uids.setdefault(row["mailbox-guid"], set()).add(int(row["uid"]))
            for box in statuses[account]:
                known = found[account].setdefault(box["guid"], {})
                if new := uids.get(box["guid"], set()) - known.keys():
                    wanted.append((self.home(account), box["mailbox"], new))
                    of_wanted.append(known)
        for known, new in zip(of_wanted, stored.all_hashes(wanted), strict=True):
            known.update(new)
        return found

    def home(self, account: str) -> Path:
        """Return where the mail of *account* lies."""
        return self.settings.mail_root / place_of(account)

    def capture(self, home: Path, spool: TextIO) -> None:
        """Copy the indexes below *home*."""
        if not home.is_dir():
            return
        try:
            captured = capture.capture(self.settings.mail_root, home, STAGE / "indexes")
            for found in captured:
                self.renames = self.renames or found.renames
                spool.write(json.dumps([found.directory, found.names]) + "\n")
        except (capture.Busy, OSError) as fault:
            self.outcome.failures.append(f"{home}: its indexes could not be copied: {fault}")

    def forget_accounts(self, accounts: list[str]) -> None:
        """Remove manifests and indexes of accounts that are gone."""
        kept = {manifest.path_of(STAGE, account) for account in accounts}
        for file in (STAGE / "manifests").glob("*/*"):
            if file.with_name(parts.whole(file.name)) not in kept:
                file.unlink()
        for staged in (STAGE / "indexes").glob("*/*"):
            if not (self.settings.mail_root / staged.relative_to(STAGE / "indexes")).is_dir():
                shutil.rmtree(staged)

    def stage_state(self) -> None:
        """Copy the ledger and what runs remember, while no run writes them."""
        with locks.only_one(locks.RETENTION):
            self.copy_state(STAGE / "state")

    @staticmethod
    def copy_state(target: Path) -> None:
        """Copy it to *target*."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700)
        for name in ("last_run.json", "figures.json"):
            if (STATE / name).is_file():
                shutil.copy2(STATE / name, target / name)
        if (STATE / "ledger").is_dir():
            shutil.copytree(STATE / "ledger", target / "ledger")
        for name in ("marks.sqlite", "released.sqlite"):
            if (STATE / name).is_file():
                with contextlib.closing(sqlite3.connect(STATE / name)) as live, contextlib.closing(sqlite3.connect(target / name)) as copy:
                    live.backup(copy)
        keystore.copy_to(target / "keys")
        if QUARANTINE.is_dir():
            (target / QUARANTINE.name).mkdir(mode=0o700)
            for file in [*QUARANTINE.glob("*.json"), *QUARANTINE.glob("*.age")]:
                # Sealed and never written again: a link is as good as a copy.
                with contextlib.suppress(FileNotFoundError):
                    os.link(file, target / QUARANTINE.name / file.name)

    # ---- restic

    def arguments(self) -> list[str]:
        """Return what restic is asked: to back up all that belongs to it, and to say of each file that it did."""
        root = str(self.settings.mail_root)
        excluded = [
            # Each pattern costs a tenth of a second for 100,000 files: one for both of capture.INDEXES, and one for what is being
            # erased, restored (SCRATCH) or encrypted (sealing.ASIDE).
            f"{literal(root)}/**/dovecot*.index*", f"{literal(root)}/.letterlock-[er]*",
        ]
        # Named for the same reason: to exclude what stays out would cost two patterns more.
        apart = {"backup", *(() if self.settings.raw["certificates"] else ("tls",))}
        configuration = sorted(str(each) for each in CONFIGURATION.iterdir() if each.name not in apart)
        limit = self.settings.raw["upload_limit"]
        # The first time it is mostly mail. If Dovecot has compressed that, it can't be made smaller; indexes can, later.
        own = [snapshot for snapshot in self.snapshots if self.is_own(snapshot) and GONE not in snapshot["tags"]]
        mostly_compressed = self.settings.raw["compressed"] and not own
        return [
            *(["--limit-upload", str(limit)] if limit else []),
            *(["--compression", "off"] if mostly_compressed else []),
            "backup", *(["--verbose=2"] if self.renames else []), "--host", self.settings.host, "--tag", TAG,
            # Without a look beforehand at how much there is: how many messages there are is known.
            *(["--no-scan"] if self.scans_less else []),
            # By itself restic looks for one of the very same paths.
            *(["--parent", own[-1]["id"]] if own else []),
            *(word for pattern in excluded for word in ("--exclude", pattern)), root, str(STAGE), *configuration,
        ]

    def snapshot(self, spool: TextIO) -> list[tuple[str, str]]:
        """Make the snapshot; return (directory, name) of the message files of *spool* that are not in it."""
        said: dict = {"unread": []}
        if self.renames:
            missing = list(self.not_among(self.backed_up(said), spool))
        else:
            # Here restic reads each file that is there, or says that it did not.
            deque(self.backed_up(said), maxlen=0)
            missing = sorted({*self.gone_by_now(spool), *said["unread"]})
        if "snapshot_id" not in said:
            raise Fault("restic ended well and named no snapshot")
        identity = self.outcome.snapshot = said["snapshot_id"]
        self.outcome.added += said["data_added"]
        made = datetime.datetime.now(datetime.UTC).isoformat()
        self.snapshots.append({"id": identity, "short_id": identity[:8], "time": made, "hostname": self.settings.host, "tags": [TAG]})
        write_state(last=identity)
        self.note_snapshots()
        return missing

    def backed_up(self, said: dict) -> Iterator[tuple[str, set[str]]]:
        """Let restic back up; yield (directory of a mailbox, the stems of its message files); put its summary into *said*.

        restic works on several files at once, and names a directory when all that is in it is done.
        """
        root = f"{self.settings.mail_root}/"
        under_way: dict[str, set[str]] = {}
        for line in self.restic.lines(*self.arguments(), accept=(0, INCOMPLETE)):
            plain = PLAIN_ITEM.match(line)
            if plain:
                item = plain.group(1)
            elif (message := parsed(line)).get("message_type") == "verbose_status":
                item = message["item"]
            else:
                self.hear(message, said)
                continue
            if not item.startswith(root):
                continue
            directory, name = os.path.split(item[len(root):])
            if not name:
                if directory in under_way:
                    yield directory, under_way.pop(directory)
                continue
            if os.path.basename(directory) in ("cur", "new"):  # noqa: PTH119  # millions of them
                directory = os.path.dirname(directory)  # noqa: PTH120  # so are these
            under_way.setdefault(directory, set()).add(stem(name))
        yield from under_way.items()

    def hear(self, message: dict, said: dict) -> None:
        """Put restic's summary, and which files of the mail it could not read, into *said*; tell how far it is."""
        kind = message.get("message_type")
        if kind == "summary":
            said.update(message)
        elif kind == "status":
            self.say(f"{message.get('files_done', 0)} files of {self.outcome.messages} messages")
        elif kind == "error" and (item := message.get("item", "")).startswith(root := f"{self.settings.mail_root}/"):
            said["unread"].append(os.path.split(item[len(root):]))

    def gone_by_now(self, spool: TextIO) -> Iterator[tuple[str, str]]:
        """Yield (directory, name) of the message files of *spool* that are not on the disk any more.

        Some of them restic may have read before they were expunged: a restore is content with the rest.
        """
        for directory, names in read_lines(spool):
            there: set[str] = set()
            with contextlib.suppress(FileNotFoundError):
                there.update(capture.names_in(self.settings.mail_root / directory))
            yield from ((directory, name) for name in names if name not in there)

    @staticmethod
    def not_among(backed_up: Iterable[tuple[str, set[str]]], spool: TextIO) -> Iterator[tuple[str, str]]:
        """Yield (directory, name) of the message files of *spool* that are not *backed_up*, {directory: stems}."""
        offsets: dict[str, int] = {}
        spool.seek(0)
        while True:
            offset = spool.tell()
            line = spool.readline()
            if not line:
                break
            offsets[json.loads(line)[0]] = offset
        for directory, names in chain(backed_up, ((directory, set()) for directory in list(offsets))):
            if directory in offsets:
                spool.seek(offsets.pop(directory))
                for name in json.loads(spool.readline())[1]:
                    if stem(name) not in names:
                        yield directory, name

    def on_disk(self, missing: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return those (directory, name) whose message files are on the disk now, under whatever flags."""
        found = []
        for directory, entries in groupby(missing, key=lambda entry: entry[0]):
            path = self.settings.mail_root / directory
            folders = [folder for folder in (path / "cur", path / "new") if folder.is_dir()] or [path]
            there = {stem(name) for folder in folders if folder.is_dir() for name in capture.names_in(folder)}
            found += [entry for entry in entries if stem(entry[1]) in there]
        return found

    def write_gone(self, missing: list[tuple[str, str]]) -> None:
        """Keep with the snapshot which of its messages were expunged while it was made."""
        self.outcome.gone = len(missing)
        if missing:
            file = HOME / "gone.json"
            write_durably(file, json.dumps({"snapshot": self.outcome.snapshot, "gone": missing}).encode())
            self.restic.run("backup", "--host", self.settings.host, "--tag", f"{TAG},{GONE},{self.outcome.snapshot[:8]}", str(file))
            file.unlink()
            self.snapshots = self.restic.snapshots()
            self.note_snapshots()


def stem(name: str) -> str:
    """Return the part of a message file's name that flags don't change.

    >>> stem("1700000000.M1P2.host,S=5:2,S"), stem("u.12")
    ('1700000000.M1P2.host,S=5', 'u.12')
    """
    return name.split(":2,", 1)[0]


# ---- what becomes of old snapshots


def due(settings: Settings, snapshots: list[dict], now: float) -> list[dict]:
    """Return the *snapshots* that are older than the role's time; the newest of the host stays whatever its age; raise Refused.

    A clock that is wrong must not empty the repository.
    """
    own = [snapshot for snapshot in snapshots if snapshot["hostname"] == settings.host]
    whole = [snapshot for snapshot in own if GONE not in snapshot["tags"]]
    if not whole:
        return []
    newest = max(parse_time(snapshot["time"]) for snapshot in whole)
    if now < newest - CLOCK_SECONDS:
        raise Refused(f"the clock says {time.ctime(now)}, and the newest snapshot is of {time.ctime(newest)}; nothing was forgotten")
    if now > newest + settings.keep_seconds:
        raise Refused(
            f"the newest snapshot is older than mail_backup_keep_for ({show_duration(settings.keep_seconds)}), so every one would go; "
            "nothing was forgotten: make a backup first, or set the clock right"
        )
    return [snapshot for snapshot in own if parse_time(snapshot["time"]) < now - settings.keep_seconds]


def parse_time(text: str) -> float:
    """Return restic's time, RFC 3339 with nanoseconds, in seconds since the epoch.

    >>> parse_time("1970-01-01T01:00:01.123456789+01:00")
    1.0
    """
    zone = "+00:00" if text.endswith("Z") else text[-6:]
    return datetime.datetime.fromisoformat(text[:19] + zone).timestamp()
