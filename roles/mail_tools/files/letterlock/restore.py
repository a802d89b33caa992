"""A restore: what a snapshot holds, back in its place, and compared with its manifests by asking Dovecot.

Mail goes to a scratch directory on the mail's own disk first, indexes are laid
over it as the backup copied them, and then each account's home is moved into
place in one step. What is there already is left alone and named.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import backup, locks, manifest
from letterlock.accounts import place_of
from letterlock.batches import chunks
from letterlock.doveadm import ACCOUNTS_AT_ONCE, Doveadm, Failed
from letterlock.restic import Fault, Restic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Differences that are shown of an account.
SHOWN = 5


@dataclass
class Outcome:
    """What a restore came to: accounts that are back, those that were left alone, and what differs from the manifests."""

    restored: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
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


class Restore:
    """One restore of a host's mail from one snapshot."""

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
        self.outcome = Outcome()

    def execute(self, accounts: list[str] | None = None) -> Outcome:
        """Bring *accounts* back, or all of the snapshot; raise Fault or Refused."""
        self.insist_on_accounts(accounts or [])
        self.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in set(self.scratches.iterdir()) - {self.scratch}:
            shutil.rmtree(other)
        self.fetch(*self.paths_of(accounts))
        stage = self.inside(backup.STAGE)
        try:
            wanted = self.manifests(stage, accounts)
        except backup.Refused:
            shutil.rmtree(self.scratches)
            raise
        self.lay_indexes(stage)
        for each in wanted:
            self.place(each["account"])
        self.place_state(stage)
        self.compare([each for each in wanted if each["account"] in self.outcome.restored], self.gone(stage))
        shutil.rmtree(self.scratches)
        return self.outcome

    @staticmethod
    def insist_on_accounts(accounts: Iterable[str]) -> None:
        """Raise Refused unless this host has all *accounts*."""
        if unknown := sorted(set(accounts) - set(Doveadm().users())):
            raise backup.Refused(f"no accounts of this host: {', '.join(unknown)}; deploy mail_accounts_users first")

    def manifests(self, stage: Path, accounts: list[str] | None) -> list[dict]:
        """Return the manifests of *accounts*, or all; raise Refused when this host can't take their mail."""
        about = json.loads((stage / "manifest.json").read_text())
        for name in ("mail_root", "format"):
            if about[name] != self.settings.raw["about"][name]:
                raise backup.Refused(f"dovecot_mail_{name.removeprefix('mail_')} must be {about[name]}, as it was in the snapshot")
        found = [json.loads(file.read_text()) for file in sorted((stage / "manifests").glob("*/*.json"))]
        wanted = [each for each in found if accounts is None or each["account"] in accounts]
        if missing := sorted(set(accounts or ()) - {each["account"] for each in wanted}):
            raise backup.Refused(f"not in the snapshot: {', '.join(missing)}")
        self.insist_on_accounts(each["account"] for each in wanted)
        return wanted

    def paths_of(self, accounts: list[str] | None) -> list[Path]:
        """Return what of the snapshot *accounts* need, or all of them."""
        root, stage = self.settings.mail_root, backup.STAGE
        if accounts is None:
            return [root, stage]
        parts = [place_of(account) for account in accounts]
        of_accounts = [[root / part, stage / "indexes" / part, stage / "manifests" / f"{part}.json"] for part in parts]
        return [stage / "manifest.json", stage / "state", *(path for paths in of_accounts for path in paths)]

    def inside(self, path: Path) -> Path:
        """Return where *path* of the snapshot lies in the scratch directory."""
        return self.scratch / path.relative_to("/")

    def fetch(self, *paths: Path) -> None:
        """Let restic bring *paths* of the snapshot; what an interrupted restore brought is checked and kept."""
        self.say(f"fetches snapshot {self.snapshot['short_id']} of {self.host}, made {self.snapshot['time'][:19]}")
        includes = [word for path in paths for word in ("--include", backup.literal(str(path)))]
        self.restic.run("restore", self.snapshot["id"], "--target", str(self.scratch), *includes)

    def lay_indexes(self, stage: Path) -> None:
        """Lay the indexes over the mail that they belong to."""
        indexes = stage / "indexes"
        if indexes.is_dir():
            shutil.copytree(indexes, self.inside(self.settings.mail_root), dirs_exist_ok=True, copy_function=copy_with_owner)

    def place(self, account: str) -> None:
        """Move an account's home into place, unless there is mail already."""
        home = self.settings.mail_root / place_of(account)
        source = self.inside(home)
        if has_mail(home):
            self.outcome.left_alone.append(account)
            return
        if not source.is_dir():
            # An account whose mailboxes Dovecot had not made yet.
            self.outcome.restored.append(account)
            return
        Doveadm().batch([("kick", {"mask": [account]})])
        if home.exists():
            shutil.rmtree(home)
        owner = self.settings.mail_root.stat()
        home.parent.mkdir(mode=0o700, exist_ok=True)
        os.chown(home.parent, owner.st_uid, owner.st_gid)
        source.rename(home)
        self.outcome.restored.append(account)

    def place_state(self, stage: Path) -> None:
        """Bring the ledger and what runs remember back where this host has none yet."""
        with locks.only_one(locks.RETENTION):
            for source in sorted((stage / "state").glob("*")):
                target = backup.STATE / source.name
                if target.exists():
                    continue
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
                self.say(f"brought back {target}")

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
                found = list(manifest.differences(by_account[account], now))
                missing = [each for each in found if each.startswith(manifest.MISSING)]
                if 0 < len(missing) <= gone[account]:
                    self.outcome.gone += len(missing)
                    found = [each for each in found if each not in missing]
                self.outcome.differences += [f"{account}: {each}" for each in found[:SHOWN]]
                if len(found) > SHOWN:
                    self.outcome.differences.append(f"{account}: and {len(found) - SHOWN} more")
                self.outcome.messages += sum(len(box["messages"]) for box in now["mailboxes"])
        if manifests and not self.outcome.messages and any(box["messages"] for each in manifests for box in each["mailboxes"]):
            raise Fault("nothing was compared")


def has_mail(home: Path) -> bool:
    """Tell whether any message lies below *home*, in either format."""
    return any(
        name.startswith("u.") or os.path.basename(folder) in ("cur", "new")  # noqa: PTH119  # may be many
        for folder, _, names in os.walk(home) for name in names
    )


def copy_with_owner(source: str, target: str) -> str:
    """Copy a file with its times, mode and owner."""
    shutil.copy2(source, target)
    status = Path(source).stat()
    os.chown(target, status.st_uid, status.st_gid)
    return target


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield what a restore came to."""
    for account in outcome.left_alone:
        yield f"left alone, because it has mail already: {account}"
    for difference in outcome.differences:
        yield f"DIFFERS {difference}"
    yield (
        f"{len(outcome.restored)} accounts are back, {len(outcome.left_alone)} left alone; {outcome.messages} messages compared with "
        f"the manifest, {len(outcome.differences)} differences, {outcome.gone} expunged while the backup was made"
    )
