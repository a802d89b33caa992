"""Where the keyrings of a host are, and what Dovecot reads of them.

A keyring is the truth; Dovecot's passwd-files are made of all of them, in both
dialects, so that an upgrade finds its own. One line holds a password's hash and the
keys that it opens: they change together or not at all.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import locks, stored
from letterlock.accounts import place_of
from letterlock.keyring import CLEAR, OWN, Keyring
from letterlock.ledger import write_durably
from letterlock.retention import Refused
from letterlock.settings import Unusable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

FILE = Path("/etc/letterlock/dovecot/current/keys.json")
ROOT = Path("/var/lib/letterlock/keys")
SERIES = ("2.3", "2.4")
PROTOCOLS = ("imap", "pop3")
# Who reads the passwd-files.
GROUP = "dovecot"


@dataclass(frozen=True)
class KeySettings:
    """What mail_crypt wants."""

    # Accounts whose mail is to be encrypted, and all that this host has mail for.
    accounts: list[str]
    known: list[str]
    # age's recipients, who can open every account's keys; none if the operator chose so.
    recipients: list[str]
    app_passwords_max: int
    # Pairs of keys of one account that Dovecot looks for.
    pairs_max: int
    # argon2's parameters.
    hashing: dict[str, int]
    # Dovecot's, 2.3 or 2.4; the format of the mail, and its root.
    series: str
    format: str
    mail_root: Path
    # Where this host itself reaches its sessions, and by which protocols.
    address: str
    protocols: list[str]


def read_settings(file: Path = FILE) -> KeySettings:
    """Return the settings in *file*; raise Unusable."""
    try:
        return settings_of(json.loads(file.read_text()))
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror}; mail_crypt is not deployed on this host") from error


def settings_of(raw: dict) -> KeySettings:
    """Return the settings that a deployment gives."""
    return KeySettings(**{**raw, "mail_root": Path(raw["mail_root"])})


def file_of(account: str) -> Path:
    """Return the file of an account's keyring."""
    place = ROOT / "accounts" / place_of(account)
    return place.with_name(f"{place.name}.json")


def accounts(root: Path | None = None) -> list[str]:
    """Return the accounts that have a keyring, on this host or below another *root*."""
    files = ((root or ROOT) / "accounts").glob("*/[!.]*.json")
    return sorted(f"{file.name.removesuffix('.json')}@{file.parent.name}" for file in files)


def copy_to(root: Path) -> None:
    """Copy all keyrings to another *root*."""
    if (ROOT / "accounts").is_dir():
        with alone():
            shutil.copytree(ROOT / "accounts", root / "accounts")


def bring_back(root: Path, wanted: Collection[str]) -> list[str]:
    """Bring the keyrings of those *wanted* that have none here back from another *root*; return whose."""
    missing = [account for account in accounts(root) if account in wanted and not file_of(account).exists()]
    if missing:
        with alone():
            for account in missing:
                file = place_for(account)
                shutil.copy2(root / file.relative_to(ROOT), file)
            show()
    return missing


def read(account: str) -> Keyring:
    """Return the keyring of *account*; raise Refused."""
    file = file_of(account)
    try:
        ring = Keyring.read(file)
    except FileNotFoundError:
        raise Refused(f"{account} has no keys; `letterlock keys make {account}` makes them") from None
    except (ValueError, TypeError, KeyError) as fault:
        raise Refused(f"{file}: is damaged ({fault}); bring it back from a backup") from fault
    if ring.account != account:
        raise Refused(f"{file}: has the keys of {ring.account}")
    # Mail for a public key whose other half nobody has would be lost.
    if not all(pair.identity in credential.wraps for pair in ring.pairs for credential in ring.credentials):
        raise Refused(f"{file}: is damaged (a public key is not that of the copies); bring it back from a backup")
    return ring


def alone() -> contextlib.AbstractContextManager[None]:
    """Hold the lock of all keyrings."""
    return locks.only_one(ROOT / "lock")


@contextlib.contextmanager
def changed(account: str) -> Iterator[Keyring]:
    """Yield the keyring of *account*, alone, and keep what became of it."""
    with alone():
        ring = read(account)
        yield ring
        keep(ring)


