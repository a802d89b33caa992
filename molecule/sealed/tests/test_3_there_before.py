"""Mail that was there before the keys is encrypted, and brought into the clear again, without loss."""

from __future__ import annotations

import json
import smtplib
import threading
import time

import clients
import pytest
from scanning import message

pytestmark = pytest.mark.requirement("REST-4")

USER = "frank@letterlock.test"
COUNT = 60
DEFERRED = 451


def seen(mail, password: str) -> dict:
    """Return all that clients see of the account: UIDVALIDITY, UIDs, flags, dates, sizes, texts, and POP3's unique ids."""
    found = {}
    with clients.imap(mail.host, mail.ca_file, USER, password) as client:
        for mailbox in ("INBOX", "Archive", "Entw&APw-rfe"):
            client.select(mailbox, readonly=True)
            validity = client.response("UIDVALIDITY")[1]
            _, answers = client.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])")
            found[mailbox] = validity, sorted(
                (answer[0].split(b" ", 1)[1].replace(b"\\Recent", b""), answer[1]) for answer in answers if isinstance(answer, tuple)
            )
    with clients.pop3(mail.host, mail.ca_file, USER, password) as client:
        found["POP3"] = client.uidl()[1]
    return found


def saved(host) -> list[str]:
    """Return what a run of retention in five days would expunge, by the time since each message was saved."""
    return host.check_output("faketime -f +5d letterlock retention run --dry-run")


def converge(site, mail, *, sealed: bool):
    """Deploy with the account, whose mail is encrypted or not."""
    users = [{"name": name, "password": password} for name, password in mail.accounts.items()]
    accounts = [name for name in mail.accounts if name != "grace@example.test"] + ([USER] if sealed else [])
    return site.converge(
        mail_accounts_users=[*users, {"name": USER, "password": "of frank"}], mail_crypt_accounts=accounts,
        mail_retention_policies=[{"name": "old", "accounts": [USER], "mailboxes": ["INBOX"], "keep_for": "20d"}],
    )


def test_what_was_there_is_encrypted(host, mail, keys, site):
    """In place, with UIDs, flags, dates and unique ids; what comes in meanwhile is there, too, and no copy in clear is left."""
    converge(site, mail, sealed=False)
    for number in range(COUNT):
        mail.deliver(USER, message(f"number {number}", f"Mondscheinsonate {number}"))
    host.check_output(f"printf 'Subject: of old\\r\\n\\r\\nx\\r\\n' | faketime -f -16d doveadm save -u {USER} -m INBOX")
    with clients.imap(mail.host, mail.ca_file, USER, "of frank") as client:
        for mailbox in ("Archive", "Entw&APw-rfe"):
            assert client.create(mailbox)[0] == "OK"
            client.select("INBOX")
            client.copy("2:9", mailbox)
        client.store("3:7", "+FLAGS", "(\\Flagged own-keyword)")
        client.store("8", "+FLAGS", "(\\Deleted)")
        client.expunge()
    before, due = seen(mail, "of frank"), saved(host)
    assert "1 messages would go" in due
    converge(site, mail, sealed=True)
    assert seen(mail, "of frank") == before
    (status,) = json.loads(host.check_output(f"letterlock keys status {USER} --json --count"))
    assert (status["sealed"], status["clear"]) == (0, COUNT + 16)
    done = keys.run(f"seal {USER}")
    assert done.rc == 0, done
    assert f"all {COUNT + 16} messages are encrypted" in done.stdout
    assert seen(mail, "of frank") == before
    assert saved(host) == due
    (status,) = json.loads(host.check_output(f"letterlock keys status {USER} --json --count"))
    assert (status["sealed"], status["clear"]) == (COUNT + 16, 0)
    assert not host.run("grep -r -a -l Mondscheinsonate /srv/mail/letterlock.test/frank /srv/mail/.letterlock-encrypting").stdout
    assert not host.run("find /srv/mail/.letterlock-encrypting -type f ! -name lock").stdout
    assert keys.run(f"seal {USER}").rc == 0


def test_it_is_interrupted_and_goes_on(host, mail, keys, site):
    """At any moment every message is there, once; the next run ends what the last one began."""
    keys.done(f"unseal {USER}", "of frank")
    before = seen(mail, "of frank")
    for moment in (0.2, 0.5, 0.8, 1.2, 2.0, 3.0):
        host.run(f"letterlock keys seal {USER} & sleep {moment}; kill -KILL $!; pkill -KILL -x doveadm; :")
        files = keys.files(USER)
        assert len(files) == COUNT + 16
    assert keys.run(f"seal {USER}").rc == 0
    assert seen(mail, "of frank") == before
    assert not host.run("grep -r -a -l Mondscheinsonate /srv/mail/letterlock.test/frank /srv/mail/.letterlock-encrypting").stdout
    assert converge(site, mail, sealed=True).changed(mail.host["name"]) == 0


def test_mail_that_comes_in_meanwhile_is_not_lost(host, mail, keys):
    """It is taken in or deferred, and there afterwards; what a client has done in a session is kept."""
    keys.done(f"unseal {USER}", "of frank")
    with clients.imap(mail.host, mail.ca_file, USER, "of frank") as client:
        client.select("INBOX")
        client.store("1", "+FLAGS", "(meanwhile)")
    enough, codes = threading.Event(), []

    def deliver() -> None:
        while not enough.is_set():
            try:
                mail.deliver(USER, message("meanwhile", "x"))
                codes.append(250)
            except smtplib.SMTPDataError as later:
                codes.append(later.smtp_code)
            time.sleep(0.1)

    sender = threading.Thread(target=deliver)
    sender.start()
    time.sleep(1)
    sealed = keys.run(f"seal {USER}")
    time.sleep(2)
    enough.set()
    sender.join()
    assert sealed.rc == 0, sealed
    assert set(codes) == {250, DEFERRED}
    taken = codes.count(250)
    texts = keys.texts(USER, "of frank")
    assert sum(b"Subject: meanwhile" in text for text in texts) == taken
    (status,) = json.loads(host.check_output(f"letterlock keys status {USER} --json --count"))
    assert status["clear"] == 0
    with clients.imap(mail.host, mail.ca_file, USER, "of frank") as client:
        client.select("INBOX")
        assert client.search(None, "KEYWORD", "meanwhile")[1] == [b"1"]


def test_it_is_brought_into_the_clear(host, mail, keys, site):
    """By who knows the password; then it is as if it had never been encrypted."""
    before = seen(mail, "of frank")
    assert keys.run(f"unseal {USER}", "guess").rc == 2
    assert seen(mail, "of frank") == before
    done = keys.run(f"unseal {USER}", "of frank")
    assert done.rc == 0, done
    assert seen(mail, "of frank") == before
    converge(site, mail, sealed=False)
    assert seen(mail, "of frank") == before
    assert not host.run("grep -r -a -l CRYPTED /srv/mail/letterlock.test/frank").stdout
    refused = site.run(mail_crypt_enabled=False)
    assert converge(site, mail, sealed=False).changed(mail.host["name"]) == 0
    assert refused.code != 0
    assert "letterlock keys unseal ada@letterlock.test" in refused.output
