"""What got a 250 is there afterwards, whatever happens; what could not be stored got a 4xx."""

from __future__ import annotations

import smtplib
import threading
import time

import clients
import messages
import pytest
from conftest import wait_for

pytestmark = pytest.mark.requirement("LOSS-1")


class Stream(threading.Thread):
    """Delivers numbered messages one after another, for some seconds at most, and keeps count of the answers."""

    def __init__(self, mail, label: str, seconds: float, size: int = 2000) -> None:
        """Deliver to the host of *mail* until *seconds* have passed."""
        super().__init__(daemon=True)
        self.mail, self.label, self.seconds, self.size = mail, label, seconds, size
        self.acknowledged: list[str] = []
        self.refused: list[int] = []

    def message(self, identity: str) -> bytes:
        """Return a message of about *size* octets."""
        head = f"From: s@example.org\r\nSubject: {identity}\r\nMessage-ID: <{identity}@letterlock.example.org>\r\n\r\n"
        return (head + "0123456789abcdef\r\n" * (self.size // 18)).encode()

    def run(self) -> None:
        """Deliver."""
        deadline = time.monotonic() + self.seconds
        number = 0
        while time.monotonic() < deadline:
            number += 1
            identity = f"{self.label}-{number}"
            try:
                self.mail.deliver(self.mail.user, self.message(identity))
            except smtplib.SMTPResponseException as answer:
                self.refused.append(answer.smtp_code)
            except smtplib.SMTPRecipientsRefused as answer:
                self.refused += [code for code, _ in answer.recipients.values()]
            except (OSError, smtplib.SMTPServerDisconnected):
                time.sleep(0.2)
            else:
                self.acknowledged.append(identity)


class Incompressible(Stream):
    """Delivers messages that zstd can't make much smaller."""

    def message(self, identity: str) -> bytes:
        """Return a message of 90 kB."""
        head = f"Subject: {identity}\r\nMessage-ID: <{identity}@letterlock.example.org>\r\n\r\n"
        return head.encode() + messages.attachment(45000).hex().encode() + b"\r\n"


def stored(mail) -> set[str]:
    """Return the subjects that IMAP gives for INBOX."""
    with clients.imap(*mail.login()) as client:
        client.select("INBOX", readonly=True)
        _, answers = client.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        return {answer[1].decode().removeprefix("Subject: ").strip() for answer in answers if isinstance(answer, tuple)}


def assert_all_there(mail, streams: list[Stream]) -> None:
    """Every acknowledged message is in INBOX."""
    acknowledged = {identity for stream in streams for identity in stream.acknowledged}
    assert len(acknowledged) > 20, "too few deliveries to prove anything"
    assert acknowledged - stored(mail) == set()


def started(mail, label: str, seconds: float) -> list[Stream]:
    """Start three streams."""
    streams = [Stream(mail, f"{label}{number}", seconds) for number in range(3)]
    for stream in streams:
        stream.start()
    return streams


def is_up(mail) -> bool:
    """Tell whether a login works."""
    try:
        with clients.imap(*mail.login()):
            return True
    except (OSError, clients.imaplib.IMAP4.error):
        return False


def test_kill_9_of_every_process(host, mail):
    """All of Dovecot dies while mail comes in; systemd starts it again and no acknowledged mail is missing."""
    streams = started(mail, "killed", 12)
    for _ in range(2):
        time.sleep(4)
        host.check_output("systemctl kill --signal KILL dovecot")
        wait_for(lambda: host.service("dovecot").is_running)
    for stream in streams:
        stream.join()
    wait_for(lambda: is_up(mail))
    assert_all_there(mail, streams)


def test_a_hard_stop_of_the_host(host, mail, container):
    """The host is gone in an instant while mail comes in; it boots, serves by itself, and misses nothing."""
    streams = started(mail, "stopped", 10)
    time.sleep(4)
    container("kill", "--signal", "KILL")
    container("start")
    for stream in streams:
        stream.join()
    wait_for(lambda: is_up(mail), 60)
    assert_all_there(mail, streams)
    assert host.file("/run/letterlock/probe.passdb").size == 0


def test_a_full_disk(host, mail):
    """What doesn't fit gets a 4xx, so that the sender keeps it; what got a 250 is there; space given back, mail flows."""
    small_disk = "mount -t tmpfs -o size=6m,mode=0700,uid=5000,gid=5000 tmpfs /srv/mail"
    host.check_output(f"systemctl stop dovecot && {small_disk} && systemctl start dovecot")
    try:
        wait_for(lambda: is_up(mail))
        streams = [Incompressible(mail, f"full{number}", 15) for number in range(2)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.join()
        refused = [code for stream in streams for code in stream.refused]
        assert refused, "the disk never became full"
        assert all(400 <= code < 500 for code in refused), set(refused)
        assert_all_there(mail, streams)
        host.check_output("mount -o remount,size=60m /srv/mail")
        mail.deliver(mail.user, messages.empty_body())
    finally:
        host.check_output("systemctl stop dovecot; umount /srv/mail && systemctl start dovecot")
    assert is_up(mail)


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_both_protocols_agree_afterwards(mail, protocol):
    """What is left is readable to the last octet over each protocol."""
    reader = {"imap": clients.imap_messages, "pop3": clients.pop3_messages}[protocol]
    assert all(message for message in reader(*mail.login()))
