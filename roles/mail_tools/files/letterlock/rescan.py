"""Stored mail is read through Dovecot, judged, and taken away from its user when it is malware."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from letterlock import lmtp_front, locks, session_key
from letterlock.age import NotSealed
from letterlock.clamd import CHUNK, CLEAN, MALWARE, Verdict
from letterlock.doveadm import ENVIRONMENT, Doveadm, Failed, any_of, in_mailbox, uid_set
from letterlock.notice import notice
from letterlock.quarantine import Item, Quarantine, fingerprint_of, hash_of
from letterlock.released import Released
from letterlock.restic import text_of
from letterlock.scan_settings import STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from letterlock.scan_settings import ScanSettings

# A larger message goes to the disk on its way to clamd.
SMALL = 4 << 20
# Messages that are asked for beyond those that are judged at once, so that clamd need not wait.
AHEAD = 4
PIPE_OCTETS = 1 << 20
FIELDS = "user mailbox-guid uid size.physical text"
BEFORE_TEXT = b" text="
LONGEST_ROW = 4096
READ_SECONDS = 900
# Accounts share them, so that there is no file for each.
LOCKS = 16
# What Dovecot says of mail that is encrypted with its user's key.
NOT_OURS = "Private key not available"


@dataclass(frozen=True)
class Message:
    """A stored message, as far as an index tells."""

    account: str
    mailbox: str
    box: str
    uid: int
    guid: str
    flags: tuple[str, ...]
    received: int
    saved: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What names it: account, mailbox GUID, UID."""
        return self.account, self.box, self.uid


@dataclass
class Outcome:
    """What judging some messages came to."""

    clean: list[Message] = field(default_factory=list)
    taken: list[tuple[Message, Item]] = field(default_factory=list)
    # Malware that could not be taken away, and what could not be read.
    failed: list[Message] = field(default_factory=list)
    # What its user alone can read.
    sealed: list[Message] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add what *other* holds."""
        self.clean += other.clean
        self.taken += other.taken
        self.failed += other.failed
        self.sealed += other.sealed


def query_for(messages: list[Message]) -> list[str]:
    """Return the search that finds *messages*, mailbox by mailbox."""
    by_box: dict[tuple[str, str], list[int]] = {}
    for message in messages:
        by_box.setdefault((message.mailbox, message.box), []).append(message.uid)
    return any_of([[*in_mailbox(name, guid), "uid", uid_set(uids)] for (name, guid), uids in by_box.items()])


class Cut:
    """The text of one message in a stream of many: as many octets as its row says, and not one more."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """Take the *stream*, which is at the text's beginning."""
        self.stream, self.left = stream, size

    def read(self, most: int = CHUNK) -> bytes:
        """Return the next octets; none at its end."""
        some = self.stream.read(min(most, self.left))
        self.left -= len(some)
        if self.left and not some:
            raise Failed("doveadm fetch ended in the middle of a message")
        return some


class Texts:
    """The texts of messages, as one doveadm reads them.

    doveadm's flow format writes a text as it is, and `size.physical` octets of it, which is all that tells where it ends: a
    text may hold anything. (Its tab format puts a tab between the blocks of a text.) What it can't read it leaves out and goes
    on, so that the next rows would be taken for the text: of what came nothing is to be relied on before `check`.
    """

    def __init__(self, process: subprocess.Popen, errors: BinaryIO) -> None:
        """Take doveadm's *process*, and the file with what it says of *errors*."""
        self.process, self.errors = process, errors

    def __iter__(self) -> Iterator[tuple[tuple[str, str, int], Cut]]:
        """Yield ((account, mailbox GUID, UID), text); the text is read before the next one. Raises Failed."""
        stream = self.process.stdout
        while row := head_of_row(stream):
            values = dict(word.split("=", 1) for word in row.decode(errors="replace").split(" ") if "=" in word)
            try:
                key = values["user"], values["mailbox-guid"], int(values["uid"])
                text = Cut(stream, int(values["size.physical"]))
            except (ValueError, KeyError) as error:
                raise Failed(f"doveadm fetch: a row can't be read: {row[:200]!r}") from error
            yield key, text
            while text.read():
                pass
            if stream.read(1) != b"\n":
                raise Failed(f"doveadm fetch: a message of {key[0]} is not as long as Dovecot says")
        self.process.wait()

    def check(self) -> None:
        """Raise Failed when doveadm has said that it could not read something, or has ended so."""
        said = text_of(self.errors).strip().splitlines()
        if said or self.process.poll():
            raise Failed(said[-1] if said else f"doveadm fetch: exit code {self.process.poll()}")


