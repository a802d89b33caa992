"""Held mail stays, whoever expunges it, and leaves the host with a manifest."""

from __future__ import annotations

import hashlib
import json

import clients
import pytest
from retention_store import RawPop3

pytestmark = pytest.mark.requirement("RET-3")

HELD, PART = "held@letterlock.test", "part@letterlock.test"


def test_nothing_expunges_held_mail(host, store, mail):
    """Neither a policy nor POP3 nor its user: IMAP EXPUNGE and DELE only hide it from its user."""
    store.save(HELD, "Trash", 99, "by-policy")
    store.save(HELD, "INBOX", 0, "by-expunge", "by-dele", "by-fetch", "stays")
    store.run()
    assert store.subjects(HELD, "Trash") == {"by-policy"}
    with clients.imap(*mail.login(HELD)) as client:
        client.select()
        client.store("1", "+FLAGS", "\\Deleted")
        client.expunge()
        # A whole folder, too: what is in it, and its name, are the user's to delete.
        client.create("Folder")
        client.append("Folder", None, None, b"Subject: by-delete\r\n\r\nx\r\n")
        assert client.delete("Folder")[0] == "OK"
    with clients.pop3(*mail.login(HELD)) as client:
        client.dele(1)
    session = RawPop3(mail, HELD)
    session.say("RETR 1")
    session.whole()
    session.say("QUIT")
    host.check_output("sleep 2; systemctl start letterlock-fetched")
    assert store.subjects(HELD, "INBOX") == {"by-fetch", "stays"}
    assert store.subjects(HELD, "Held") == {"by-expunge", "by-dele", "by-delete"}
    store.run()
    assert store.subjects(HELD, "Held") == {"by-expunge", "by-dele", "by-delete"}


def test_its_user_sees_nothing_of_it(mail):
    """Not in the list, not by name, and not to be replaced by a mailbox of the user's own."""
    with clients.imap(*mail.login(HELD)) as client:
        assert not any(b"Held" in line for line in client.list()[1])
        assert client.select("Held")[0] == "NO"
        assert client.rename("Held", "Mine")[0] == "NO"
        assert client.delete("Held")[0] == "NO"
        assert client.create("Held")[0] == "NO"


def test_a_hold_on_a_search(host, store, mail):
    """Only what names the witness is held: the rest of the account follows the policies, and its user's word."""
    store.save(PART, "Trash", 99, "testimony", sender="witness@example.org")
    store.save(PART, "Trash", 99, "gossip")
    store.save(PART, "INBOX", 0, "mine", "theirs")
    store.save(PART, "INBOX", 0, "evidence", sender="Witness <witness@example.org>")
    with clients.imap(*mail.login(PART)) as client:
        client.select()
        client.store("1:*", "+FLAGS", "\\Deleted")
        client.expunge()
    store.run()
    assert store.subjects(PART, "Trash") == {"testimony"}
    assert store.subjects(PART, "INBOX") == set()
    assert store.subjects(PART, "Held") == {"evidence"}


def test_list_and_show(store):
    """What is held, and what of it its users have expunged."""
    listed = store.letterlock("hold list").stdout
    assert f"case-1: {HELD}" in listed
    assert "case-2: " in listed
    shown = store.letterlock("hold show case-1").stdout
    assert "6 messages" in shown, shown
    assert "Held: 3 (expunged by the user)" in shown
    assert store.letterlock("hold show case-9").rc == 2


@pytest.mark.parametrize("form", ["maildir", "mbox"])
def test_export(host, store, mail, form):
    """Every message is in the export, octet by octet, and the manifest says which and how."""
    directory = f"/root/export-{form}"
    done = store.letterlock(f"hold export --format {form} case-1 {directory}")
    assert done.rc == 0, done
    manifest = [json.loads(line) for line in host.check_output(f"cat {directory}/manifest.jsonl").splitlines()]
    assert len(manifest) == 6
    assert {line["mailbox"] for line in manifest} == {"INBOX", "Trash", "Held"}
    by_imap = {hashlib.sha256(message).hexdigest() for message in clients.imap_messages(*mail.login(HELD))}
    assert by_imap <= {line["sha256"] for line in manifest}
    if form == "maildir":
        for line in manifest:
            assert host.check_output(f"sha256sum '{directory}/{line['file']}'").split()[0] == line["sha256"]
    else:
        assert host.check_output(f"grep -c '^From ' {directory}/{HELD}.mbox") == "6"
    assert store.letterlock(f"hold export case-1 {directory}").rc == 2
    host.check_output(f"rm -rf {directory}")


def test_setting_and_lifting_is_recorded_and_what_was_kept_goes(host, store, site, mail):
    """The deployment writes it down; lifted, the policies hold again, and what its user had expunged is gone."""
    recorded = [(line["hold"], line["action"]) for line in store.ledger() if line["kind"] == "hold"]
    assert ("case-1", "set") in recorded
    site.converge(mail_retention_holds=[{"name": "case-2", "accounts": [PART], "addresses": ["witness@example.org"]}])
    recorded = [(line["hold"], line["action"]) for line in store.ledger() if line["kind"] == "hold"]
    assert recorded[-1] == ("case-1", "lifted")
    dry = store.letterlock("retention run --dry-run").stdout
    assert f"{HELD}  Held  hold: 3 of 3 messages" in dry, dry
    store.run()
    assert store.subjects(HELD, "Held") == set()
    assert store.subjects(HELD, "Trash") == set()
    with clients.imap(*mail.login(HELD)) as client:
        client.select()
        client.store("1", "+FLAGS", "\\Deleted")
        client.expunge()
    assert store.subjects(HELD, "Held") == set()
    assert site.converge().changed(mail.host["name"]) > 0
