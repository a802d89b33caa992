"""A drill: the newest backup on a scratch host, and every message read back as its user's clients would, over IMAPS and POP3S.

The users' passwords are not known here. A master credential opens the accounts: made
for the drill, known to this process alone, in a file in memory that ends with it. Mail
that is encrypted with its user's key it can't read: that is compared by its files, and
read by those accounts' own passwords that mail_backup_drill_passwords has.
https://doc.dovecot.org/latest/core/config/auth/master_users.html
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import imaplib
import json
import os
import poplib
import random
import re
import secrets
import shutil
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from letterlock import backup, keystore, manifest, stored
from letterlock.accounts import place_of
from letterlock.batches import bounded_map, chunks
from letterlock.restore import SHOWN, Restore, Wish
from letterlock.stored import encoded
from letterlock.tally import OLDEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MASTER_FILE = Path("/run/letterlock/drill")
MASTER = "letterlock-drill"
PASSWORDS = Path("/etc/letterlock/backup/drill_passwords.json")
CERTIFICATE = "/etc/letterlock/dovecot/current/certificate.pem"
TIMEOUT_SECONDS = 120
# Messages of one FETCH.
MESSAGES_AT_ONCE = 200
FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
NUMBERS = {name: re.compile(rb"\b" + name.encode() + rb" (\d+)") for name in ("UID", "RFC822.SIZE")}


@dataclass
class Report:
    """What a drill came to. Times are seconds since the epoch, durations seconds."""

    host: str
    snapshot: str = ""
    snapshot_time: float = 0
    begun: float = 0
    ended: float = 0
    age_seconds: float = 0
    restore_seconds: float = 0
    # From the beginning, which may be before the scratch host was set up, until all mail was back.
    rto_seconds: float = 0
    percent: int = 100
    accounts: int = 0
    messages: int = 0
    imap_messages: int = 0
    imap_hashes: int = 0
    pop3_messages: int = 0
    pop3_hashes: int = 0
    without_hash: int = 0
    # Messages that their user alone can read, compared by their files.
    encrypted: int = 0
    # Of them, those that were read with their user's own password, by each protocol.
    opened: int = 0
    # Not there, and written down with the backup as expunged while it was made.
    gone: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether something was compared, and nothing differs."""
        return not self.differences and self.imap_messages + self.pop3_messages > 0