@contextlib.contextmanager
def reading(messages: list[Message], key: str) -> Iterator[Texts]:
    """Have doveadm read *messages*, with a session's *key* where it has one; a fault is told in its own words where it has any."""
    accounts = list(dict.fromkeys(message.account for message in messages))
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as names, session_key.configured(key) as (options, inherited):
        names.write("".join(f"{account}\n" for account in accounts).encode())
        names.seek(0)
        with subprocess.Popen(
            ["doveadm", *options, "-f", "flow", "fetch", "-F", "/dev/stdin", "--", FIELDS, *query_for(messages)],
            stdin=names, stdout=subprocess.PIPE, stderr=errors, env=ENVIRONMENT, bufsize=PIPE_OCTETS, pass_fds=inherited,
        ) as process:
            texts = Texts(process, errors)
            try:
                widen(process.stdout)
                yield texts
            except Failed:
                texts.check()
                raise
            finally:
                process.kill()


def widen(pipe: BinaryIO) -> None:
    """Have *pipe* hold more where there is room: all pipes of root's on the machine share 64 MiB (pipe-user-pages-soft in pipe(7))."""
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_OCTETS)


def head_of_row(stream: BinaryIO) -> bytes:
    """Return what stands before a text; nothing at the end."""
    row = b""
    while not row.endswith(BEFORE_TEXT):
        octet = stream.read(1)
        if not octet or len(row) > LONGEST_ROW:
            return row
        row += octet
    return row.removesuffix(BEFORE_TEXT)


def file_for(octets: int) -> BinaryIO:
    """Return an empty file for so many *octets*: in memory, or a larger one on the disk."""
    if octets > SMALL:
        return tempfile.TemporaryFile()
    return os.fdopen(os.memfd_create("message"), "wb")


def lock_of(account: str) -> Path:
    """Return what is held while a message of *account* is taken away: sessions that begin together, and the sweep, meet the same ones."""
    return STATE / f"taking-{zlib.crc32(account.encode()) % LOCKS}.lock"


