"""Mail that never rests while a backup is made: deliveries, flags and expunges at full speed, with what was acknowledged and when."""

from __future__ import annotations

import fcntl
import os
import re
import smtplib
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import clients

if TYPE_CHECKING:
    from collections.abc import Iterator

WARM_SECONDS, LONGEST_SECONDS, MEET_SECONDS = 3, 90, 240
# Until there is something to expunge: a loop without a rest would take the machine from what comes in.
PAUSE_SECONDS = 0.05
# Connections that deliver at once: as many as bring what is wanted on the machine at hand.
CONNECTIONS = (4, 6, 8, 12)
MESSAGES_A_CONNECTION = 50


class Load(threading.Thread):
    """Does one of `deliver`, `append` and `expunge` until it is told to stop, or longer than any backup takes."""

    def __init__(self, mail, users: list[str], work: str) -> None:
        """Deliver each message to all *users*, append to the only one, or expunge from the first."""
        super().__init__(daemon=True)
        self.mail, self.users = mail, users
        self.work = getattr(self, work)
        self.enough = threading.Event()
        # When a subject was acknowledged, and by how many mailboxes.
        self.acknowledged: list[tuple[float, str, int]] = []
        self.expunged = 0

    def run(self) -> None:
        """Go on until it is enough."""
        self.deadline = time.monotonic() + LONGEST_SECONDS
        while self.goes_on():
            self.work()

    def goes_on(self) -> bool:
        """Tell whether there is more to do."""
        return not self.enough.is_set() and time.monotonic() < self.deadline

    def message(self) -> tuple[str, bytes]:
        """Return (subject, message), unlike any other."""
        subject = f"load-{id(self)}-{time.monotonic_ns()}"
        return subject, f"Subject: {subject}\r\n\r\n{'0123456789abcdef' * 100}\r\n".encode()

    def append(self) -> None:
        """Append messages over one connection, as a client stores what it sends or moves from another account."""
        with clients.imap(*self.mail.login(self.users[-1])) as client:
            while self.goes_on():
                subject, message = self.message()
                if client.append("INBOX", None, None, message)[0] == "OK":
                    self.acknowledged.append((time.time(), subject, 1))

    def deliver(self) -> None:
        """Deliver messages over one connection."""
        host, authority = self.mail.host, self.mail.ca_file
        with clients.LMTPS(host["address"], host["lmtp_port"], clients.tls_context(authority)) as client:
            client.ehlo_or_helo_if_needed()
            for _ in range(MESSAGES_A_CONNECTION):
                subject, message = self.message()
                try:
                    client.sendmail("s@example.org", self.users, message)
                    # LMTP answers for each recipient (RFC 2033, 4.2), and smtplib reads the first answer.
                    codes = [client.getreply()[0] for _ in self.users[1:]]
                except smtplib.SMTPException:
                    continue
                if all(code == 250 for code in codes):  # SMTP's word for yes
                    self.acknowledged.append((time.time(), subject, len(self.users)))

    def expunge(self) -> None:
        """Expunge and flag what has come in, as a user would, but nothing that other tests know."""
        with clients.imap(*self.mail.login(self.users[0])) as client:
            client.select("INBOX")
            first = int(client.response("UIDNEXT")[1][0])
            while self.goes_on():
                client.noop()
                # The index alone knows, which leaves the machine to what comes in.
                _, found = client.uid("SEARCH", "UID", f"{first}:*", "UNFLAGGED")
                # "*" is the last one, whatever its number.
                uids = [uid for uid in found[0].decode().split() if int(uid) >= first]
                if len(uids) < 6:  # so that each of the next lines has some
                    time.sleep(PAUSE_SECONDS)
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


@contextmanager
def alone(name: str, names: list[str]) -> Iterator[None]:
    """Have the machine for one host, *name*, while the tests of all others of *names* wait, before their own turn or after it.

    Hosts are tested side by side, each by a process of its own. One that does not come is not waited for forever.
    """
    run = f"load-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    place = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])

    def all_have(what: str, hosts: list[str]) -> bool:
        return all((place / f"{run}-{what}-{host}").exists() for host in hosts)

    def wait(what: str, hosts: list[str]) -> None:
        deadline = time.monotonic() + MEET_SECONDS
        while not all_have(what, hosts) and time.monotonic() < deadline:
            time.sleep(0.5)

    (place / f"{run}-come-{name}").touch()
    wait("come", names)
    try:
        with (place / run).open("w") as one_at_once:
            fcntl.flock(one_at_once, fcntl.LOCK_EX)
            yield
    finally:
        (place / f"{run}-done-{name}").touch()
    wait("done", [host for host in names if all_have("come", [host])])


def backup_under_load(mail, store, users: list[str], names: list[str], wanted: float) -> tuple[set[str], dict[str, float]]:
    """Back up while mail comes and goes; return the subjects acknowledged before, and {how: messages a second} meanwhile.

    If they are fewer than *wanted*, it is done again over more connections. *names* are all hosts whose tests run side by side.
    """
    with alone(mail.host["name"], names):
        for connections in CONNECTIONS:
            before, a_second = backup_once(mail, store, users, connections)
            if sum(a_second.values()) >= wanted:
                break
            # A Maildir takes fewer, the more it has.
            for user in users:
                forget(mail, user)
    return before, a_second


def forget(mail, user: str) -> None:
    """Expunge what a load brought to an account."""
    with clients.imap(*mail.login(user)) as client:
        client.select("INBOX")
        _, found = client.uid("SEARCH", "SUBJECT", "load-")
        if found[0]:
            client.uid("STORE", found[0].decode().replace(" ", ","), "+FLAGS.SILENT", "(\\Deleted)")
            client.expunge()


def backup_once(mail, store, users: list[str], connections: int) -> tuple[set[str], dict[str, float]]:
    """Do it once, over so many *connections* for deliveries, and a quarter as many for what clients append."""
    coming = {
        "delivered": [Load(mail, users, "deliver") for _ in range(connections)],
        "appended": [Load(mail, [users[-1 - number % len(users)]], "append") for number in range(connections // 4)],
    }
    expunging = Load(mail, users, "expunge")
    load = [*coming["delivered"], *coming["appended"], expunging]
    for each in load:
        each.start()
    time.sleep(WARM_SECONDS)
    begun = time.time()
    said = store.backup()
    ended = time.time()
    for each in load:
        each.enough.set()
    for each in load:
        each.join()
    assert "0 failures" in said, said
    assert expunging.expunged > 20, "too little was expunged to prove anything"
    assert ended - begun < LONGEST_SECONDS - WARM_SECONDS, "the backup was longer than the load"
    a_second = {
        how: sum(copies for each in some for moment, _, copies in each.acknowledged if begun <= moment < ended) / (ended - begun)
        for how, some in coming.items()
    }
    return {subject for each in load for moment, subject, _ in each.acknowledged if moment < begun}, a_second
