"""The relay between a POP3 client and Dovecot: what counts as fetched, and that nothing else changes."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from letterlock.pop3_session import Relay

BODY = b"Subject: x\r\n\r\n..stuffed\r\n" + b"0123456789" * 20000 + b"\r\n"


class Server(threading.Thread):
    """Speaks POP3 as far as a session needs, for three messages."""

    def __init__(self, end: socket.socket) -> None:
        """Serve on *end*."""
        super().__init__(daemon=True)
        self.end, self.seen = end, []

    def run(self) -> None:
        """Answer until QUIT."""
        self.end.sendall(b"+OK Logged in.\r\n")
        with self.end, self.end.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                self.seen.append(line.strip())
                words = line.upper().split()
                self.end.sendall(self.answer(words))
                if words[0] == b"QUIT":
                    return

    def answer(self, words: list[bytes]) -> bytes:
        """Return the answer to a command."""
        if words[0] in (b"RETR", b"TOP"):
            return b"+OK\r\n" + BODY + b".\r\n" if words[1] in (b"1", b"2", b"3") else b"-ERR no such message\r\n"
        if words[0] == b"UIDL":
            return b"+OK %s uidl-%s\r\n" % (words[1], words[1]) if len(words) > 1 else b"+OK\r\n1 uidl-1\r\n.\r\n"
        return b"+OK\r\n"


class Session:
    """A client, a relay and a server."""

    def __init__(self) -> None:
        """Start all three."""
        self.client, outer = socket.socketpair()
        inner, end = socket.socketpair()
        self.records: list[list[str]] = []
        self.server = Server(end)
        self.server.start()
        self.relay = Relay(outer, inner, self.records.append)
        self.ends = (outer, inner)
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()
        self.client.settimeout(10)
        self.lines = self.client.makefile("rb")
        assert self.lines.readline() == b"+OK Logged in.\r\n"

    def work(self) -> None:
        """Relay, and close both sides."""
        self.relay.run()
        for end in self.ends:
            end.close()

    def say(self, line: bytes, *, multiline: bool = False) -> bytes:
        """Send a command and return its answer."""
        self.client.sendall(line + b"\r\n")
        answer = self.lines.readline()
        while multiline and not answer.endswith(b"\r\n.\r\n"):
            answer += self.lines.readline()
        return answer

    def end(self) -> list[list[str]]:
        """Return the records, when the relay has ended."""
        self.lines.close()
        self.client.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.records


@pytest.fixture
def session():
    """Return a session."""
    return Session()


def test_without_quit_nothing_is_fetched(session):
    """The whole message was sent; the session did not end properly."""
    session.say(b"RETR 1", multiline=True)
    session.say(b"NOOP")
    assert session.end() == []


def test_half_a_download_is_not_fetched(session):
    """The client goes away in the middle."""
    session.client.sendall(b"RETR 1\r\n")
    session.client.recv(1000)
    assert session.end() == []


def test_top_and_a_failed_retr_are_not_fetched(session):
    """TOP shows a message and leaves it; so does an error."""
    session.say(b"TOP 1 1000", multiline=True)
    assert session.say(b"RETR 9").startswith(b"-ERR")
    session.say(b"UIDL", multiline=True)
    session.say(b"QUIT")
    assert session.end() == []


def test_a_client_that_asked_ahead_has_shown_nothing(session):
    """RETR and QUIT in one packet: nobody knows what arrived."""
    session.client.sendall(b"RETR 1\r\nQUIT\r\n")
    while not session.lines.readline().startswith(b".\r\n"):
        pass
    assert session.lines.readline() == b"+OK\r\n"
    assert session.end() == []


def test_what_was_retrieved_is_recorded_before_quit_is_answered(session):
    """Octet by octet as Dovecot sent it; the record is made before Dovecot sees QUIT."""
    assert session.say(b"RETR 1", multiline=True) == b"+OK\r\n" + BODY + b".\r\n"
    session.say(b"retr 3", multiline=True)
    assert session.records == []
    session.say(b"QUIT")
    assert session.end() == [["uidl-1", "uidl-3"]]
    assert session.server.seen[-3:] == [b"UIDL 1", b"UIDL 3", b"QUIT"]


def test_the_clients_own_dele_stays_its_own(session):
    """What the client deletes itself is gone by then; RSET takes it back."""
    session.say(b"RETR 1", multiline=True)
    session.say(b"RETR 2", multiline=True)
    session.say(b"DELE 1")
    session.say(b"QUIT")
    assert session.end() == [["uidl-2"]]


def test_rset_takes_dele_back(session):
    """Then the message is there, and was fetched."""
    session.say(b"RETR 1", multiline=True)
    session.say(b"DELE 1")
    session.say(b"RSET")
    session.say(b"QUIT")
    assert session.end() == [["uidl-1"]]


def test_commands_that_were_asked_ahead_are_answered_in_order(session):
    """Pipelining (RFC 2449, 6.6) works; what the client acknowledged by speaking later was fetched."""
    session.client.sendall(b"NOOP\r\nRETR 1\r\nRETR 2\r\n")
    assert session.lines.readline() == b"+OK\r\n"
    for _ in range(2):
        answer = b""
        while not answer.endswith(b"\r\n.\r\n"):
            answer += session.lines.readline()
        assert answer == b"+OK\r\n" + BODY + b".\r\n"
    session.say(b"QUIT")
    assert session.end() == [["uidl-1", "uidl-2"]]


def test_a_farewell_that_nobody_asked_for_reaches_the_client(session):
    """Dovecot ends an idle session."""
    session.server.end.sendall(b"-ERR Disconnected for inactivity.\r\n")
    assert session.lines.readline() == b"-ERR Disconnected for inactivity.\r\n"
    session.server.end.shutdown(socket.SHUT_RDWR)
    assert session.lines.readline() == b""
    assert session.end() == []
