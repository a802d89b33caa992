"""Does anything of a message lie in clear on this host? A message that is like no other is sent through all of it, and looked for.

The message has a word of its own in each of its parts. It is delivered, read, searched,
sorted, moved and expunged as clients do; then each file that changed meanwhile, and the
journal, are searched for the words as they are and in base64.
"""

from __future__ import annotations

import base64
import contextlib
import imaplib
import os
import poplib
import secrets
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import lmtp_front
from letterlock.doveadm import ENVIRONMENT, Failed
from letterlock.drill import TIMEOUT_SECONDS, tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from letterlock.keystore import KeySettings

LETTERS, LENGTH = "bcdfghjklmnpqrstvwxz", 18
PARTS = ("sender", "subject", "header", "body", "attachment", "filename")
LMTP = "/run/dovecot/lmtp"
# What is no file of a disk; and the clock of a file system is coarser than a program's.
NOT_STORED = ("/proc", "/sys", "/dev")
CLOCK_SECONDS = 2
READ_AT_ONCE = 1 << 24
SETTLE_SECONDS = 3
LOOKS = (
    "(UID FLAGS INTERNALDATE RFC822.SIZE)", "(ENVELOPE)", "(BODYSTRUCTURE)", "(BODY)", "(BODY.PEEK[HEADER])",
    "(BODY.PEEK[HEADER.FIELDS (SUBJECT FROM X-CANARY)])", "(BODY.PEEK[1])", "(BODY.PEEK[2])", "(BODY.PEEK[2.MIME])", "(BODY[])",
)
SEARCHES = {"SUBJECT": "subject", "FROM": "sender", "HEADER X-Canary": "header", "BODY": "body", "TEXT": "filename"}
MAILBOX = "Leak-Audit"


@dataclass(frozen=True)
class Hit:
    """Where a word was found."""

    place: str
    offset: int
    part: str
    how: str

    def line(self) -> str:
        """Return it for a list."""
        return f"{self.place}: octet {self.offset}: the message's {self.part}, {self.how}"


