"""Mail that never rests while a backup is made: deliveries, flags and expunges at full speed, with what was acknowledged and when."""

from __future__ import annotations

import re
import smtplib
import threading
import time

import clients

LOAD_SECONDS = 14
MESSAGES_A_CONNECTION = 50


class Load(threading.Thread):
    """Delivers to some accounts for some seconds, or expunges from one of them at the same time."""

    def __init__(self, mail, users: list[str], *, expunges: bool = False) -> None:
        """Deliver each message to all *users*, or expunge from the first of them, until the seconds are over."""
        super().__init__(daemon=True)
        self.mail, self.users, self.expunges = mail, users, expunges
        # When a subject was acknowledged for all.
        self.acknowledged: list[tuple[float, str]] = []
        self.expunged = 0

    def run(self) -> None:
        """Go on until it is time."""
        deadline = time.monotonic() + LOAD_SECONDS
        if self.expunges:
            self.expunge(deadline)
        while time.monotonic() < deadline:
            self.deliver()

    def deliver(self) -> None:
        """Deliver messages over one connection."""
        host, authority = self.mail.host, self.mail.ca_file
        with clients.LMTPS(host["address"], host["lmtp_port"], clients.tls_context(authority)) as client:
            client.ehlo_or_helo_if_needed()
            for number in range(MESSAGES_A_CONNECTION):
                identity = f"load-{id(self)}-{time.monotonic_ns()}-{number}"
                message = f"Subject: {identity}\r\n\r\n{'0123456789abcdef' * 100}\r\n".encode()
                try:
                    client.sendmail("s@example.org", self.users, message)
                    # LMTP answers for each recipient (RFC 2033, 4.2), and smtplib reads the first answer.
                    codes = [client.getreply()[0] for _ in self.users[1:]]
                except smtplib.SMTPException:
                    continue
                if all(code == 250 for code in codes):  # SMTP's word for yes
                    self.acknowledged.append((time.time(), identity))

    def expunge(self, deadline: float) -> None:
        """Expunge and flag what has come in, as a user would, but nothing that other tests know."""
        with clients.imap(*self.mail.login(self.users[0])) as client:
            client.select("INBOX")
            while time.monotonic() < deadline:
                client.noop()
                _, found = client.uid("SEARCH", "SUBJECT", "load-", "UNFLAGGED")
                uids = found[0].decode().split()
                if len(uids) < 6:  # so that each of the next lines has some
                    continue
                client.uid("STORE", ",".join(uids[1::3][:20]), "+FLAGS", "(\\Flagged)")
                doomed = uids[::3][:20]
                client.uid("STORE", ",".join(doomed), "+FLAGS", "(\\Deleted)")
                client.expunge()
                self.expunged += len(doomed)


def subjects(mail, user: str) -> dict[str, int]:
    """Return {subject: UID} of an account's INBOX."""
    with clients.imap(*mail.login(user)) as client:
        client.select("INBOX", readonly=True)
        _, answers = client.fetch("1:*", "(UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        return {
            answer[1].decode().removeprefix("Subject: ").strip(): int(re.search(rb"UID (\d+)", answer[0]).group(1))
            for answer in answers if isinstance(answer, tuple)
        }


def backup_under_load(mail, store, users: list[str]) -> tuple[set[str], float]:
    """Back up while mail comes and goes; return the subjects acknowledged before, and messages delivered a second."""
    load = [Load(mail, users), Load(mail, users), Load(mail, users, expunges=True)]
    for each in load:
        each.start()
    time.sleep(3)
    begun = time.time()
    said = store.backup()
    for each in load:
        each.join()
    assert "0 failures" in said, said
    assert load[2].expunged > 20, "too little was expunged to prove anything"
    delivered = [(moment, subject) for each in load for moment, subject in each.acknowledged]
    return {subject for moment, subject in delivered if moment < begun}, len(delivered) * len(users) / LOAD_SECONDS