class Judge:
    """Judges stored messages, and takes those away that are malware."""

    def __init__(self, settings: ScanSettings, stage: str, *, before_each: Callable[[], None] = lambda: None, key: str = "") -> None:
        """Take the settings, who judges (gate or sweep), what is called before each message is, and the key of the session."""
        self.settings, self.stage, self.before_each, self.key = settings, stage, before_each, key
        self.clamd = settings.clamd()
        self.quarantine = Quarantine(settings.recipients)
        self.doveadm = Doveadm()

    def judge(self, messages: list[Message], workers: int, go_on: Callable[[], bool]) -> Outcome:
        """Judge *messages*, *workers* at once as long as *go_on* says; raise Unavailable when clamd gives no verdict.

        What is in no list of the outcome was not judged: it was gone, or the time was over.
        """
        outcome, parts = Outcome(), [messages]
        while parts:
            some = parts.pop()
            try:
                verdicts = self.verdicts(some, workers, go_on)
            except Failed as failed:
                # What is expunged while it is read fails the whole; what can't be read at all is found by halves.
                half = (len(some) + 1) // 2
                if len(some) > 1:
                    parts += [some[half:], some[:half]]
                else:
                    self.fail(some[0], failed, outcome)
            else:
                for message, verdict in verdicts:
                    self.settle(message, verdict, outcome)
            if not go_on():
                break
        return outcome

    def verdicts(self, messages: list[Message], workers: int, go_on: Callable[[], bool]) -> list[tuple[Message, Verdict]]:
        """Return (message, verdict) of *messages* as one doveadm reads them; raise Failed where it can't read all, and Unavailable."""
        by_key = {message.key: message for message in messages}
        found = []
        with self.clamd.files() as files, reading(messages, self.key) as texts:
            for key, text in texts:
                message = by_key.get(key)
                if message is not None:
                    self.before_each()
                    with file_for(text.left) as file:
                        for chunk in iter(text.read, b""):
                            file.write(chunk)
                        file.flush()
                        files.ask(message, file.fileno())
                while len(files.asked) > workers + AHEAD:
                    found.append(files.answer())
                if not go_on():
                    break
            while files.asked:
                found.append(files.answer())
            texts.check()
        return found

    def fail(self, message: Message, failed: Failed, outcome: Outcome) -> None:
        """Note that *message* can't be read."""
        if NOT_OURS in str(failed):
            outcome.sealed.append(message)
            return
        print(f"{message.account}: {message.mailbox}, UID {message.uid}: {failed}", file=sys.stderr, flush=True)
        outcome.failed.append(message)

    def settle(self, message: Message, verdict: Verdict, outcome: Outcome) -> None:
        """Note what is clean; take away what is not."""
        # Stored malware can't be rejected any more; what the operator lets in with a tag stays.
        doomed = {"quarantine", "reject"} if verdict.kind == MALWARE else {"quarantine"}
        if verdict.kind == CLEAN or self.settings.policy[verdict.kind] not in doomed:
            outcome.clean.append(message)
            return
        try:
            with locks.only_one(lock_of(message.account)), tempfile.TemporaryFile() as file:
                if not self.read(message, file):
                    # Gone. It is no news here, but its GUID is not clean: it may be in another mailbox now.
                    return
                item = self.take(message, verdict, file)
        except (OSError, Failed, NotSealed, locks.Busy) as fault:
            where = f"{message.account}: {message.mailbox}, UID {message.uid}"
            print(f"{where}: {verdict.signature}: not taken: {fault}", file=sys.stderr, flush=True)
            outcome.failed.append(message)
            return
        if item is None:
            outcome.clean.append(message)
        else:
            outcome.taken.append((message, item))

    def read(self, message: Message, into: BinaryIO) -> bool:
        """Write the text of *message* to *into*, as it is stored; return whether it is still there. Raises Failed."""
        where = [*in_mailbox(message.mailbox, message.box), "uid", str(message.uid)]
        with session_key.configured(self.key) as (options, inherited):
            done = subprocess.run(
                ["doveadm", *options, "-f", "flow", "fetch", "-u", message.account, "text", *where],
                stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT, timeout=READ_SECONDS, check=False, pass_fds=inherited,
            )
        if done.returncode:
            raise Failed(done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}")
        into.write(done.stdout.removeprefix(b"text=").removesuffix(b"\n"))
        into.seek(0)
        return bool(done.stdout)

    def take(self, message: Message, verdict: Verdict, file: BinaryIO) -> Item | None:
        """Put *message*, whose text is in *file*, into quarantine and expunge it; return None when the operator has released it before.

        Raises Failed, NotSealed or OSError.
        """
        sha256, octets = hash_of(file)
        fingerprint = fingerprint_of(file)
        if Released().has(fingerprint, verdict.signature):
            return None
        item = self.quarantine.put(Item(
            account=message.account, verdict=verdict.kind, signature=verdict.signature, stage=self.stage, octets=octets, sha256=sha256,
            fingerprint=fingerprint, mailbox=message.mailbox, flags=message.flags, received=message.received, saved=message.saved,
            uid=message.uid, guid=message.guid,
        ), file)
        where = [*in_mailbox(message.mailbox, message.box), "uid", str(message.uid)]
        self.doveadm.one("expunge", user=message.account, query=where)
        if self.doveadm.one("fetch", user=message.account, field=["uid"], query=where):
            raise Failed("it is still there after the expunge")
        where = f"{item.account}: {item.mailbox}, UID {item.uid}"
        print(f"{where}: {item.verdict} {item.signature}, in quarantine as {item.identity}", flush=True)
        self.tell(item, file)
        return item

    def tell(self, item: Item, text: BinaryIO) -> None:
        """Deliver a notice. A notice that fails is only told."""
        wanted = self.settings.raw["notice"]
        if not wanted["enabled"]:
            return
        try:
            made = notice(item, text, sender=wanted["from"], subject=wanted["subject"], text=wanted["text"])
            lmtp_front.deliver(self.settings.lmtp_socket, f"<{item.account}>".encode(), made)
        except lmtp_front.Gone as gone:
            print(f"{item.account}: no notice of {item.identity}: {gone}", file=sys.stderr, flush=True)


def messages_of(account: str, names: dict[str, str], rows: Iterable[dict]) -> Iterator[Message]:
    """Yield the messages of doveadm's *rows*; *names* is {mailbox GUID: name}."""
    for row in rows:
        if row.get("mailbox-guid") in names:
            yield Message(
                account=account, mailbox=names[row["mailbox-guid"]], box=row["mailbox-guid"], uid=int(row["uid"]), guid=row["guid"],
                flags=tuple(flag for flag in row["flags"].split() if flag != "\\Recent"), received=int(row["date.received.unixtime"]),
                saved=int(row["date.saved.unixtime"]),
            )


MESSAGE_FIELDS = ["mailbox-guid", "uid", "guid", "flags", "date.received.unixtime", "date.saved.unixtime"]
