"""A backup needs no key, and what it brings back is read by its user alone."""

from __future__ import annotations

import clients
import pytest
from scanning import message

pytestmark = pytest.mark.requirement("LOSS-4", "REST-1")

ADA, BOB = "ada@letterlock.test", "bob@letterlock.test"
RING = "/var/lib/letterlock/keys/accounts/letterlock.test"


def seen(keys, user: str) -> list:
    """Return all that IMAP and POP3 show of INBOX."""
    password = keys.mail.accounts[user]
    with clients.imap(keys.mail.host, keys.mail.ca_file, user, password) as client:
        client.select("INBOX", readonly=True)
        _, answers = client.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])")
    with clients.pop3(keys.mail.host, keys.mail.ca_file, user, password) as client:
        uidl = client.uidl()[1]
    return [answers, uidl]


def test_a_lost_account_is_read_by_its_own_password(host, mail, keys, store):
    """With its keys, which come back with it; all is as it was, saved dates included."""
    for number in range(3):
        mail.deliver(ADA, message(f"before the loss {number}", "Mondscheinsonate"))
    seen(keys, ADA)
    before = seen(keys, ADA)
    said = store.backup()
    assert "0 failures" in said, said
    assert "0 without a hash" in said, said
    host.check_output(f"rm -rf /srv/mail/letterlock.test/ada {RING}/ada.json && letterlock keys show")
    assert not keys.lets_in(ADA, mail.accounts[ADA])
    restored = store.letterlock(f"backup restore {ADA}")
    assert restored.rc == 0, restored
    assert f"brought back the keys of {ADA}" in restored.stdout
    assert seen(keys, ADA) == before
    assert not host.run("grep -r -a -l Mondscheinsonate /srv/mail/letterlock.test/ada /srv/backup").stdout


def test_what_is_added_to_what_is_there(mail, keys, store):
    """It lies there as it was, encrypted, and its user reads it."""
    texts = keys.texts(ADA, mail.accounts[ADA])
    with clients.imap(*mail.login(ADA)) as client:
        client.select("INBOX")
        client.store("1", "+FLAGS", "(\\Deleted)")
        client.expunge()
    done = store.letterlock(f"backup restore {ADA}")
    assert done.rc == 0, done
    assert f"{ADA}: 1 messages added to what is there" in done.stdout
    assert sorted(keys.texts(ADA, mail.accounts[ADA])) == sorted(texts)
    assert all(keys.host.run(f"grep -a -q CRYPTED {file}").rc == 0 for file in keys.files(ADA))


def test_a_search_of_what_is_encrypted_takes_the_password(mail, keys, store):
    """Without it nothing is found, and it is said why; with a wrong one nothing is begun."""
    search = f"backup restore {ADA} --into Found --search 'subject loss'"
    refused = store.letterlock(search)
    assert refused.rc == 1, refused
    assert "with --password" in refused.stdout
    done = keys.host.run(f"echo {mail.accounts[ADA]} | letterlock {search} --password")
    assert done.rc == 0, done
    assert f"{ADA}: 3 messages added" in done.stdout
    with clients.imap(*mail.login(ADA)) as client:
        assert client.select("Found/INBOX", readonly=True) == ("OK", [b"3"])
        assert b"Mondscheinsonate" in client.fetch("1", "(BODY.PEEK[])")[1][0][1]
    assert all(keys.host.run(f"grep -a -q CRYPTED {file}").rc == 0 for file in keys.files(ADA))
    assert keys.host.run(f"echo guess | letterlock {search} --password").rc == 2


def test_a_flipped_octet_is_found(host, keys, store):
    """What nobody can read is compared as it lies on the disk: the hash of the ciphertext."""
    (file, *_) = keys.files(BOB)
    before = host.check_output(f"sha256sum {file}")
    host.check_output(f"cp -a {file} /root/kept")
    host.check_output(f"printf X | dd of={file} bs=1 seek=$(($(stat -c %s {file}) - 99)) conv=notrunc 2>/dev/null")
    assert host.check_output(f"sha256sum {file}") != before
    host.check_output("rm -f /var/lib/letterlock/backup/stage/manifests/letterlock.test/bob.json*")
    store.backup()
    flipped = host.check_output("cat /var/lib/letterlock/backup/stage/manifests/letterlock.test/bob.json*")
    host.check_output(f"cp -a /root/kept {file} && rm -f /var/lib/letterlock/backup/stage/manifests/letterlock.test/bob.json*")
    store.backup()
    assert host.check_output("cat /var/lib/letterlock/backup/stage/manifests/letterlock.test/bob.json*") != flipped