def keep(ring: Keyring) -> None:
    """Write *ring*, and what Dovecot reads; the caller holds the lock."""
    ring.write(place_for(ring.account))
    show()


def place_for(account: str) -> Path:
    """Return the file of an account's keyring, for which there is a directory then."""
    file = file_of(account)
    ROOT.mkdir(mode=0o711, parents=True, exist_ok=True)
    for directory in (file.parent.parent, file.parent):
        directory.mkdir(mode=0o700, exist_ok=True)
    return file


def store_of(account: str, wanted: KeySettings) -> Path:
    """Return where the mail of *account* is."""
    return wanted.mail_root / place_of(account) / stored.STORES[wanted.format]


def retire(wanted: Collection[str]) -> None:
    """Remove the keyrings of accounts that are in clear and are to stay so; the caller holds the lock."""
    for account in set(accounts()) - set(wanted):
        with contextlib.suppress(Refused):
            if read(account).state == CLEAR:
                file_of(account).unlink()


def remove(account: str) -> bool:
    """Remove the keys of *account*, without which its mail is nothing but noise; return whether there were any."""
    file = file_of(account)
    if not file.exists():
        return False
    with alone():
        file.unlink(missing_ok=True)
        show()
    return True


def remove_all() -> None:
    """Remove the keys of all accounts, as a scratch host does; what Dovecot reads is there as before, and empty."""
    if (ROOT / "accounts").is_dir():
        with alone():
            shutil.rmtree(ROOT / "accounts")
            show()


def show(wanted: KeySettings | None = None) -> None:
    """Write what Dovecot reads, where it changed; the caller holds the lock.

    An account with a damaged keyring is left out: nobody reads its mail, and none is stored. So is one that the host does not
    know any more, because Dovecot takes whom a userdb lists for an account.
    """
    rings = []
    try:
        known = (wanted or read_settings()).known
    except Unusable:
        # The role was switched off: nobody reads them.
        return
    for account in filter(known.__contains__, accounts()):
        try:
            rings.append(read(account))
        except Refused as refused:
            print(f"letterlock: {refused}", file=sys.stderr)
    write_durably(ROOT / "begun.passdb", "".join(f"{ring.account}:{ring.begun}:{ring.state}\n" for ring in rings).encode())
    for series in SERIES:
        write_shown(ROOT / "dovecot" / series / "userdb", [f"{ring.account}:::::::{ring.userdb_fields(series)}" for ring in rings])
        slots: dict[tuple[str, int], list[str]] = {}
        for ring in rings:
            for slot, (credential, line) in enumerate(ring.passdb_lines(series)):
                for protocol in credential.protocols or PROTOCOLS:
                    slots.setdefault((protocol, slot), []).append(line)
        there = {(file.parent.name, int(file.name)) for file in (ROOT / "dovecot" / series).glob("*/[0-9]*")}
        for protocol, slot in sorted({*slots, *there, *((protocol, 0) for protocol in PROTOCOLS)}):
            write_shown(ROOT / "dovecot" / series / protocol / str(slot), slots.get((protocol, slot), []))


def write_shown(file: Path, lines: list[str]) -> None:
    """Write a passwd-file, which Dovecot alone may read beside root."""
    text = "".join(f"{line}\n" for line in ["# Made by letterlock of the keyrings.", *lines]).encode()
    with contextlib.suppress(FileNotFoundError):
        if file.read_bytes() == text:
            return
    group = grp.getgrnam(GROUP).gr_gid
    ROOT.mkdir(mode=0o711, parents=True, exist_ok=True)
    for directory in [*reversed(file.relative_to(ROOT).parents)][1:]:
        if not (ROOT / directory).exists():
            (ROOT / directory).mkdir(mode=0o750)
            os.chown(ROOT / directory, 0, group)
    write_durably(file, text, 0o640, group)


def app_passwords(ring: Keyring) -> list[str]:
    """Return the names of the app passwords in *ring*."""
    return [credential.name for credential in ring.credentials if credential.name != OWN]
