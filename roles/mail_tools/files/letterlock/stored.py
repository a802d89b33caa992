"""Hashes of messages as a client reads them, taken from the files that hold them: through doveadm each would pass a pipe as JSON.

sdbox wraps a message in a header and a list of metadata; both formats may compress it; both keep lines as they came,
where IMAP and POP3 give CRLF. What can't be read so has no hash, but for mail that is encrypted with its user's key.
https://doc.dovecot.org/latest/core/config/mailbox_formats/dbox.html
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock.batches import WORKERS, bounded_map
from letterlock.capture import names_in

try:
    import zstandard
except ModuleNotFoundError:
    # mail_backup brings it to its hosts; all other commands do without.
    zstandard = None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    # A mailbox: home of its account, name, UIDs whose hashes are wanted.
    Mailbox = tuple[Path, str, set[int]]

# Where each format has an account's mail, in its home, and its messages in there.
STORES = {"sdbox": "sdbox", "maildir": "Maildir"}
DBOX_MAILBOXES, DBOX_MESSAGES = f"{STORES['sdbox']}/mailboxes", "dbox-Mails"
MAILDIR, MAILDIR_MESSAGES = STORES["maildir"], ("new", "cur")
# A dbox file says how long the header of its message is, which ends in the message's size; both are hexadecimal.
DBOX_HEADER = re.compile(rb"2 M([0-9a-f]+) C[0-9a-f]+\n")
DBOX_SIZE = 16
# Python runs one thread at a time, so that more than one core takes more than one process.
PROCESS = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, sys.argv[1]); from letterlock import stored; stored.answer()"]
# For fewer messages the start of a process takes longer than they do.
WORTH_PROCESSES = 2000
ZSTD = b"\x28\xb5\x2f\xfd"
# Other compression.
FOREIGN = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
# Dovecot's own encryption. What only its user can read has the hash of how it lies on the disk, with this before it.
SEALED, SEALED_HASH = b"CRYPTED\x03\x07", "encrypted:"


def octets_of_dbox(data: bytes) -> bytes | None:
    r"""Return the message as it is stored in a file of sdbox, or None.

    >>> octets_of_dbox(b"2 M1e C6b05ebfb\n\x01\x02N          0000000000000003\nabc\n\x01\x03\n")
    b'abc'
    """
    header = DBOX_HEADER.match(data)
    if header is None:
        return None
    begin = header.end() + int(header.group(1), 16)
    if data[header.end() : header.end() + 3] != b"\x01\x02N":
        return None
    size = int(data[begin - DBOX_SIZE - 1 : begin - 1], 16)
    return data[begin : begin + size]


def hash_of(stored: bytes | None) -> str:
    r"""Return the SHA-256 of a *stored* message as IMAP gives it, or an empty text when it can't be read.

    >>> hash_of(b"a\nb\r\n") == hashlib.sha256(b"a\r\nb\r\n").hexdigest()
    True
    """
    if stored is None or stored.startswith(FOREIGN) or (stored.startswith(ZSTD) and zstandard is None):
        return ""
    if stored.startswith(SEALED):
        return SEALED_HASH + hashlib.sha256(stored).hexdigest()
    if stored.startswith(ZSTD):
        try:
            stored = decompressor().decompressobj().decompress(stored)
        except zstandard.ZstdError:
            return ""
    # Mostly all lines are alike. A search for an LF without CR would take ten times as long as to count both.
    if b"\r" not in stored:
        stored = stored.replace(b"\n", b"\r\n")
    elif stored.count(b"\n") != stored.count(b"\r\n"):
        stored = stored.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return hashlib.sha256(stored).hexdigest()


@cache
def decompressor() -> zstandard.ZstdDecompressor:
    """Return the one decompressor of this process, which is not for threads: making one costs as much as a message."""
    return zstandard.ZstdDecompressor()


def encoded(name: str) -> str:
    """Return a mailbox's *name* in IMAP's modified UTF-7 (RFC 3501, 5.1.3), as it stands in the file system.

    >>> encoded("Entwürfe"), encoded("A&B")
    ('Entw&APw-rfe', 'A&-B')
    """
    def shifted(match: re.Match) -> str:
        text = match.group()
        inside = "" if text == "&" else base64.b64encode(text.encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
        return f"&{inside}-"

    return re.sub(r"&|[^\x20-\x7e]+", shifted, name)


def files_of(home: Path, mailbox: str, uids: set[int]) -> dict[int, str]:
    """Return {UID: path} of those messages of an account's *mailbox* that have *uids* and a file, whichever format it has.

    Texts, because an object for each of a million paths would take longer than all else.
    """
    name = encoded(mailbox)
    dbox = home / DBOX_MAILBOXES / name / DBOX_MESSAGES
    if dbox.is_dir():
        names = set(names_in(dbox))
        return {uid: f"{dbox}/u.{uid}" for uid in sorted(uids) if f"u.{uid}" in names}
    maildir = home / MAILDIR / ("" if mailbox == "INBOX" else "." + name.replace("/", "."))
    try:
        listed = (maildir / "dovecot-uidlist").read_text(errors="surrogateescape").splitlines()[1:]
    except FileNotFoundError:
        return {}
    there = {file.split(":2,", 1)[0]: f"{folder}/{file}" for folder in map(maildir.joinpath, MAILDIR_MESSAGES) for file in names_in(folder)}
    found = {}
    for line in listed:
        numbers, _, file = line.partition(" :")
        uid = numbers.split(" ", 1)[0]
        path = there.get(file.split(":2,", 1)[0])
        if path and uid.isdigit() and int(uid) in uids:
            found[int(uid)] = path
    return found


def all_files(store: Path) -> Iterator[str]:
    """Yield the paths of all messages in a *store*, whichever format it has."""
    for folder, _, names in os.walk(store):
        kind = os.path.basename(folder)  # noqa: PTH119  # millions of files
        yield from (f"{folder}/{name}" for name in names if kind in MAILDIR_MESSAGES or (kind == DBOX_MESSAGES and name.startswith("u.")))


def hashes(home: Path, mailbox: str, uids: set[int]) -> dict[int, str]:
    """Return {UID: hash} of the messages of an account's *mailbox* that have *uids*."""
    found = {}
    for uid, path in files_of(home, mailbox, uids).items():
        try:
            with open(path, "rb") as file:  # noqa: PTH123  # as above
                data = file.read()
        except FileNotFoundError:
            # It was expunged, or renamed with its flags: the next backup will know.
            continue
        found[uid] = hash_of(octets_of_dbox(data) if path.endswith(f"/u.{uid}") else data)
    return found


