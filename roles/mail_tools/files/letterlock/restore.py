"""A restore: what a snapshot holds, back in its place, and compared with its manifests by asking Dovecot.

Mail goes to a scratch directory on the mail's own disk first, and indexes are laid
over it as the backup copied them. Then, account by account:

- One that has lost its mail gets the whole home in one step: UIDs, flags and dates are
  as they were. What came in since the loss is put beside, and then added to it.
- One that still has its mailboxes, known by their GUIDs, gets what it lacks. To its clients
  that is new mail, because IMAP (RFC 9051, 2.3.1.1) knows no way back for a UID.
- Chosen mailboxes, or what a search finds, are added in the same way, into place or below
  another mailbox.

Nothing that is there is overwritten, and a message is added once, whatever interrupts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from letterlock import backup, keystore, links, manifest, parts, session_key, stored
from letterlock.accounts import place_of
from letterlock.batches import chunks
from letterlock.doveadm import ACCOUNTS_AT_ONCE, ENVIRONMENT, Doveadm, Failed, any_of, in_mailbox, looking_at, uid_set
from letterlock.marks import Marks
from letterlock.restic import Fault, Restic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

# Differences that are shown of an account.
SHOWN = 5
# GUIDs in one command's arguments.
MESSAGES_AT_ONCE = 1000
# Where what came in since a loss waits until it is added again, below the mail's root.
ASIDE = ".letterlock-aside"


@dataclass(frozen=True)
class Wish:
    """What is to come back. None of it given means: all accounts, each in its place."""

    accounts: tuple[str, ...] = ()
    mailboxes: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    into: str = ""

    @property
    def selective(self) -> bool:
        """Whether it is less than whole accounts in their place."""
        return bool(self.mailboxes or self.search or self.into)

    def target(self, mailbox: str) -> str:
        """Return the mailbox to which messages of *mailbox* are added."""
        return f"{self.into}/{mailbox}" if self.into else mailbox


@dataclass
class Outcome:
    """What a restore came to: accounts whose home is back, messages added to those that had some, and what differs."""

    restored: list[str] = field(default_factory=list)
    added: dict[str, int] = field(default_factory=dict)
    meanwhile: int = 0
    messages: int = 0
    gone: int = 0
    differences: list[str] = field(default_factory=list)


def choose(snapshots: list[dict], host: str, wanted: str) -> dict:
    """Return the snapshot of *host* that *wanted* names: latest, an identity's beginning, or the last one up to a day or moment."""
    own = [snapshot for snapshot in snapshots if snapshot["hostname"] == host and backup.GONE not in snapshot["tags"]]
    if wanted == "latest":
        found = own[-1:]
    else:
        found = [snapshot for snapshot in own if snapshot["id"].startswith(wanted)] or [
            # A day means its end.
            snapshot for snapshot in own if snapshot["time"][: len(wanted)] <= wanted and "-" in wanted
        ][-1:]
    if len(found) != 1:
        raise backup.Refused(f"{wanted!r} names {len(found)} snapshots of {host}; `letterlock backup list` shows them")
    return found[0]


class Mail:
    """What one account holds now: {mailbox: {message GUID: row}}, and the mailboxes' own GUIDs."""

    def __init__(self, boxes: list[dict], rows: list[dict]) -> None:
        """Take the statuses of its mailboxes, and its messages."""
        self.guids = {box["mailbox"]: box["guid"] for box in boxes}
        names = {guid: name for name, guid in self.guids.items()}
        self.messages: dict[str, dict[str, dict]] = {name: {} for name in self.guids}
        for row in rows:
            if row["mailbox-guid"] in names:
                self.messages[names[row["mailbox-guid"]]][row["guid"]] = row

    @property
    def count(self) -> int:
        """How many messages there are."""
        return sum(map(len, self.messages.values()))

    def everywhere(self) -> Counter:
        """Return {message GUID: in how many mailboxes it is}."""
        return Counter(guid for messages in self.messages.values() for guid in messages)