@contextlib.contextmanager
def master_credential() -> Iterator[str]:
    """Give a password with which MASTER opens every account, and take it back."""
    password = secrets.token_urlsafe(32)
    digest = base64.b64encode(hashlib.sha512(password.encode()).digest()).decode()
    MASTER_FILE.parent.mkdir(mode=0o711, exist_ok=True)
    try:
        handle = os.open(MASTER_FILE, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(f"{MASTER}:{{SHA512}}{digest}\n")
        shutil.chown(MASTER_FILE, group="dovecot")
        MASTER_FILE.chmod(0o640)
        yield password
    finally:
        MASTER_FILE.unlink(missing_ok=True)


def tls() -> ssl.SSLContext:
    """Return a context that trusts the certificate that was deployed here, and no other."""
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


class Drill:
    """One drill on this host, which holds no other mail."""

    def __init__(self, settings: backup.Settings, host: str, percent: int, begun: float, say: Callable[[str], None]) -> None:
        """Take the *host* whose backup is read back, and how many percent of the messages' texts are read."""
        self.settings, self.say = settings, say
        self.report = Report(host=host, percent=percent, begun=begun)
        self.password = ""
        # {account: its own password}, of those that the operator gave.
        self.passwords: dict[str, str] = json.loads(PASSWORDS.read_text()) if PASSWORDS.exists() else {}
        self.started = begun
        self.mutex = Lock()
        self.gone: Counter = Counter()
        # What is chosen must be known to nobody before, and need not be secret after.
        self.random = random.Random(secrets.token_bytes(16))  # noqa: S311

    def execute(self, wanted: str) -> Report:
        """Restore the snapshot *wanted*, read it back, and remove it; raise Fault or Refused."""
        if not self.settings.raw["drill"]:
            raise backup.Refused("a drill removes all mail of its host first; this one is not declared a scratch host (mail_backup_drill)")
        self.empty()
        report = self.report
        work = Restore(self.settings, wanted, report.host, self.say)
        report.snapshot, report.snapshot_time = work.snapshot["id"], backup.parse_time(work.snapshot["time"])
        report.age_seconds = report.begun - report.snapshot_time
        self.started = time.time()
        try:
            outcome = work.execute(Wish(), after=self.read_back)
            report.differences += outcome.differences
        finally:
            # A scratch host is no second home for everybody's mail.
            self.empty()
        report.ended = time.time()
        return report

    def empty(self) -> None:
        """Remove all mail of this host and what the kit knows of it."""
        for home in self.settings.mail_root.iterdir():
            if home.is_dir():
                shutil.rmtree(home)
        keystore.remove_all()
        for name in ("ledger", "marks.sqlite", "last_run.json", "figures.json", OLDEST):
            path = backup.STATE / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def read_back(self, manifests: list[dict], gone: Counter) -> None:
        """Open every account and compare what its clients see with its manifest."""
        self.gone = gone
        now = time.time()
        self.report.restore_seconds, self.report.rto_seconds = now - self.started, now - self.report.begun
        with master_credential() as self.password:
            for done, _ in enumerate(bounded_map(self.read_account, manifests), 1):
                if done % 100 == 0:
                    self.say(f"read {done} of {len(manifests)} accounts")

    def read_account(self, wanted: dict) -> None:
        """Read one account back."""
        found: list[str] = []
        counts: Counter = Counter()
        for protocol, read in (("files", self.by_files), ("imap", self.by_imap), ("pop3", self.by_pop3)):
            if protocol in ["files", *self.settings.raw["protocols"]]:
                try:
                    found += [f"{protocol.upper()}: {each}" for each in read(wanted, counts)]
                except (OSError, imaplib.IMAP4.error, poplib.error_proto) as error:
                    found.append(f"{protocol.upper()}: {error}")
        if wanted["account"] in self.passwords and not counts["opened"]:
            found.append("its password was given, and it opened no encrypted message")
        missing = [each for each in found if manifest.MISSING in each]
        expected = self.gone[wanted["account"]] * len(self.settings.raw["protocols"])
        with self.mutex:
            report = self.report
            report.accounts += 1
            report.messages += sum(len(box["messages"]) for box in wanted["mailboxes"])
            for name, count in counts.items():
                setattr(report, name, getattr(report, name) + count)
            if 0 < len(missing) <= expected:
                report.gone += len(missing)
                found = [each for each in found if each not in missing]
            report.differences += [f"{wanted['account']}: {each}" for each in found[:SHOWN]]
            if len(found) > SHOWN:
                report.differences.append(f"{wanted['account']}: and {len(found) - SHOWN} more")

    def login(self, account: str) -> tuple[str, str]:
        """Return the name and password that open *account*."""
        return (account, self.passwords[account]) if account in self.passwords else (f"{account}*{MASTER}", self.password)

    def sample(self, account: str, messages: list[list]) -> list[list]:
        """Return the messages of *account* whose text is read."""
        opens = account in self.passwords
        wanted = [message for message in messages if message[manifest.HASH] and (opens or not is_encrypted(message))]
        if self.report.percent >= 100 or not wanted:
            return wanted
        return self.random.sample(wanted, max(1, len(wanted) * self.report.percent // 100))

    @staticmethod
    def differs(message: list, texts: Iterable[bytes], protocol: str, counts: Counter) -> bool:
        """Tell whether a *message* of a manifest is none of *texts*, and count it.

        Of an encrypted one the manifest has no hash of the text. But its file is, octet by octet, what it was, and Dovecot's cipher
        (AES-256-GCM) is authenticated: the text that comes out, as long as it was, is the text that went in.
        """
        if is_encrypted(message):
            counts["opened"] += 1
            return message[manifest.SIZE] not in map(len, texts)
        counts[f"{protocol}_hashes"] += 1
        return message[manifest.HASH] not in map(sha256, texts)

    # ---- encrypted mail

    def by_files(self, wanted: dict, counts: Counter) -> Iterator[str]:
        """Yield how messages differ that their user alone can read: their files have to be, octet by octet, what they were."""
        home = self.settings.mail_root / place_of(wanted["account"])
        for box in wanted["mailboxes"]:
            theirs = {message[0]: message[manifest.HASH] for message in box["messages"] if is_encrypted(message)}
            found = stored.hashes(home, box["name"], set(theirs)) if theirs else {}
            counts["encrypted"] += len(theirs)
            for uid, was in theirs.items():
                if found.get(uid, was) != was:
                    yield f"{box['name']}, UID {uid}: its file is another"

    # ---- IMAP

    def by_imap(self, wanted: dict, counts: Counter) -> Iterator[str]:
        """Yield how the account differs as an IMAP client sees it."""
        address = self.settings.raw["address"]
        client = imaplib.IMAP4_SSL(address, 993, ssl_context=tls(), timeout=TIMEOUT_SECONDS)
        with client:
            client.login(*self.login(wanted["account"]))
            for box in wanted["mailboxes"]:
                # No client sees it; the restore compared it through Dovecot.
                if box["name"] != self.settings.held.get(wanted["account"]):
                    yield from self.imap_mailbox(client, wanted["account"], box, counts)

    def imap_mailbox(self, client: imaplib.IMAP4, account: str, box: dict, counts: Counter) -> Iterator[str]:
        """Yield how one mailbox of *account* differs."""
        name = box["name"]
        if client.select(quoted(name), readonly=True)[0] != "OK":
            yield f"{manifest.MISSING}: the mailbox {name}"
            return
        validity = int(client.response("UIDVALIDITY")[1][0])
        if validity != box["uidvalidity"]:
            yield f"{name}: UIDVALIDITY was {box['uidvalidity']} and is {validity}"
        next_uid = int(client.response("UIDNEXT")[1][0])
        if next_uid < box["uidnext"]:
            yield f"{name}: UIDNEXT was {box['uidnext']} and is {next_uid}"
        if not box["messages"]:
            return
        seen = dict(map(imap_message, fetched(client, "1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE)")))
        for message in box["messages"]:
            if message[0] in seen:
                counts["imap_messages"] += 1
                counts["without_hash"] += not message[manifest.HASH]
            yield from (f"{name}, UID {message[0]}: {each}" for each in message_differences(message, seen.get(message[0])))
        for some in chunks(self.sample(account, [message for message in box["messages"] if message[0] in seen]), MESSAGES_AT_ONCE):
            texts = dict(map(imap_text, fetched(client, ",".join(str(message[0]) for message in some), "(UID BODY.PEEK[])")))
            for message in some:
                if self.differs(message, [texts.get(message[0], b"")], "imap", counts):
                    yield f"{name}, UID {message[0]}: its text is another"

    # ---- POP3

    def by_pop3(self, wanted: dict, counts: Counter) -> Iterator[str]:
        """Yield how the account differs as a POP3 client sees it. The session ends without QUIT, so that it changes nothing."""
        inbox = next((box for box in wanted["mailboxes"] if box["name"] == "INBOX"), {"messages": [], "uidvalidity": 0})
        client = poplib.POP3_SSL(self.settings.raw["address"], 995, context=tls(), timeout=TIMEOUT_SECONDS)
        try:
            name, password = self.login(wanted["account"])
            client.user(name)
            client.pass_(password)
            listed = dict(reversed(line.decode().split(" ", 1)) for line in client.uidl()[1])
            hashes = {}
            for message in inbox["messages"]:
                uidl = uidl_of(message[0], inbox["uidvalidity"])
                if uidl not in listed:
                    if message[-1]:
                        yield f"{manifest.MISSING}: UIDL {uidl}"
                    continue
                counts["pop3_messages"] += 1
                hashes[uidl] = message
            for message in self.sample(wanted["account"], list(hashes.values())):
                uidl = uidl_of(message[0], inbox["uidvalidity"])
                text = b"".join(line + b"\r\n" for line in client.retr(int(listed[uidl]))[1])
                # POP3 ends each message with a line's end, whether it has one or not.
                if self.differs(message, [text, text.removesuffix(b"\r\n")], "pop3", counts):
                    yield f"UIDL {uidl}: its text is another"
        finally:
            client.close()


def is_encrypted(message: list) -> bool:
    """Tell whether a *message* of a manifest is one that its user alone can read."""
    return message[manifest.HASH].startswith(stored.SEALED_HASH)


def message_differences(message: list, seen: tuple[int, list[str], int] | None) -> Iterator[str]:
    """Yield how a *message* of a manifest differs from what an IMAP client has *seen* of it: (size, flags, received)."""
    _, _, size, flags, _, received, _, settled = message
    if seen is None:
        yield from [manifest.MISSING] * settled
        return
    for what, was, now in zip(("size", "flags", "received"), (size, flags, received), seen, strict=True):
        if was != now and (settled or what != "flags"):
            yield f"{what} was {was} and is {now}"


def sha256(text: bytes) -> str:
    """Return the hash of *text* as manifests have it."""
    return hashlib.sha256(text).hexdigest()


def quoted(mailbox: str) -> str:
    """Return a mailbox's name as IMAP's quoted string, in modified UTF-7 (RFC 3501, 5.1.3)."""
    name = encoded(mailbox).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{name}"'


def uidl_of(uid: int, uidvalidity: int) -> str:
    """Return the unique id of POP3 (RFC 1939, 7) that Dovecot makes of both by default.

    >>> uidl_of(26, 1795550203)
    '0000001a6b05ebfb'
    """
    return f"{uid:08x}{uidvalidity:08x}"


def fetched(client: imaplib.IMAP4, uids: str, what: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (the line, the literal in it) of each answer to UID FETCH."""
    code, answers = client.uid("FETCH", uids, what)
    if code != "OK":
        raise imaplib.IMAP4.error(f"FETCH: {answers}")
    for answer in answers:
        if isinstance(answer, tuple):
            yield answer
        elif answer and answer != b")":
            yield answer, b""


def imap_message(answer: tuple[bytes, bytes]) -> tuple[int, tuple[int, list[str], int]]:
    """Return (UID, (size, flags, received)) of one answer."""
    line, _ = answer
    uid, size = (int(pattern.search(line).group(1)) for pattern in NUMBERS.values())
    flags = sorted(flag for flag in FLAGS.search(line).group(1).decode().split() if flag != "\\Recent")
    received = int(time.mktime(imaplib.Internaldate2tuple(line)))
    return uid, (size, flags, received)


def imap_text(answer: tuple[bytes, bytes]) -> tuple[int, bytes]:
    """Return (UID, the text) of one answer."""
    line, text = answer
    return int(NUMBERS["UID"].search(line).group(1)), text