def answer() -> None:
    """Answer each line of standard input, [home, mailbox, UIDs], with a line [[UID, hash]]."""
    for line in sys.stdin:
        home, mailbox, uids = json.loads(line)
        print(json.dumps(list(hashes(Path(home), mailbox, set(uids)).items())))


def ask(mailboxes: list[Mailbox]) -> list[dict[int, str]]:
    """Return the hashes of *mailboxes*, by a process of their own, which ends when nobody asks any more; raise OSError."""
    lines = "".join(json.dumps([str(home), mailbox, list(uids)]) + "\n" for home, mailbox, uids in mailboxes)
    done = subprocess.run([*PROCESS, str(Path(__file__).parents[1])], input=lines, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        raise OSError(f"the process that reads messages for their hashes ended with {done.returncode}; its journal says more")
    return [dict(json.loads(line)) for line in done.stdout.splitlines()]


def all_hashes(mailboxes: list[Mailbox]) -> Iterable[dict[int, str]]:
    """Return the hashes of each of *mailboxes*, in order, on all cores where that is worth it."""
    if sum(len(uids) for _, _, uids in mailboxes) < WORTH_PROCESSES:
        return [hashes(*mailbox) for mailbox in mailboxes]
    groups = list(bounded_map(ask, (mailboxes[first::WORKERS] for first in range(min(WORKERS, len(mailboxes))))))
    return (groups[number % WORKERS][number // WORKERS] for number in range(len(mailboxes)))
