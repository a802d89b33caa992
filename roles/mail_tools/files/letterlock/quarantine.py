"""Mail that nobody may see: sealed to the operator's keys, with a record of what it is and where it was.

An item is a file that age(1) encrypted to `mail_scan_quarantine_recipients`, whose
identities exist outside the host, and a JSON beside it with what an operator has to
see without opening it: no sender, no subject. The JSON is written last, so an item
is whole when it is listed. https://age-encryption.org/v1
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import secrets
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from letterlock.age import SEAL_SECONDS, NotSealed, seal
from letterlock.doveadm import ENVIRONMENT
from letterlock.ledger import sync_directory, write_durably
from letterlock.scan_settings import QUARANTINE

if TYPE_CHECKING:
    from pathlib import Path

    from letterlock.retention import Run

LONGEST_LINE = 1 << 16
# What delivery puts before a message, Dovecot's and this kit's.
TRACE = re.compile(rb"(Return-Path|Delivered-To|Received|X-Letterlock-Scan|X-Letterlock-Spam):", re.IGNORECASE)
IDENTITY = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{6}")
# What was done to items and is not yet in the ledger, which a delivery can't wait for.
UNRECORDED = "unrecorded"


def new_identity() -> str:
    """Return a name that no other item has, and that sorts by time."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Item:
    """One message of one account. Times are seconds since the epoch, or None where there is none yet."""

    account: str
    verdict: str
    signature: str
    # Who found it: delivery, gate or sweep.
    stage: str
    octets: int
    sha256: str
    # What it is known by when it was released, or comes again.
    fingerprint: str
    mailbox: str = "INBOX"
    flags: tuple[str, ...] = ()
    received: int | None = None
    saved: int | None = None
    uid: int | None = None
    guid: str | None = None
    identity: str = field(default_factory=new_identity)
    time: int = field(default_factory=lambda: int(time.time()))

    def line(self) -> str:
        """Return it for a list."""
        return f"{self.identity}  {self.account}  {self.mailbox}  {self.verdict}: {self.signature}  {self.octets} octets  {self.stage}"


def hash_of(message: BinaryIO) -> tuple[str, int]:
    """Return (SHA-256, octets) of *message* from its beginning, as if each line ended with a line feed: how it is stored is no matter."""
    message.seek(0)
    found = digest_of(message)
    message.seek(0)
    return found


