"""What clamd says of a message, over its unix socket.

https://docs.clamav.net/manual/Usage/Scanning.html#clamd
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CLEAN, MALWARE, UNREADABLE = "clean", "malware", "unreadable"
CHUNK = 1 << 17
# What clamd calls content that it could not look into: encrypted, or beyond a limit of clamd.conf.
NOT_LOOKED_INTO = ("Heuristics.Encrypted.", "Heuristics.Limits.Exceeded")
TOO_LARGE = "INSTREAM size limit exceeded"


class Unavailable(Exception):
    """clamd has given no verdict; the message says why. It proves nothing of what was to be scanned."""


@dataclass(frozen=True)
class Verdict:
    """What clamd found: `kind` is one of clean, malware and unreadable, `signature` its name for what it found."""

    kind: str
    signature: str = ""


def chunks(stream) -> Iterator[bytes]:
    """Yield what is left in *stream*."""
    while chunk := stream.read(CHUNK):
        yield chunk


def judge(answer: str) -> Verdict:
    """Return the verdict that clamd's *answer* to INSTREAM is; raise Unavailable when it is none.

    >>> judge("stream: OK"), judge("stream: Eicar-Signature FOUND")
    (Verdict(kind='clean', signature=''), Verdict(kind='malware', signature='Eicar-Signature'))
    """
    if answer == "stream: OK":
        return Verdict(CLEAN)
    if answer.startswith("stream: ") and answer.endswith(" FOUND"):
        signature = answer.removeprefix("stream: ").removesuffix(" FOUND").removesuffix(".UNOFFICIAL")
        return Verdict(UNREADABLE if signature.startswith(NOT_LOOKED_INTO) else MALWARE, signature)
    if answer.startswith(TOO_LARGE):
        return Verdict(UNREADABLE, "StreamMaxLength")
    raise Unavailable(f"clamd answered {answer!r}")


class Clamd:
    """clamd behind one socket; each question has a connection of its own."""

    def __init__(self, path: str, seconds: float) -> None:
        """Remember where it listens, and how many *seconds* it may take for each step."""
        self.path, self.seconds = path, seconds

    def connect(self) -> socket.socket:
        """Return a connection."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.seconds)
        try:
            connection.connect(self.path)
        except OSError as error:
            connection.close()
            raise Unavailable(f"clamd at {self.path}: {error}") from error
        return connection

    def answer(self, connection: socket.socket) -> str:
        """Return what clamd says before it closes the connection."""
        said = b""
        while not said.endswith(b"\0"):
            more = connection.recv(4096)
            if not more:
                break
            said += more
        if not said:
            raise Unavailable(f"clamd at {self.path}: closed the connection without an answer")
        return said.rstrip(b"\0\n").decode(errors="replace")

    def ask(self, command: str) -> str:
        """Return the answer to a *command* such as VERSION."""
        with self.connect() as connection:
            try:
                connection.sendall(f"z{command}\0".encode())
                return self.answer(connection)
            except OSError as error:
                raise Unavailable(f"clamd at {self.path}: {error}") from error

    def scan(self, content: Iterable[bytes]) -> Verdict:
        """Return the verdict on *content*; raise Unavailable."""
        with self.connect() as connection:
            try:
                # clamd that has enough, as of a message that is too large, answers and closes; its answer counts.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"zINSTREAM\0")
                    for chunk in content:
                        connection.sendall(struct.pack(">I", len(chunk)) + chunk)
                    connection.sendall(struct.pack(">I", 0))
                return judge(self.answer(connection))
            except OSError as error:
                raise Unavailable(f"clamd at {self.path}: {error}") from error