class Restore:
    """One restore of a host's mail from one snapshot. The caller holds the locks of backups and of retention."""

    def __init__(self, settings: backup.Settings, wanted: str, host: str | None = None, say: Callable[[str], None] = print) -> None:
        """Find the snapshot that *wanted* names, of this *host* or of another that it takes the place of."""
        self.settings, self.say = settings, say
        self.restic = Restic(say)
        self.host = host or settings.host
        snapshots = self.restic.snapshots()
        self.snapshot = choose(snapshots, self.host, wanted)
        self.gone_snapshots = [each for each in snapshots if backup.GONE in each["tags"] and self.snapshot["id"][:8] in each["tags"]]
        # What an interrupted restore of another snapshot left must not be mixed with this one.
        self.scratches = settings.mail_root / backup.SCRATCH
        self.scratch = self.scratches / self.snapshot["id"][:8]
        self.aside = settings.mail_root / ASIDE
        self.store = stored.STORES[settings.raw["about"]["format"]]
        self.renames = settings.raw["about"]["format"] == "maildir"
        self.outcome = Outcome()
        # {account: what opens its encrypted mail}, without which such mail comes back as a whole account only.
        self.keys: dict[str, str] = {}
        # The identity of the repository that mail was fetched from.
        self.repository: str | None = None

    def execute(self, wish: Wish, *, dry_run: bool = False, after: Callable[[list[dict], Counter], None] | None = None) -> Outcome:
        """Bring back what is wished for, or only say what that would be; raise Fault or Refused.

        *after* is given the manifests, and {account: messages expunged while the backup was made}, when all is in place.
        """
        self.insist_on_accounts(wish.accounts)
        self.make_scratch()
        stage = self.inside(backup.STAGE)
        try:
            wanted = self.fetch_all(stage, wish, dry_run=dry_run)
        except backup.Refused:
            shutil.rmtree(self.scratches)
            raise
        if not dry_run:
            self.lay_indexes(stage)
            self.place_state(stage)
            for account in keystore.bring_back(stage / "state" / "keys", {each["account"] for each in wanted}):
                self.say(f"brought back the keys of {account}")
            self.end_sessions(wanted)
        gone = self.gone(stage)
        for each in wanted:
            self.bring_back(each, wish, gone[each["account"]], dry_run=dry_run)
        self.compare([each for each in wanted if each["account"] in self.outcome.restored and not dry_run], gone)
        if after:
            after(wanted, gone)
        shutil.rmtree(self.scratches)
        return self.outcome

    def fetch_all(self, stage: Path, wish: Wish, *, dry_run: bool) -> list[dict]:
        """Fetch what is needed; return the manifests of what is wished for, which are looked at while the mail comes in."""
        refused = threading.Event()
        with ThreadPoolExecutor(1) as beside:
            mail = None if dry_run else beside.submit(self.fetch, *self.paths_of(wish), unless=refused)
            try:
                self.fetch(backup.STAGE)
                wanted = self.manifests(stage, wish)
                self.repository = self.restic.identity()
                parts.join(stage / "indexes")
            except BaseException:
                refused.set()
                if mail:
                    wait([mail])
                    self.clear_up()
                raise
            if mail:
                mail.result()
        return wanted

    def clear_up(self) -> None:
        """Remove the lock of a restic that was asked to end while it started.

        0.14 leaves it when the signal comes within 0.2 s after it made the lock, and who prunes would wait for half an hour.
        """
        with contextlib.suppress(Fault):
            self.restic.unlock()

    def make_scratch(self) -> None:
        """Make the scratch directory, which the mail user can read, and remove what it can't go on with."""
        owner = self.settings.mail_root.stat()
        usable = {self.scratch} if self.restic.version() >= links.RELINKS else set()
        # What is in it, and not the directory itself: a mount there can't be removed.
        for other in set(self.scratches.iterdir()) - usable if self.scratches.is_dir() else ():
            shutil.rmtree(other)
        if self.scratch.is_dir():
            links.unlink(self.scratch)
        for directory in (self.scratches, self.scratch):
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, owner.st_uid, owner.st_gid)

    @staticmethod
    def insist_on_accounts(accounts: Iterable[str]) -> None:
        """Raise Refused unless this host has all *accounts*."""
        if unknown := sorted(set(accounts) - set(Doveadm().users())):
            raise backup.Refused(f"no accounts of this host: {', '.join(unknown)}; deploy mail_accounts_users first")

    def manifests(self, stage: Path, wish: Wish) -> list[dict]:
        """Return the manifests of what is wished for; raise Refused when this host can't take that mail."""
        about = json.loads((stage / "manifest.json").read_text())
        for name in ("mail_root", "format"):
            if about[name] != self.settings.raw["about"][name]:
                raise backup.Refused(f"dovecot_mail_{name.removeprefix('mail_')} must be {about[name]}, as it was in the snapshot")
        parts.join(stage / "manifests")
        found = [json.loads(file.read_text()) for file in sorted((stage / "manifests").glob("*/*.json"))]
        if len(found) != about["accounts"]:
            self.outcome.differences.append(f"the snapshot has manifests of {len(found)} accounts and tells of {about['accounts']}")
        wanted = [each for each in found if not wish.accounts or each["account"] in wish.accounts]
        if missing := sorted(set(wish.accounts) - {each["account"] for each in wanted}):
            raise backup.Refused(f"not in the snapshot: {', '.join(missing)}")
        names = {box["name"] for each in wanted for box in each["mailboxes"]}
        if missing := sorted(set(wish.mailboxes) - names):
            raise backup.Refused(f"no such mailboxes in the snapshot: {', '.join(missing)}")
        self.insist_on_accounts(each["account"] for each in wanted)
        return wanted

    def paths_of(self, wish: Wish) -> list[Path]:
        """Return which mail of the snapshot is needed."""
        root = self.settings.mail_root
        return [root / place_of(account) for account in wish.accounts] if wish.accounts else [root]

    def inside(self, path: Path) -> Path:
        """Return where *path* of the snapshot lies in the scratch directory."""
        return self.scratch / path.relative_to("/")

    def fetch(self, *paths: Path, unless: threading.Event | None = None) -> None:
        """Let restic bring *paths* of the snapshot, *unless* that is set; what an interrupted restore brought is checked and kept."""
        self.say(f"fetches {', '.join(map(str, paths))} of snapshot {self.snapshot['short_id']}, {self.host}, {self.snapshot['time'][:19]}")
        links.restore(self.restic, self.snapshot["id"], self.scratch, paths, unless)

    def lay_indexes(self, stage: Path) -> None:
        """Lay the indexes over the mail that they belong to: moved, because writes wait while the mail goes to the disk."""
        root = self.inside(self.settings.mail_root)
        for indexes in sorted((stage / "indexes").glob("*/*")):
            target = root / indexes.relative_to(stage / "indexes")
            if target.is_dir():
                shutil.copytree(indexes, target, dirs_exist_ok=True, copy_function=os.replace)

    def place_state(self, stage: Path) -> None:
        """Bring the ledger and what runs remember back where this host has none yet."""
        for source in sorted((stage / "state").glob("*")):
            # Keyrings go account by account.
            if source.name == keystore.ROOT.name:
                continue
            target = backup.STATE / source.name
            if not target.exists():
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
                self.say(f"brought back {target}")

    # ---- one account

    def bring_back(self, wanted: dict, wish: Wish, gone: int, *, dry_run: bool) -> None:
        """Bring the mail of one account back, whose manifest is *wanted*."""
        account = wanted["account"]
        home = self.settings.mail_root / place_of(account)
        beside = self.aside / place_of(account)
        try:
            if wish.selective or not self.has_lost(wanted, home):
                if beside.is_dir() and not wish.selective and not dry_run:
                    # A restore that was interrupted just then put the home into its place.
                    self.add_aside(account, beside)
                self.add(wanted, wish, gone, dry_run=dry_run)
                return
            if not dry_run:
                self.place(account, home, beside)
                self.add_aside(account, beside)
            self.outcome.restored.append(account)
        except Failed as failed:
            self.outcome.differences.append(f"{account}: {failed}")
            if account in keystore.accounts() and account not in self.keys:
                self.outcome.differences.append(f"{account}: its mail is encrypted; to add to it, name it alone, with --password")

    def end_sessions(self, manifests: list[dict]) -> None:
        """End the sessions of accounts whose home is gone; whoever begins one from now on makes a new home, and is met by `place`."""
        accounts = [each["account"] for each in manifests if not (self.settings.mail_root / place_of(each["account"])).exists()]
        Doveadm().batch([kick(account) for account in accounts])

    def has_lost(self, wanted: dict, home: Path) -> bool:
        """Tell whether an account has none of the mailboxes that held its mail any more, and so gets its home as it was."""
        if not has_mail(home):
            return True
        (boxes,) = manifest.statuses([wanted["account"]], self.settings.held).values()
        if isinstance(boxes, Failed):
            raise boxes
        before = {box["guid"] for box in wanted["mailboxes"] if box["messages"]}
        return not before & {box["guid"] for box in boxes}

    def place(self, account: str, home: Path, beside: Path) -> None:
        """Move an account's home into place; what came in since the loss goes *beside*."""
        # Its numbers go back with it: the next manifest can't go on from the last one.
        parts.remove(manifest.path_of(backup.STAGE, account))
        source = self.inside(home)
        owner = self.settings.mail_root.stat()
        for directory in (self.aside, beside.parent, beside, home.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, owner.st_uid, owner.st_gid)
        while source.is_dir():
            if home.exists():
                Doveadm().batch([kick(account)])
                home.rename(beside / str(len(list(beside.iterdir()))))
            try:
                source.rename(home)
            except OSError:
                # A delivery made a new home meanwhile.
                self.say(f"{account}: mail comes in; again")

    def add_aside(self, account: str, beside: Path) -> None:
        """Add what came in since the loss, from the homes *beside*, and remove them."""
        for each in sorted(beside.iterdir()):
            if has_mail(each):
                there = self.mail_of(account).everywhere()
                new = [guid for guid in self.guids_at(account, each) if guid not in there]
                for some in chunks(new, MESSAGES_AT_ONCE):
                    self.add_from(account, each, "", any_of([["guid", guid] for guid in some]))
                self.outcome.meanwhile += len(new)
            shutil.rmtree(each)
        beside.rmdir()
        for directory in (beside.parent, self.aside):
            if not list(directory.iterdir()):
                directory.rmdir()

    def add(self, wanted: dict, wish: Wish, gone: int, *, dry_run: bool) -> None:
        """Add to an account what it lacks of *wanted*."""
        account = wanted["account"]
        now = self.mail_of(account)
        self.outcome.added[account] = 0
        lacking: dict[str, dict[str, list]] = {}
        boxes = [box for box in wanted["mailboxes"] if not wish.mailboxes or box["name"] in wish.mailboxes]
        lost = Counter(message[1] for box in boxes for message in box["messages"])
        # A message that its user moved is not lost. What is asked for by name belongs where it was.
        lost.subtract({} if wish.selective else now.everywhere())
        for box in boxes:
            target = wish.target(box["name"])
            there = now.messages.get(target, {})
            lacks = {message[1]: message for message in box["messages"] if message[1] not in there and lost[message[1]] > 0}
            lost.subtract(lacks.keys())
            if not lacks:
                continue
            lacking[target] = lacks
            if dry_run:
                self.outcome.added[account] += len(lacks)
                continue
            for some in chunks(lacks, MESSAGES_AT_ONCE):
                which = any_of([["guid", guid] for guid in some])
                search = ["(", *wish.search, ")"] if wish.search else []
                query = [*in_mailbox(box["name"], box["guid"]), *which, *search]
                self.add_from(account, self.inside(self.settings.mail_root / place_of(account)), wish.into, query)
        if lacking and not dry_run:
            self.count_added(account, lacking, gone, partly=bool(wish.search))

    def guids_at(self, account: str, home: Path) -> list[str]:
        """Return the GUIDs of the messages in the store at *home*, read with the settings of *account*; raise Failed."""
        about = self.settings.raw["about"]
        options = looking_at(about["dovecot"], about["format"], home / self.store)
        done = doveadm_run(*options, "-f", "flow", "fetch", "-u", account, "guid", "all", key=self.keys.get(account, ""))
        return [line.partition("=")[2] for line in done.splitlines()]

    def add_from(self, account: str, home: Path, into: str, query: list[str]) -> None:
        """Add what *query* finds in the mail at *home* to *account*, with GUIDs, flags and received dates; raise Failed."""
        location = f"{self.settings.raw['about']['format']}:{home / self.store}"
        doveadm_run("import", "-s", "-u", account, location, into, *query, key=self.keys.get(account, ""))

    def count_added(self, account: str, lacking: dict[str, dict[str, list]], gone: int, *, partly: bool) -> None:
        """Count what was added, {mailbox: {GUID: message}}, and tell what is not as it was; keep the saved dates, which Dovecot can't."""
        now = self.mail_of(account)
        if self.set_flags_back(account, (
            (name, now.guids[name], int(row["uid"]), message[manifest.FLAGS], manifest.flags_of(row))
            for name, messages in lacking.items() for guid, message in messages.items()
            if message[-1] and (row := now.messages.get(name, {}).get(guid))
        )):
            now = self.mail_of(account)
        saved: list[tuple[str, int, int]] = []
        missing: list[str] = []
        for name, messages in lacking.items():
            there = now.messages.get(name, {})
            for guid, (uid, _, size, flags, was_saved, received, _, settled) in messages.items():
                row = there.get(guid)
                if row is None:
                    missing += [f"{account}: {manifest.MISSING}: {name}, UID {uid}"] * (settled and not partly)
                    continue
                self.outcome.added[account] += 1
                saved.append((f"{account}:{now.guids[name]}", int(row["uid"]), was_saved))
                for what, was, now_is in (
                    ("size", size, int(row["size.virtual"])), ("received", received, int(row["date.received.unixtime"])),
                    ("flags", flags, manifest.flags_of(row)),
                ):
                    if was != now_is and (settled or what != "flags"):
                        self.outcome.differences.append(f"{account}: {name}, UID {uid}: {what} was {was} and is {now_is}")
        if len(missing) <= gone:
            self.outcome.gone += len(missing)
        else:
            self.outcome.differences += missing
        Marks(backup.STATE / "marks.sqlite").keep_saved(saved)

    def mail_of(self, account: str) -> Mail:
        """Return what *account* holds; raise Failed."""
        (boxes,) = manifest.statuses([account], self.settings.held).values()
        ((_, rows),) = manifest.messages([account], self.settings.held)
        for answer in (boxes, rows):
            if isinstance(answer, Failed):
                raise answer
        return Mail(boxes, rows)

    # ---- the proof

    def gone(self, stage: Path) -> Counter:
        """Return {account: how many of its messages were expunged while the backup was made}."""
        found: Counter = Counter()
        for each in self.gone_snapshots:
            file = backup.HOME / "gone.json"
            self.restic.run("restore", each["id"], "--target", str(stage), "--include", str(file))
            for directory, _ in json.loads((stage / file.relative_to("/")).read_text())["gone"]:
                domain, local, *_ = directory.split("/")
                found[f"{local}@{domain}"] += 1
        return found

    def set_flags_back(self, account: str, found: Iterable[tuple[str, str, int, list[str], list[str]]]) -> bool:
        """Give messages their flags of the manifest, where a Maildir's file names have later ones; return whether any had.

        A flag that a user set after the manifest was written, and before restic came to the file, is in the file's name.
        *found* are (mailbox, its GUID, UID, flags in the manifest, flags now).
        """
        if not self.renames:
            return False
        changes: dict[tuple[str, str, str, tuple[str, ...]], list[int]] = {}
        for name, guid, uid, before, now in found:
            for command, some in (("add", set(before) - set(now)), ("remove", set(now) - set(before))):
                if some:
                    changes.setdefault((name, guid, command, tuple(sorted(some))), []).append(uid)
        try:
            for (name, guid, command, some), uids in changes.items():
                doveadm_run("flags", command, "-u", account, " ".join(some), *in_mailbox(name, guid), "uid", uid_set(uids))
        except Failed as failed:
            # What stays different is told as a difference.
            self.say(f"{account}: flags could not be set back: {failed}")
        return bool(changes)

    def without_files(self, account: str, now: dict) -> dict[tuple[str, str], list[int]]:
        """Return {(mailbox, its GUID): UIDs} of the messages that Dovecot shows, from its indexes, and whose files are not there."""
        found = {}
        for box in now["mailboxes"]:
            uids = {message[0] for message in box["messages"]}
            without = uids - stored.files_of(self.settings.mail_root / place_of(account), box["name"], uids).keys()
            if without:
                found[box["name"], box["guid"]] = sorted(without)
        return found

    def compare(self, manifests: list[dict], gone: Counter) -> None:
        """Compare what Dovecot shows of the restored accounts with their manifests."""
        by_account = {each["account"]: each for each in manifests}
        for some in chunks(by_account, ACCOUNTS_AT_ONCE):
            statuses = manifest.statuses(some, self.settings.held)
            for account, rows in manifest.messages(some, self.settings.held):
                boxes = statuses[account]
                if isinstance(boxes, Failed) or isinstance(rows, Failed):
                    self.outcome.differences.append(f"{account}: can't be read: {boxes if isinstance(boxes, Failed) else rows}")
                    continue
                now = manifest.of_account(account, boxes, rows)
                if self.set_flags_back(account, manifest.settled_flags(by_account[account], now)):
                    again = next(iter(manifest.messages([account], self.settings.held)))[1]
                    now = manifest.of_account(account, boxes, rows if isinstance(again, Failed) else again)
                ghosts = self.without_files(account, now)
                found = [*manifest.differences(by_account[account], now), *(
                    f"{manifest.MISSING}: {name}, UID {uid}: its file is not there" for (name, _), uids in ghosts.items() for uid in uids
                )]
                missing = [each for each in found if each.startswith(manifest.MISSING)]
                if 0 < len(missing) <= gone[account]:
                    self.outcome.gone += len(missing)
                    found = [each for each in found if each not in missing]
                    # Expunged after the indexes had been copied, and before the files were: it goes from the indexes, too.
                    for (name, guid), uids in ghosts.items():
                        doveadm_run("expunge", "-u", account, *in_mailbox(name, guid), "uid", uid_set(uids))
                self.outcome.differences += [f"{account}: {each}" for each in found[:SHOWN]]
                if len(found) > SHOWN:
                    self.outcome.differences.append(f"{account}: and {len(found) - SHOWN} more")
                self.outcome.messages += sum(len(box["messages"]) for box in now["mailboxes"])
        promised = any(box["messages"] for each in manifests for box in each["mailboxes"])
        if promised and not self.outcome.messages and not self.outcome.differences:
            raise Fault("nothing was compared")