def digest_of(message: BinaryIO) -> tuple[str, int]:
    """Return (SHA-256, octets) of what is left of *message*, in the same way."""
    whole, octets, held = hashlib.sha256(), 0, b""
    while chunk := message.read(1 << 20):
        octets += len(chunk)
        chunk = held + chunk
        # A CR at the end may belong to a LF that comes.
        held = b"\r" if chunk.endswith(b"\r") else b""
        whole.update(chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n"))
    whole.update(held)
    return whole.hexdigest(), octets


def fingerprint_of(message: BinaryIO) -> str:
    """Return the SHA-256 of *message* without the trace fields at its beginning, however its lines end.

    So it is the same message as it came in, as Dovecot stored it with fields of its own (RFC 5321, 4.4), and delivered again.
    """
    message.seek(0)
    in_trace = False
    while True:
        at = message.tell()
        line = message.readline(LONGEST_LINE)
        if not (TRACE.match(line) or (in_trace and line[:1] in (b" ", b"\t"))):
            break
        in_trace = True
    message.seek(at)
    return digest_of(message)[0]


class Quarantine:
    """The quarantine of one host."""

    def __init__(self, recipients: list[str], root: Path = QUARANTINE) -> None:
        """Take the age *recipients* that items are sealed to."""
        self.recipients, self.root = recipients, root

    def prepare(self) -> None:
        """Make its directories."""
        for directory in (self.root, self.root / UNRECORDED):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # ---- in

    def put(self, item: Item, message: BinaryIO) -> Item:
        """Seal *message* as *item*, durably; raise NotSealed or OSError, and leave nothing behind then."""
        self.prepare()
        sealed = self.root / f"{item.identity}.age"
        message.flush()
        try:
            # With an offset of its own: several recipients' items are made of one message.
            with sealed.open("xb") as stream, open(f"/proc/self/fd/{message.fileno()}", "rb") as whole:  # noqa: PTH123  # no path of its own
                seal(self.recipients, whole, stream)
                os.fsync(stream.fileno())
            self.note(item, "quarantined")
            write_durably(self.root / f"{item.identity}.json", json.dumps(asdict(item)).encode())
        except (OSError, NotSealed):
            for left in (sealed, self.root / UNRECORDED / f"{item.identity}-quarantined.json"):
                left.unlink(missing_ok=True)
            raise
        return item

    def note(self, item: Item, action: str, **more: object) -> None:
        """Keep for the ledger what was done to *item*: no content, and no address but the account's."""
        entry = {
            "kind": "quarantine", "action": action, "item": item.identity, "account": item.account, "mailbox": item.mailbox,
            "verdict": item.verdict, "signature": item.signature, "stage": item.stage, "guid": item.guid, "size": item.octets, **more,
        }
        write_durably(self.root / UNRECORDED / f"{item.identity}-{action}.json", json.dumps(entry).encode())

    # ---- what is there

    def items(self) -> list[Item]:
        """Return all items, the oldest first."""
        return [self.read(file) for file in sorted(self.root.glob("*.json"))]

    def read(self, file: Path) -> Item:
        """Return the item in *file*."""
        raw = json.loads(file.read_text())
        return Item(**{**raw, "flags": tuple(raw["flags"])})

    def item(self, identity: str) -> Item:
        """Return one item; raise KeyError."""
        file = self.root / f"{identity}.json"
        if not IDENTITY.fullmatch(identity) or not file.exists():
            raise KeyError(identity)
        return self.read(file)

    # ---- out

    def open(self, item: Item, identity: BinaryIO, into: BinaryIO) -> None:
        """Write the message of *item* to *into*; *identity* is an open file with the age identity, which never reaches a command line."""
        done = subprocess.run(
            # /dev/fd: so that an identity from standard input or a process substitution does as well.
            ["age", "--decrypt", "--identity", f"/dev/fd/{identity.fileno()}", str(self.root / f"{item.identity}.age")],
            stdin=subprocess.DEVNULL, stdout=into, stderr=subprocess.PIPE, timeout=SEAL_SECONDS, check=False, env=ENVIRONMENT,
            pass_fds=[identity.fileno()],
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise NotSealed(f"{item.identity}: {said[0] if said else 'age could not open it'}")
        into.seek(0)
        found, octets = hash_of(into)
        if (found, octets) != (item.sha256, item.octets):
            raise NotSealed(f"{item.identity}: what was sealed is not the message that was found")

    def drop(self, item: Item, action: str, **more: object) -> None:
        """Forget *item*, and note that it was."""
        self.prepare()
        self.note(item, action, **more)
        for suffix in ("json", "age"):
            (self.root / f"{item.identity}.{suffix}").unlink(missing_ok=True)
        sync_directory(self.root)

    def drop_halves(self) -> None:
        """Remove sealed files that a crash left without their JSON: what they were to hold is still where it was."""
        for sealed in self.root.glob("*.age"):
            if not sealed.with_suffix(".json").exists() and time.time() - sealed.stat().st_mtime > SEAL_SECONDS:
                sealed.unlink()

    # ---- for the ledger

    def record(self, run: Run) -> int:
        """Write into the ledger of *run* what it does not know yet; return how many lines that were."""
        files = sorted((self.root / UNRECORDED).glob("*.json"), key=lambda each: each.stat().st_mtime)
        for file in files:
            # Twice, after a crash between the two, tells no lie; never would.
            run.ledger.append([{"run": run.identity, **json.loads(file.read_text())}], run.now)
            file.unlink()
        return len(files)
