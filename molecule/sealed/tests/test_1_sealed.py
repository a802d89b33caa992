"""What is stored can be read in its user's own session, and nowhere else."""

from __future__ import annotations

import contextlib
import imaplib
import smtplib

import clients
import pytest
from real_clients import Client
from scanning import message

pytestmark = pytest.mark.requirement("REST-1")

ADA, BOB, CAROL, EVE, CLEAR = (
    "ada@letterlock.test", "bob@letterlock.test", "carol@letterlock.test", "eve@letterlock.test", "grace@example.test",
)
WORD = "Mondscheinsonate"


def test_mail_lies_encrypted_and_its_user_reads_it(host, mail, keys):
    """By IMAP and POP3, and what a client appends, too; the account that is to stay in clear stays so."""
    for user in (ADA, BOB, CLEAR):
        mail.deliver(user, message(f"{WORD} for {user}", WORD))
    with clients.imap(*mail.login(ADA)) as client:
        assert client.append("INBOX", None, None, message(f"{WORD}, appended", WORD))[0] == "OK"
        assert client.create("Archive")[0] == "OK"
        client.select("INBOX")
        assert client.copy("1", "Archive")[0] == "OK"
    for user, count in ((ADA, 2), (BOB, 1), (CLEAR, 1)):
        for texts in (clients.imap_messages(*mail.login(user)), clients.pop3_messages(*mail.login(user))):
            assert [text.count(WORD.encode()) for text in texts] == [2] * count
    for user, count in ((ADA, 3), (BOB, 1)):
        files = keys.files(user)
        assert len(files) == count
        for file in files:
            assert host.run(f"grep -a -q CRYPTED {file}").rc == 0
    assert not host.run(f"grep -r -a -l {WORD} /srv/mail/letterlock.test").stdout
    assert host.run(f"grep -r -a -l {WORD} /srv/mail/example.test").stdout


def test_other_clients_see_it_as_any_other(host, mail, keys):
    """Each message comes to mbsync and to fetchmail once, and as it is."""
    client, count = Client(host, mail, ADA), len(keys.files(ADA))
    client.sync()
    held = client.held()
    assert len(held.splitlines()) == count
    assert host.check_output(f"grep -r -l ^{WORD} {client.work}/mail | wc -l") == str(count)
    client.sync()
    assert client.held() == held
    assert client.fetch() == 2
    assert client.fetch() == 0
    assert host.check_output(f"grep -c ^{WORD} {client.work}/fetched") == "2"


def test_root_reads_nothing(host):
    """Dovecot's own administration refuses, and damages nothing."""
    done = host.run(f"doveadm fetch -u {ADA} text mailbox INBOX")
    assert done.rc != 0
    assert WORD not in done.stdout
    assert "rivate key not available" in done.stderr
    rows = host.check_output(f"doveadm -f tab fetch -u {ADA} 'uid flags date.saved size.virtual' mailbox INBOX").splitlines()[1:]
    assert len(rows) == 2


def test_one_user_does_not_read_anothers_mail(host, mail, keys):
    """With all of the other's files in his own home, in his own session."""
    (file,) = keys.files(BOB)
    taken = keys.files(ADA)[0]
    host.check_output(f"cp {file} /root/bobs && cp {taken} {file} && chown vmail: {file}")
    try:
        with clients.imap(*mail.login(BOB)) as client:
            client.select("INBOX", readonly=True)
            with contextlib.suppress(imaplib.IMAP4.error, OSError):
                _, answer = client.fetch("1", "(BODY.PEEK[])")
                assert WORD.encode() not in b"".join(part for one in answer if isinstance(one, tuple) for part in one)
    finally:
        host.check_output(f"cp /root/bobs {file} && chown vmail: {file}")
    assert WORD.encode() in keys.texts(BOB, mail.accounts[BOB])[0]


def test_without_a_key_nothing_is_stored(host, mail, keys):
    """The sender's server tries again; nobody logs in; keys that are made later change that."""
    with pytest.raises(smtplib.SMTPException) as refused:
        mail.deliver(CAROL, message(WORD, WORD))
    assert "451" in str(refused.value)
    assert not host.run("find /srv/mail/letterlock.test/carol -type f '(' -name 'u.*' -o -path '*/cur/*' -o -path '*/new/*' ')'").stdout
    assert keys.run("status").rc == 1
    assert "NO KEYS" in keys.run(f"status {CAROL}").stdout
    keys.done(f"make {CAROL}", "first password")
    mail.deliver(CAROL, message(WORD, WORD))
    assert WORD.encode() in keys.texts(CAROL, "first password")[0]
    assert keys.run(f"make {CAROL}", "x").rc == 2
    assert keys.run("status").rc == 0


def test_a_wrong_password_opens_nothing(mail, keys):
    """Nor does none at all."""
    right = mail.accounts[EVE]
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        keys.texts(EVE, f"{right}x")
    assert keys.lets_in(EVE, right)
    for wrong in (right[:-1], right.swapcase(), "x" * 1000, "ä:ö", " "):
        assert not keys.lets_in(EVE, wrong)


@pytest.mark.requirement("AUTH-3")
def test_an_account_that_is_disabled_gets_mail_and_no_login(mail, keys, site):
    """Its keys stay; when it is enabled again it reads what came in."""
    users = [{"name": name, "password": password} for name, password in mail.accounts.items()]
    disabled = [{**user, "state": "disabled"} if user["name"] == EVE else user for user in users]
    site.converge(mail_accounts_users=[*disabled, {"name": CAROL, "password": "first password"}])
    mail.deliver(EVE, message("meanwhile", WORD))
    assert not keys.lets_in(EVE, mail.accounts[EVE])
    assert all(keys.host.run(f"grep -a -q CRYPTED {file}").rc == 0 for file in keys.files(EVE))
    site.converge()
    assert WORD.encode() in keys.texts(EVE, mail.accounts[EVE])[-1]
    assert site.converge().changed(mail.host["name"]) == 0