def doveadm_run(*arguments: str, key: str = "") -> str:
    """Return what one doveadm command prints, which reads with an account's *key* where there is one; raise Failed."""
    with session_key.configured(key) as (options, _):
        done = subprocess.run(
            ["doveadm", *options, *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", check=False,
            # With the locks: who was killed must not begin again while his import still adds.
            close_fds=False,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise Failed(f"doveadm {' '.join(arguments)[:100]}: exit code {done.returncode}: {said[-1]}", done.returncode)
    return done.stdout


def kick(account: str) -> tuple[str, dict]:
    """Return the command that ends the sessions of *account*."""
    return "kick", {"mask": [account]}


def has_mail(home: Path) -> bool:
    """Tell whether any message lies below *home*, in either format."""
    return any(
        name.startswith("u.") or os.path.basename(folder) in ("cur", "new")  # noqa: PTH119  # may be many
        for folder, _, names in os.walk(home) for name in names
    )


def lines(outcome: Outcome, *, dry_run: bool) -> Iterator[str]:
    """Yield what a restore came to, or would come to."""
    would = "would be " if dry_run else ""
    for account in outcome.restored if dry_run else ():
        yield f"{account}: would be put in its place as it was"
    for account, count in outcome.added.items():
        yield f"{account}: {f'up to {count} messages would be' if dry_run else f'{count} messages'} added to what is there"
    for difference in outcome.differences:
        yield f"DIFFERS {difference}"
    added = sum(outcome.added.values())
    yield (
        f"{len(outcome.restored)} accounts {would}back as they were, {outcome.meanwhile} messages that came in since then kept; "
        f"{added} messages {would}added to {len(outcome.added)} accounts; {outcome.messages + (0 if dry_run else added)} compared with the "
        f"manifest, {len(outcome.differences)} differences, {outcome.gone} expunged while the backup was made"
    )
