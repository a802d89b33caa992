"""A restore is proven by reading the mail back, over IMAP and POP3, on a host that had lost it."""

from __future__ import annotations

import smtplib
import threading
import time

import clients

USERS = ["ada@letterlock.test", "bob@letterlock.test", "grace@example.test"]
BUSY = "bob@letterlock.test"
LOAD_SECONDS = 14


def seen(store) -> dict:
    """Return what all users see, when POP3 has marked as seen what it gives."""
    for user in USERS:
        store.seen(user)
    return {user: store.seen(user) for user in USERS}


def test_all_is_as_it_was(host, store):
    """UIDVALIDITY, UIDs, flags, keywords, dates, sizes, unique ids of POP3, and every octet; the ledger, too."""
    before = seen(store)
    assert [len(before[USERS[0]][name][1]) for name in ("INBOX", "Archive")] == [5, 3]
    ledger = host.check_output("cat /var/lib/letterlock/ledger/ledger-*.jsonl | wc -l")
    store.backup()
    store.lose()
    assert store.seen(USERS[0])["INBOX"][1] == []
    restored = store.letterlock("backup restore")
    assert restored.rc == 0, restored
    assert "0 differences" in restored.stdout, restored
    for user in USERS:
        assert store.seen(user) == before[user]
    assert host.check_output("cat /var/lib/letterlock/ledger/ledger-*.jsonl | wc -l") == ledger
    assert store.letterlock("ledger verify").rc == 0
    assert not host.file(f"{store.root}/.letterlock-restore").exists
    # The restored host goes on: mail comes in, and backups go to the same repository.
    store.fill("ada@letterlock.test", "after", 5)
    assert "0 failures" in store.backup()


def test_mail_that_is_there_is_left_alone(store):
    """A restore is for accounts that have lost their mail; the others are named."""
    before = store.seen(BUSY)
    kept = store.letterlock(f"backup restore {BUSY}")
    assert kept.rc == 1, kept
    assert f"left alone, because it has mail already: {BUSY}" in kept.stdout
    assert store.seen(BUSY) == before
    assert store.letterlock("backup restore nobody@letterlock.test").rc == 2
    assert store.letterlock("backup restore --snapshot 1999-01-01").rc == 2


def test_one_account(host, store):
    """As of a moment; the others are not touched."""
    before = seen(store)
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    host.check_output(f"rm -rf {store.root}/example.test/grace")
    done = store.letterlock(f"backup restore --snapshot {now} grace@example.test")
    assert done.rc == 0, done
    assert "1 accounts are back" in done.stdout
    assert {user: store.seen(user) for user in USERS} == before


def test_held_mail_comes_back_hidden(host, store):
    """What a user expunged under a hold is in the backup, and in no user's sight after the restore."""
    user = "held@letterlock.test"
    store.fill(user, "held")
    before = store.letterlock("hold show case-1").stdout
    assert "(expunged by the user)" in before
    store.backup()
    host.check_output(f"rm -rf {store.root}/letterlock.test/held")
    assert store.letterlock(f"backup restore {user}").rc == 0
    assert store.letterlock("hold show case-1").stdout == before


class Load(threading.Thread):
    """Delivers to one account for some seconds, and expunges from it at the same time."""

    def __init__(self, mail, *, expunges: bool) -> None:
        """Deliver, or expunge, until the seconds are over."""
        super().__init__(daemon=True)
        self.mail, self.expunges = mail, expunges
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
            for number in range(50):
                identity = f"load-{id(self)}-{time.monotonic_ns()}-{number}"
                message = f"Subject: {identity}\r\n\r\n{'0123456789abcdef' * 100}\r\n".encode()
                try:
                    client.sendmail("s@example.org", [BUSY], message)
                except smtplib.SMTPException:
                    continue
                self.acknowledged.append((time.time(), identity))

    def expunge(self, deadline: float) -> None:
        """Expunge and flag what has come in, as a user would, but nothing that other tests know."""
        with clients.imap(*self.mail.login(BUSY)) as client:
            client.select("INBOX")
            while time.monotonic() < deadline:
                client.noop()
                _, found = client.uid("SEARCH", "SUBJECT", "load-", "UNFLAGGED")
                uids = found[0].decode().split()
                if len(uids) < 6:
                    continue
                client.uid("STORE", ",".join(uids[1::3][:20]), "+FLAGS", "(\\Flagged)")
                doomed = uids[::3][:20]
                client.uid("STORE", ",".join(doomed), "+FLAGS", "(\\Deleted)")
                client.expunge()
                self.expunged += len(doomed)


def subjects(mail) -> set[str]:
    """Return the subjects in the busy account's INBOX."""
    with clients.imap(*mail.login(BUSY)) as client:
        client.select("INBOX", readonly=True)
        _, answers = client.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        return {answer[1].decode().removeprefix("Subject: ").strip() for answer in answers if isinstance(answer, tuple)}


def test_a_backup_of_a_mailbox_that_never_rests(host, mail, store):
    """Deliveries, flags and expunges at full speed: what was acknowledged before and not expunged is there, and readable."""
    load = [Load(mail, expunges=False), Load(mail, expunges=False), Load(mail, expunges=True)]
    for each in load:
        each.start()
    time.sleep(3)
    begun = time.time()
    said = store.backup()
    for each in load:
        each.join()
    assert "0 failures" in said, said
    delivered = [(moment, identity) for each in load for moment, identity in each.acknowledged]
    assert len(delivered) > 200, "too little load to prove anything"
    assert load[2].expunged > 20
    left = subjects(mail)
    host.check_output(f"rm -rf {store.root}/letterlock.test/bob")
    restored = store.letterlock(f"backup restore {BUSY}")
    assert restored.rc == 0, restored.stdout
    there = subjects(mail)
    lost = {identity for moment, identity in delivered if moment < begun and identity in left} - there
    assert not lost
    assert {f"bob-{number}" for number in range(6) if number != 3} <= there


def test_a_role_that_is_switched_off_leaves_nothing_behind(host, mail, site):
    """No unit and no secret; the repository stays."""
    site.converge(mail_backup_repository="")
    assert not host.check_output("find /etc/systemd/system -name 'letterlock-backup*'")
    assert not host.check_output("find /etc/letterlock/backup -type f")
    assert host.file("/srv/backup/config").exists
    assert site.converge(mail_backup_repository="").changed(mail.host["name"]) == 0
    site.converge()
    assert site.converge().changed(mail.host["name"]) == 0
