"""What clamd says of a message, over its unix socket.

https://docs.clamav.net/manual/Usage/Scanning.html#clamd
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

CLEAN, MALWARE, UNREADABLE = "clean", "malware", "unreadable"
CHUNK = 1 << 17
# What clamd calls content that it could not look into: encrypted, or beyond a limit of clamd.conf.
NOT_LOOKED_INTO = ("Heuristics.Encrypted.", "Heuristics.Limits.Exceeded")
TOO_LARGE = "INSTREAM size limit exceeded"
# Of a stream, or of a file by its descriptor.
ANSWER = re.compile(r"(?:stream|fd\[\d+\]): (?:OK|(.+) FOUND)")
NUMBERED = re.compile(r"(\d+): (.*)", re.DOTALL)


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
    """Return the verdict that clamd's *answer* to INSTREAM or FILDES is; raise Unavailable when it is none.

    >>> judge("stream: OK"), judge("fd[12]: Eicar-Signature FOUND")
    (Verdict(kind='clean', signature=''), Verdict(kind='malware', signature='Eicar-Signature'))
    """
    found = ANSWER.fullmatch(answer)
    if found and found.group(1) is None:
        return Verdict(CLEAN)
    if found:
        signature = found.group(1).removesuffix(".UNOFFICIAL")
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

    def files(self) -> Files:
        """Return a connection that judges files."""
        return Files(self)

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


class Files:
    """One connection over which clamd judges several files at once, by their descriptors: it need not copy them.

    clamd closes a connection on which it was asked nothing for 30 s.
    """

    def __init__(self, clamd: Clamd) -> None:
        """Connect; raise Unavailable."""
        self.clamd, self.said = clamd, b""
        self.connection = clamd.connect()
        self.count = 0
        self.asked: dict[int, object] = {}
        self.send(b"zIDSESSION\0")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; what was asked and not answered is forgotten."""
        self.connection.close()

    def send(self, words: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send *words*, with *descriptors*; raise Unavailable."""
        try:
            socket.send_fds(self.connection, [words], descriptors)
        except OSError as error:
            raise Unavailable(f"clamd at {self.clamd.path}: {error}") from error

    def ask(self, what: object, descriptor: int) -> None:
        """Have the file of *descriptor* judged, which may be closed then; the answer names it *what*. Raises Unavailable."""
        self.count += 1
        self.asked[self.count] = what
        self.send(b"zFILDES\0")
        self.send(b"\0", (descriptor,))

    def answer(self) -> tuple[object, Verdict]:
        """Return (what was asked, verdict) of one that was asked, in the order in which clamd is done; raise Unavailable."""
        try:
            while b"\0" not in self.said:
                more = self.connection.recv(4096)
                if not more:
                    raise Unavailable(f"clamd at {self.clamd.path}: closed the connection without an answer")
                self.said += more
        except OSError as error:
            raise Unavailable(f"clamd at {self.clamd.path}: {error}") from error
        line, _, self.said = self.said.partition(b"\0")
        found = NUMBERED.fullmatch(line.decode(errors="replace").strip())
        if not found or int(found.group(1)) not in self.asked:
            raise Unavailable(f"clamd answered {line!r}")
        return self.asked.pop(int(found.group(1))), judge(found.group(2))
