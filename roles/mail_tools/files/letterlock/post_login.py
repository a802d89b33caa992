"""The protocol between a session of Dovecot's and what runs before it, as Dovecot's own script-login speaks it.

After the password Dovecot's imap or pop3 connects to a socket and hands over the
client's connection with a line of what is known of the user. The session begins when
a line comes back, on another connection where one comes with it, and ends without
one. 2.3 and 2.4 speak the same version. To speak it here spares each session the
starts of two programs and of a script, 20 ms.
https://github.com/dovecot/core/blob/main/src/util/script-login.c
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = b"VERSION\tscript-login\t1\t"
LONGEST = 1 << 16
# Local and remote address come before the user's name.
ADDRESSES = 2
ESCAPED = re.compile(r"\x01(.)", re.DOTALL)
ESCAPES = {"0": "\0", "1": "\x01", "t": "\t", "r": "\r", "n": "\n"}
# RFC 5530 and RFC 3206: for a while only.
FAREWELLS = {
    "imap": b"* BYE [UNAVAILABLE] Mail is being checked for malware. Try again later.\r\n",
    "pop3": b"-ERR [SYS/TEMP] Mail is being checked for malware. Try again later.\r\n",
}


class Broken(Exception):
    """What came is no such request or answer."""


def plain(field: bytes) -> str:
    """Return what *field* says without its escapes."""
    return ESCAPED.sub(lambda match: ESCAPES.get(match.group(1), ""), field.decode(errors="replace"))


@dataclass(frozen=True)
class Login:
    """One user's login, before the session has begun."""

    protocol: str
    text: bytes
    # The descriptor of the client's connection.
    client: int

    @property
    def fields(self) -> list[bytes]:
        """What is known of the user, the name first."""
        return self.text.split(b"\n")[1].split(b"\t")[ADDRESSES:]

    @property
    def account(self) -> str:
        r"""The user's name.

        >>> Login("imap", b"VERSION\tscript-login\t1\t0\n::1\t::1\tada@example.org\tuid=1\n", -1).account
        'ada@example.org'
        """
        return plain(self.fields[0])

    @property
    def values(self) -> dict[str, str]:
        r"""What the passdb and userdb say of the user; secrets among it.

        >>> Login("imap", b"VERSION\tscript-login\t1\t0\n::1\t::1\tada@example.org\tuid=1\tx=a\001tb=\n", -1).values
        {'uid': '1', 'x': 'a\tb='}
        """
        return {name: value for name, there, value in (plain(each).partition("=") for each in self.fields[1:]) if there}

    def begin(self, connection: socket.socket) -> None:
        """Let the session begin on the client's own connection."""
        connection.sendall(b"\t".join(self.fields) + b"\n")

    def pass_on(self, connection: socket.socket, path: str) -> None:
        """Let what listens at *path* decide; raise OSError."""
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(connection.gettimeout())
            other.connect(path)
            socket.send_fds(other, [self.text], [self.client])
            with received(other, lines=1) as (text, descriptors):
                socket.send_fds(connection, [text], descriptors)

    def refuse(self) -> None:
        """Tell the client that it may come again; without an answer Dovecot ends the session."""
        with contextlib.suppress(OSError):
            os.write(self.client, FAREWELLS[self.protocol])


@contextlib.contextmanager
def received(connection: socket.socket, lines: int) -> Iterator[tuple[bytes, list[int]]]:
    """Lend (text, descriptors) that come over *connection*, the text of so many *lines*; raise Broken or OSError."""
    text, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 1)
    try:
        while text.count(b"\n") < lines and len(text) < LONGEST:
            more = connection.recv(LONGEST)
            if not more:
                break
            text += more
        if text.count(b"\n") != lines or not text.endswith(b"\n"):
            raise Broken(f"not {lines} lines: {text[:100]!r}")
        yield text, descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextlib.contextmanager
def login(connection: socket.socket, protocol: str) -> Iterator[Login]:
    """Lend the login that *connection* asks for; raise Broken or OSError."""
    with received(connection, lines=2) as (text, descriptors):
        found = Login(protocol, text, descriptors[0] if descriptors else -1)
        if not text.startswith(VERSION) or not descriptors or not found.fields:
            raise Broken(f"not the version 1 of script-login: {text[:100]!r}")
        yield found