@dataclass
class Canaries:
    """The words of one message, {part: word}."""

    words: dict[str, str] = field(default_factory=lambda: {
        part: "".join(secrets.choice(LETTERS) for _ in range(LENGTH)) for part in PARTS
    })

    def message(self) -> bytes:
        """Return the message, its attachment in base64."""
        words = self.words
        lines = (
            f"From: {words['sender']} <{words['sender']}@example.org>", f"Subject: {words['subject']}", f"X-Canary: {words['header']}",
            f"Message-ID: <{words['header']}@example.org>", "Date: Mon, 05 Jan 2026 10:11:12 +0000", "MIME-Version: 1.0",
            "Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: text/plain", "", f"Word: {words['body']}.", "--b",
            f"Content-Type: application/octet-stream; name={words['filename']}.bin", "Content-Transfer-Encoding: base64",
            f"Content-Disposition: attachment; filename={words['filename']}.bin", "",
            base64.b64encode(f"begins {words['attachment']} ends".encode()).decode(), "--b--", "",
        )
        return "\r\n".join(lines).encode()

    def patterns(self) -> dict[bytes, tuple[str, str]]:
        """Return {octets to look for: (part, how)}."""
        found = {}
        for part, word in self.words.items():
            found[word.encode()] = part, "as it is"
            found[word.upper().encode()] = part, "in capitals"
            for shift in range(3):
                # What stands before the word decides its letters in base64; those at the ends belong to the neighbours, too.
                text = base64.b64encode(b"\0" * shift + word.encode())
                found[text[4 if shift else 0 : len(word) // 3 * 4]] = part, "in base64"
        return found

    def hits_in(self, place: str, data: bytes, begin: int = 0) -> Iterator[Hit]:
        """Yield the hits in *data*, which begins at octet *begin* of a *place*."""
        for pattern, (part, how) in self.patterns().items():
            at = data.find(pattern)
            if at >= 0:
                yield Hit(place, begin + at, part, how)


class Audit:
    """One audit of one account."""

    def __init__(self, account: str, password: str, wanted: KeySettings, say: Callable[[str], None]) -> None:
        """Take the account, its password, and what the host is like."""
        self.account, self.password, self.wanted, self.say = account, password, wanted, say
        self.canaries = Canaries()
        self.begun = time.time()
        self.files = 0

    # ---- what clients do

    def deliver(self) -> None:
        """Have the message delivered twice, so that one is left when the other is expunged; raise Failed."""
        for _ in range(2):
            try:
                lmtp_front.deliver(LMTP, f"<{self.account}>".encode(), self.canaries.message())
            except lmtp_front.Gone as gone:
                raise Failed(f"the message was not delivered: {gone}") from gone

    @contextlib.contextmanager
    def imap(self) -> Iterator[imaplib.IMAP4]:
        """Lend a session."""
        with imaplib.IMAP4_SSL(self.wanted.address, 993, ssl_context=tls(), timeout=TIMEOUT_SECONDS) as client:
            client.login(self.account, self.password)
            yield client

    def use_imap(self) -> None:
        """Look at the message in all the ways that clients have, twice: what was wanted once is cached for the next."""
        for _ in range(2):
            with self.imap() as client:
                client.select("INBOX")
                uids = self.uids(client)
                for look in LOOKS:
                    client.uid("FETCH", ",".join(uids), look)
                for search, part in SEARCHES.items():
                    client.uid("SEARCH", *search.split(), self.canaries.words[part])
                for sort in ("(SUBJECT FROM)", "(DATE)", "(SIZE)"):
                    client.uid("SORT", sort, "UTF-8", "ALL")
                client.uid("THREAD", "REFERENCES", "UTF-8", "ALL")
        with self.imap() as client:
            client.create(MAILBOX)
            client.select("INBOX")
            client.uid("COPY", self.uids(client)[0], MAILBOX)
            client.uid("MOVE", self.uids(client)[-1], MAILBOX)
            client.select(MAILBOX)
            client.store("1", "+FLAGS", "(\\Deleted $canary)")
            client.expunge()

    def use_pop3(self) -> None:
        """Look at it, and leave it where it is."""
        client = poplib.POP3_SSL(self.wanted.address, 995, context=tls(), timeout=TIMEOUT_SECONDS)
        try:
            client.user(self.account)
            client.pass_(self.password)
            number = len(client.uidl()[1])
            client.top(number, 1)
            client.retr(number)
        finally:
            client.close()

    def uids(self, client: imaplib.IMAP4) -> list[str]:
        """Return the UIDs of the message in the mailbox that is selected; raise Failed when its user does not find it."""
        found = client.uid("SEARCH", "SUBJECT", self.canaries.words["subject"])[1][0].decode().split()
        if not found:
            raise Failed("the message is not there for its own user")
        return found

    def clean_up(self) -> None:
        """Remove the message wherever it is."""
        with self.imap() as client:
            for mailbox in ("INBOX", MAILBOX):
                if client.select(mailbox)[0] == "OK":
                    client.uid("STORE", "1:*", "-FLAGS", "($canary)")
                    uids = client.uid("SEARCH", "SUBJECT", self.canaries.words["subject"])[1][0].decode().split()
                    if uids:
                        client.uid("STORE", ",".join(uids), "+FLAGS", "(\\Deleted)")
                        client.uid("EXPUNGE", ",".join(uids))
            client.select("INBOX")
            client.delete(MAILBOX)

    # ---- where it could be

    def changed_files(self, root: Path = Path("/")) -> Iterator[str]:
        """Yield the files that changed since the audit began."""
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in NOT_STORED]  # noqa: PTH118  # millions of files
            for name in names:
                path = f"{folder}/{name}".replace("//", "/")
                with contextlib.suppress(OSError):
                    status = os.lstat(path)
                    if os.path.stat.S_ISREG(status.st_mode) and max(status.st_mtime, status.st_ctime) >= self.begun - CLOCK_SECONDS:
                        yield path

    def hits_in_file(self, path: str) -> Iterator[Hit]:
        """Yield the hits in a file, in parts that overlap by the longest word."""
        with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123  # as above
            self.files += 1
            before, begin = b"", 0
            while data := file.read(READ_AT_ONCE):
                yield from self.canaries.hits_in(path, before + data, begin)
                begin += len(before) + len(data)
                before = data[-2 * LENGTH :]
                begin -= len(before)

    def hits(self, root: Path = Path("/")) -> list[Hit]:
        """Return the hits in all files below *root* that changed since the audit began."""
        return [hit for path in self.changed_files(root) for hit in self.hits_in_file(path)]

    def hits_in_journal(self) -> list[Hit]:
        """Return the hits in the journal, which compresses what is long."""
        command = ["journalctl", "--no-pager", "--output=export", f"--since=@{int(self.begun)}"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
        return list(self.canaries.hits_in("the journal", done.stdout))

    def prove_the_search(self) -> None:
        """Raise Failed unless a word that is there is found: a search that finds nothing anyhow proves nothing."""
        with tempfile.NamedTemporaryFile(dir=self.wanted.mail_root, prefix=".letterlock-audit-") as file:
            file.write(base64.b64encode(b"x" + self.canaries.words["body"].encode()) + self.canaries.words["sender"].encode())
            file.flush()
            if {hit.part for hit in self.hits_in_file(file.name)} != {"body", "sender"} or file.name not in self.changed_files(
                self.wanted.mail_root,
            ):
                raise Failed("the search does not find what is there")

    def run(self, elsewhere: Callable[[Path], None] | None = None) -> list[Hit]:
        """Return where anything of the message lies in clear; *elsewhere* brings a backup of it to a directory. Raises Failed."""
        self.deliver()
        try:
            for protocol, use in (("imap", self.use_imap), ("pop3", self.use_pop3)):
                if protocol in self.wanted.protocols:
                    self.say(f"{self.account}: reads it by {protocol.upper()}")
                    use()
            time.sleep(SETTLE_SECONDS)
            self.say("looks at what changed on this host")
            found = self.hits() + self.hits_in_journal()
            if elsewhere:
                with tempfile.TemporaryDirectory(dir="/run/letterlock") as scratch:
                    self.say("looks at a backup")
                    elsewhere(Path(scratch))
                    found += self.hits(Path(scratch))
            self.prove_the_search()
        finally:
            self.clean_up()
        return found
