"""Mail that is there already is encrypted, or brought into the clear again: through Dovecot, one account after the other.

Dovecot copies the account's store into another one beside it (`doveadm backup`), with GUIDs,
UIDs, flags and dates, and encrypts what it writes with the account's public key. While the
account is at rest, for seconds, the copy is completed and compared, and the two stores change
places in one step. Interrupted at any point, one of them is whole and in place, and the next
run goes on from there.
docs/decisions/0015-mail-that-its-user-alone-opens.md
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from letterlock import keystore, manifest, session_key, stored
from letterlock.accounts import place_of
from letterlock.backup import STATE
from letterlock.doveadm import ENVIRONMENT, Failed, looking_at
from letterlock.keyring import CLEAR, MOVING, SEALED, one_line
from letterlock.ledger import sync_directory
from letterlock.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from letterlock.keyring import Keyring
    from letterlock.keystore import KeySettings

# Below the mail's root, beside the domains: no account's home can have this name.
ASIDE = ".letterlock-encrypting"
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# auth looks at its files once a second; a delivery that began before has ended by then, or is waited for.
REST_SECONDS, DELIVERY_SECONDS = 1.2, 10
COPY_SECONDS = 24 * 3600
# How Dovecot is told to write, in both dialects.
IN_CLEAR = {"2.3": ["-o", "plugin/mail_crypt_save_version=0"], "2.4": ["-o", "crypt_write_algorithm="]}
ENCRYPTED = {
    "2.3": ["-o", "plugin/mail_crypt_save_version=2", "-o", "plugin/mail_crypt_global_public_key={key}"],
    "2.4": ["-o", "crypt_write_algorithm=aes-256-gcm-sha256", "-o", "crypt_global_public_key_file=inline:{key}"],
}
HEAD = 512


class NotTheSame(Failed):
    """The copy is not what it was made of."""


def exchange(one: Path, other: Path) -> None:
    """Let two directories change places in one step; raise OSError.

    https://man7.org/linux/man-pages/man2/rename.2.html
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def is_encrypted(path: str) -> bool:
    """Tell whether the message in the file *path* is encrypted."""
    with open(path, "rb") as file:  # noqa: PTH123  # one of very many
        return stored.SEALED in file.read(HEAD)


def counts(store: Path) -> tuple[int, int]:
    """Return how many messages of a *store* are encrypted, and how many are not; what is expunged meanwhile is neither."""
    found = []
    for path in stored.all_files(store):
        with contextlib.suppress(FileNotFoundError):
            found.append(is_encrypted(path))
    return sum(found), len(found) - sum(found)


class Account:
    """One account's mail, which is to be encrypted, or with *clear* brought into the clear."""

    def __init__(self, ring: Keyring, wanted: KeySettings, say: Callable[[str], None], *, key: str = "", clear: bool = False) -> None:
        """Take the keyring, what the host is like, and the *key* that opens what is encrypted, in Dovecot's settings."""
        self.account, self.wanted, self.say, self.key, self.clear = ring.account, wanted, say, key, clear
        # What the account goes back to when it doesn't come to an end.
        self.before = ring.state
        self.live = wanted.mail_root / place_of(ring.account) / stored.STORES[wanted.format]
        self.beside = wanted.mail_root / ASIDE / place_of(ring.account) / self.live.name
        writes = IN_CLEAR if clear else ENCRYPTED
        self.writes = [option.format(key=one_line(ring.pairs[0].jwk)) for option in writes[wanted.series]]
        # A link to the old file would be as it is.
        self.writes += ["-o", "maildir_copy_with_hardlinks=no"] if wanted.format == "maildir" else []

    def doveadm(self, *arguments: str) -> str:
        """Run doveadm with the key that there is; raise Failed."""
        with session_key.configured(self.key) as (options, inherited):
            done = subprocess.run(
                ["doveadm", *options, *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", check=False, pass_fds=inherited, timeout=COPY_SECONDS,
            )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise Failed(f"doveadm: {said[0] if said else done.returncode}")
        return done.stdout

    def messages(self, *where: str) -> dict[tuple[str, int], tuple]:
        """Return {(mailbox GUID, UID): (GUID, flags, size, received, saved)} *where* Dovecot is told to look; raise Failed."""
        text = self.doveadm("-f", "json", *where, "fetch", "-u", self.account, " ".join(manifest.FIELDS), "all")
        return {
            (row["mailbox-guid"], int(row["uid"])): (
                row["guid"], tuple(manifest.flags_of(row)), int(row["size.virtual"]), int(row["date.received.unixtime"]),
                int(row["date.saved.unixtime"]),
            )
            for row in json.loads(text or "[]")
        }

    # ---- the steps

    def run(self) -> int:
        """Do it; return how many messages there are. Raises Failed or OSError; nothing is lost then, and it can be run again."""
        encrypted, clear = counts(self.live)
        if encrypted if self.clear else clear:
            try:
                self.copy_first()
                self.rest()
                self.copy()
                self.prove()
                exchange(self.live, self.beside)
            except BaseException:
                self.set_state(self.before)
                raise
            sync_directory(self.live.parent)
        shutil.rmtree(self.beside, ignore_errors=True)
        self.set_state(CLEAR if self.clear else SEALED)
        return encrypted + clear

    def set_state(self, state: str) -> None:
        """Let the account be in *state*, for Dovecot, too."""
        with keystore.changed(self.account) as ring:
            ring.state = state

    def copy_first(self) -> None:
        """Copy the store; what an interrupted run left is gone on with, or begun anew where Dovecot can't."""
        try:
            self.copy()
        except Failed as failed:
            if not self.beside.exists():
                raise
            self.say(f"{self.account}: begins anew: {failed}")
            shutil.rmtree(self.beside)
            self.copy()

    def copy(self) -> None:
        """Let the store beside be what the live one is; what was copied before is not copied again."""
        owner = self.wanted.mail_root.stat()
        for directory in (self.beside.parents[2], self.beside.parents[1], self.beside.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, owner.st_uid, owner.st_gid)
        self.doveadm(*self.writes, "backup", "-u", self.account, f"{self.wanted.format}:{self.beside}")

    def rest(self) -> None:
        """Let nobody in, and no mail: it is deferred; wait until who was in has ended."""
        self.set_state(MOVING)
        time.sleep(REST_SECONDS)
        deadline = time.monotonic() + DELIVERY_SECONDS
        while True:
            # An exit code says that nobody was there to be sent away.
            with contextlib.suppress(Failed):
                self.doveadm("kick", self.account)
            before = self.messages()
            time.sleep(REST_SECONDS)
            if self.messages() == before:
                return
            if time.monotonic() > deadline:
                raise NotTheSame(f"{self.account}: something goes on changing its mail; nothing was changed")

    def prove(self) -> None:
        """Raise NotTheSame unless the copy is what the live store is, and written as it is to be."""
        there = self.messages()
        copied = self.messages(*looking_at(self.wanted.series, self.wanted.format, self.beside))
        wrong = [key for key in there.keys() | copied.keys() if there.get(key, ())[:-1] != copied.get(key, ())[:-1]]
        wrong += [path for path in stored.all_files(self.beside) if is_encrypted(path) == self.clear]
        if wrong:
            raise NotTheSame(f"{self.account}: nothing was changed: the copies of {len(wrong)} messages are wrong, as of {wrong[0]}")
        # Dovecot takes the copy for the day when a message was saved; what retention goes by is kept apart.
        Marks(STATE / "marks.sqlite").keep_saved([(f"{self.account}:{box}", uid, found[-1]) for (box, uid), found in there.items()])
