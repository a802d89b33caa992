"""What mail clients and MTAs do, over TLS with the certificate verified: LMTP, IMAP and POP3.

The tests and `make up` speak to the lab's hosts through these and nothing else.
"""

from __future__ import annotations

import imaplib
import json
import poplib
import re
import smtplib
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_SECONDS = 60
# RFC 1939 has no limit on a line of a message; poplib's own would refuse long ones.
poplib._MAXLINE = 1 << 24  # noqa: SLF001  # there is no public way
imaplib._MAXLINE = 1 << 24  # noqa: SLF001  # nor here


def read_access(file: Path) -> dict:
    """Return access.json as `make up` wrote it."""
    return json.loads(file.read_text())


def tls_context(ca_file: str, **limits: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a context that trusts *ca_file* alone and verifies the peer's name.

    *limits* may give minimum_version and maximum_version.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    for name, version in limits.items():
        setattr(context, name, version)
    return context


class LMTPS(smtplib.LMTP):
    """LMTP (RFC 2033) under implicit TLS; smtplib has it in cleartext only."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        """Connect and greet."""
        self.context = context
        super().__init__(address, port, local_hostname="client.letterlock.test", timeout=TIMEOUT_SECONDS)

    def _get_socket(self, host: str, port: int, timeout: float) -> ssl.SSLSocket:
        return self.context.wrap_socket(socket.create_connection((host, port), timeout), server_hostname=host)

    def connect(self, host: str = "localhost", port: int = 0, source_address: object = None) -> tuple[int, bytes]:
        """Connect as SMTP does: LMTP's own connect knows unix sockets only in part."""
        return smtplib.SMTP.connect(self, host, port, source_address)


def deliver(host: dict, ca_file: str, recipient: str, message: bytes, sender: str = "sender@example.org") -> None:
    """Deliver *message* (CRLF lines) to *recipient*; raise smtplib.SMTPException if the host doesn't take it."""
    with LMTPS(host["address"], host["lmtp_port"], tls_context(ca_file)) as client:
        client.ehlo_or_helo_if_needed()
        client.sendmail(sender, [recipient], message, mail_options=["BODY=8BITMIME"])


@contextmanager
def imap(host: dict, ca_file: str, user: str, password: str, **limits: ssl.TLSVersion) -> Iterator[imaplib.IMAP4_SSL]:
    """Give a logged-in IMAP session over IMAPS."""
    client = imaplib.IMAP4_SSL(
        host["address"], host["imaps_port"], ssl_context=tls_context(ca_file, **limits), timeout=TIMEOUT_SECONDS
    )
    try:
        client.login(user, password)
        yield client
    finally:
        client.logout()


@contextmanager
def pop3(host: dict, ca_file: str, user: str, password: str, **limits: ssl.TLSVersion) -> Iterator[poplib.POP3_SSL]:
    """Give a logged-in POP3 session over POP3S."""
    client = poplib.POP3_SSL(
        host["address"], host["pop3s_port"], context=tls_context(ca_file, **limits), timeout=TIMEOUT_SECONDS
    )
    try:
        client.user(user)
        client.pass_(password)
        yield client
        client.quit()
    finally:
        client.close()


def imap_messages(host: dict, ca_file: str, user: str, password: str, mailbox: str = "INBOX") -> list[bytes]:
    """Return every message of *mailbox*, as IMAP gives it."""
    with imap(host, ca_file, user, password) as client:
        client.select(mailbox, readonly=True)
        _, found = client.search(None, "ALL")
        return [client.fetch(number, "(BODY.PEEK[])")[1][0][1] for number in found[0].split()]


def pop3_messages(host: dict, ca_file: str, user: str, password: str) -> list[bytes]:
    """Return every message of the maildrop, as POP3 gives it."""
    with pop3(host, ca_file, user, password) as client:
        count, _ = client.stat()
        return [b"\r\n".join(client.retr(number)[1]) + b"\r\n" for number in range(1, count + 1)]


# What delivery puts before a message (RFC 5321, 4.4): each a header field, folded or not.
TRACE = re.compile(rb"\A((Return-Path|Delivered-To|Received):[^\r\n]*\r\n([ \t][^\r\n]*\r\n)*)*")


def without_trace(message: bytes) -> bytes:
    """Return *message* without the trace fields that its delivery put before it."""
    return message[TRACE.match(message).end():]
