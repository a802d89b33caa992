"""What the tests of scanning share: malware that is none, and the operator's side of signatures and quarantine."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

SIGNATURES = "/etc/letterlock/signatures"
# https://www.eicar.org/download-anti-malware-testfile/ ; in two parts, so that this file itself is none.
EICAR = r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS" + "-TEST-FILE!$H+H*"
IDENTITY = Path("passwords") / "age.txt"


def message(subject: str, body: str = "x", sender: str = "eve@example.org") -> bytes:
    """Return a plain message."""
    return f"From: {sender}\r\nSubject: {subject}\r\nDate: Mon, 05 Jan 2026 10:11:12 +0000\r\n\r\n{body}\r\n".encode()


def with_attachment(subject: str, content: bytes, name: str = "a.bin", encoded: bytes | None = None) -> bytes:
    """Return a message with an attachment in base64, or with what is given as *encoded*."""
    text = encoded if encoded is not None else base64.encodebytes(content).replace(b"\n", b"\r\n")
    return (
        f"From: eve@example.org\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename={name}\r\n\r\n"
    ).encode() + text + b"\r\n--b--\r\n"


def pattern(name: str, text: str) -> str:
    """Return a line of a .ndb that finds *text* anywhere."""
    return f"{name}:0:*:{text.encode().hex()}\n"


def yara_rule(name: str, text: str) -> str:
    """Return a YARA rule, for a .yar, that finds *text* anywhere."""
    return f'rule {name} {{ strings: $text = "{text}" condition: $text }}\n'


def both(name: str, first: str, second: str) -> str:
    """Return a logical signature, a line of a .ldb, that finds what holds both texts."""
    return f"{name};Engine:51-255,Target:0;0&1;{first.encode().hex()};{second.encode().hex()}\n"


def hash_line(name: str, content: bytes) -> str:
    """Return a line of a .hdb that finds a file with *content*."""
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}:{len(content)}:{name}\n"


@dataclass
class Scanner:
    """Signatures and quarantine of one host, as its operator handles them."""

    host: object
    lab: Path

    def add(self, file: str, text: str) -> None:
        """Put a database in place, and bring it into force as the path unit does."""
        # From beside the directory: what is written in it, the path unit notices before it is whole.
        self.host.check_output(f"printf %s {shlex.quote(text)} >{SIGNATURES}.new && mv {SIGNATURES}.new {SIGNATURES}/{file}")
        self.refresh()

    def remove(self, file: str) -> None:
        """Take a database away."""
        self.host.check_output(f"rm -f {SIGNATURES}/{file}")
        self.refresh()

    def refresh(self) -> object:
        """Bring into force what there is."""
        return self.host.run("systemctl start letterlock-signatures")

    def number(self) -> int:
        """Return the number of the set in force."""
        return json.loads(self.host.check_output("cat /var/lib/letterlock/scan/signatures.json"))["number"]

    def quarantine(self, account: str) -> list[dict]:
        """Return the items of *account*, the oldest first."""
        return json.loads(self.host.check_output(f"letterlock quarantine list --json --account {account}"))

    def with_identity(self, command: str, **environment: str):
        """Run a command of `letterlock quarantine` with the operator's identity, which only standard input carries."""
        identity = (self.lab / IDENTITY).read_text()
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        return self.host.run(f"printf %s {shlex.quote(identity)} | {words} letterlock quarantine {command} --identity -")

    def ledger(self, **wanted: object) -> list[dict]:
        """Return the lines of the ledger that hold all that is *wanted*, after what is not yet in it was brought there."""
        self.host.check_output("letterlock quarantine record")
        lines = self.host.check_output("cat /var/lib/letterlock/ledger/*.jsonl").splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if all(entry.get(name) == value for name, value in wanted.items())]
