"""Policies, first by what must not happen."""

from __future__ import annotations

import imaplib
import time

import clients
import pytest
from retention_store import LEDGER

pytestmark = pytest.mark.requirement("RET-1")

ADA = "ada@letterlock.test"


@pytest.mark.requirement("RET-5")
def test_the_first_run_needs_somebody_to_look(host, store):
    """A new policy is stricter than none: nothing goes until the word is given back.

    The clock of this first run is 50 days back, for test_a_lost_index below.
    """
    store.save("lost@letterlock.test", "Archive", 60, "lost-1")
    store.save("lost@letterlock.test", "Trash", 99, "lost-old")
    refused = store.letterlock("retention run", clock="-50d")
    assert refused.rc == 2, refused
    assert "the policies let more go than those of the last run" in refused.stderr
    assert store.subjects("lost@letterlock.test", "Trash") == {"lost-old"}
    dry = store.letterlock("retention run --dry-run", clock="-50d")
    assert dry.rc == 0
    assert "lost@letterlock.test  Trash  trash: 1 of 1 messages, UIDs 1" in dry.stdout, dry.stdout
    assert store.subjects("lost@letterlock.test", "Trash") == {"lost-old"}
    assert store.letterlock("retention run --acknowledge nonsense", clock="-50d").rc == 2
    store.run(clock="-50d")
    assert store.subjects("lost@letterlock.test", "Trash") == set()
    assert store.subjects("lost@letterlock.test", "Archive") == {"lost-1"}


def test_mail_is_due_in_mailboxes_that_nobody_touches(store):
    """A mailbox as the last runs left it is passed over, but not longer than until the first of its mail is due."""
    user = "lost@letterlock.test"
    store.save(user, "Junk", 78, "due-in-two-days")
    store.save(user, "Junk", 60, "due-later")
    for _ in range(3):
        store.run(clock="-50d")
        assert store.subjects(user, "Junk") == {"due-in-two-days", "due-later"}
    store.run(clock="-47d")
    assert store.subjects(user, "Junk") == {"due-later"}


@pytest.mark.requirement("RET-5")
def test_a_lost_index_makes_no_mail_young(host, store, declared):
    """Without its cache Dovecot takes the file's ctime; the first run, 50 days ago, had seen this UID."""
    user = "lost@letterlock.test"
    home = f"{declared['mail_root']}/letterlock.test/lost"
    host.check_output(f"find {home} -name 'dovecot.index*' -delete && doveadm force-resync -u {user} '*'")
    saved = host.check_output(f"doveadm -f tab fetch -u {user} date.saved.unixtime mailbox Archive ALL | tail -n 1")
    assert time.time() - int(saved) < 86400, "the test lost its point: the saved date survived"
    assert store.subjects(user, "Archive") == {"lost-1"}
    # Acknowledged once, the same policies run by themselves: by the timer's own service.
    assert host.run("systemctl start letterlock-retention").rc == 0, host.run("journalctl -u letterlock-retention --no-pager -n 30").stdout
    assert store.subjects(user, "Archive") == set()


def test_each_limit(host, store, mail):
    """What is young, flagged, among the newest or small enough stays; the dry run says the rest, and the rest goes."""
    store.save(ADA, "Trash", 29, "trash-young")
    store.save(ADA, "Trash", 31, "trash-old-1", "trash-old-2")
    store.save(ADA, "Junk", 31, "junk-old")
    store.save(ADA, "Drafts", 5000, "draft-old")
    store.save(ADA, "INBOX", 366, "inbox-old", "inbox-flagged")
    store.save(ADA, "INBOX", 364, "inbox-young")
    host.check_output(f"doveadm flags add -u {ADA} '\\Flagged' mailbox INBOX header subject inbox-flagged")
    for number in range(5):
        store.save("lists@letterlock.test", "Lists/a", 5 - number, f"list-{number}")
    store.save("lists@letterlock.test", "Lists/forever", 3000, *[f"forever-{number}" for number in range(5)])
    for number in range(4):
        store.save("lists@letterlock.test", "Big1", 4 - number, f"big-{number}", octets=4000)
    with clients.imap(*mail.login(ADA)) as client:
        for subject, days in ((b"sent-old", 11), (b"sent-young", 9)):
            received = imaplib.Time2Internaldate(time.time() - days * 86400)
            client.append("Sent", None, received, b"Subject: " + subject + b"\r\nMessage-ID: <" + subject + b"@x>\r\n\r\nx\r\n")

    dry = store.letterlock("retention run --dry-run").stdout
    store.run()
    assert store.subjects(ADA, "Trash") == {"trash-young"}
    assert store.subjects(ADA, "Junk") == set()
    assert store.subjects(ADA, "Drafts") == {"draft-old"}
    assert store.subjects(ADA, "INBOX") == {"inbox-flagged", "inbox-young"}
    assert store.subjects(ADA, "Sent") == {"sent-young"}
    assert store.subjects("lists@letterlock.test", "Lists/a") == {"list-2", "list-3", "list-4"}
    assert len(store.subjects("lists@letterlock.test", "Lists/forever")) == 5
    assert store.subjects("lists@letterlock.test", "Big1") == {"big-2", "big-3"}
    for line in (
        f"{ADA}  Trash  trash: 2 of 3 messages, UIDs 2:3", f"{ADA}  Junk  trash: 1 of 1 messages", f"{ADA}  INBOX  inbox: 1 of 3 messages",
        f"{ADA}  Sent  sent: 1 of 2 messages", "lists@letterlock.test  Lists/a  newest: 2 of 5 messages, UIDs 1:2",
        "lists@letterlock.test  Big1  size: 2 of 4 messages, UIDs 1:2", "9 messages would go",
    ):
        assert line in dry, dry
    assert "0 messages would go" in store.letterlock("retention run --dry-run").stdout


@pytest.mark.requirement("RET-4")
def test_the_ledger_says_what_went(host, store):
    """When, whose, where, which message, how large, how old, by which policy and why; no content and no address of others."""
    gone = [line for line in store.ledger() if line["kind"] == "expunge" and line["account"] == ADA]
    policies = {(line["mailbox"], line["policy"]) for line in gone}
    assert policies >= {("Trash", "trash"), ("Junk", "trash"), ("INBOX", "inbox"), ("Sent", "sent")}
    for line in gone:
        assert line["guid"]
        assert len(line["message_id"]) == 64
        assert line["size"] > 0
        assert line["saved"] <= line["time"]
        assert line["why"]
    text = host.check_output(f"cat {LEDGER}/ledger-*.jsonl")
    for secret in ("trash-old", "sender@example.org", "Subject"):
        assert secret not in text
    assert store.letterlock("ledger verify").rc == 0
    assert host.check_output(f"stat --format '%U %a' {LEDGER}") == "root 700"
    assert host.check_output(f"stat --format %a {LEDGER}/signing.key {LEDGER}/hash.key").split() == ["600", "600"]


@pytest.mark.requirement("RET-4")
def test_what_remains_can_be_proven(store):
    """The statement is checked against the mailboxes of this moment."""
    proven = store.letterlock(f"ledger prove {ADA}")
    assert proven.rc == 0, proven
    assert "trash (keeps for 30d since saved): nothing remains that should be gone" in proven.stdout
    store.save(ADA, "Trash", 31, "trash-new-old")
    disproven = store.letterlock(f"ledger prove {ADA}")
    assert disproven.rc == 1
    assert "NOT SO: 1 messages remain in Trash" in disproven.stdout, disproven.stdout
    store.run()
    assert store.letterlock(f"ledger prove {ADA}").rc == 0
    assert store.letterlock("ledger prove nobody@letterlock.test").rc == 2


@pytest.mark.any_format
def test_explain(store):
    """Which rule applies, and why."""
    said = store.letterlock("retention explain lists@letterlock.test Lists/forever").stdout
    assert "newest (keeps the newest 3): gives way to lists, which overrides" in said, said
    assert "lists (keeps for 10y since saved): applies and overrides the others" in said
    said = store.letterlock(f"retention explain {ADA} Trash").stdout
    assert "the strictest in time is trash, 30d since saved" in said
    assert "nothing is expunged" in store.letterlock(f"retention explain {ADA} Drafts").stdout
    assert "expunges what POP3 fetched at once" in store.letterlock(f"retention explain {ADA} INBOX").stdout
    assert store.letterlock("retention explain nobody@letterlock.test INBOX").rc == 2


@pytest.mark.parametrize("mailbox", ['-Entwürfe "a*b"', "-x"])
def test_mailboxes_with_odd_names(store, mailbox):
    """UTF-8, quotes, a space, an asterisk, a leading dash: that mailbox, and not one whose name only looks like it."""
    beside = mailbox.replace("*", "zz") + "y"
    for name in (mailbox, beside):
        store.save("odd@letterlock.test", name, 2, "old")
        store.save("odd@letterlock.test", name, 0, "new")
    store.run()
    assert store.subjects("odd@letterlock.test", mailbox) == {"new"}
    assert store.subjects("odd@letterlock.test", beside) == {"old", "new"}


@pytest.mark.requirement("RET-5")
def test_a_flag_that_was_set_meanwhile_still_spares(host, store):
    """A flag on the last moment counts, and so does one that was taken away."""
    store.save(ADA, "INBOX", 400, "flagged-later")
    host.check_output(f"doveadm flags add -u {ADA} '\\Flagged' mailbox INBOX header subject flagged-later")
    # Once it is taken for a mailbox in which nothing is due, too.
    for _ in range(3):
        store.run()
    assert "flagged-later" in store.subjects(ADA, "INBOX")
    host.check_output(f"doveadm flags remove -u {ADA} '\\Flagged' mailbox INBOX header subject flagged-later")
    store.run()
    assert "flagged-later" not in store.subjects(ADA, "INBOX")


def test_what_nobody_has_read_is_spared(host, store):
    """Until it is read; `spare: [unseen]`."""
    store.save(ADA, "Unread", 31, "unread", "read")
    host.check_output(f"doveadm flags add -u {ADA} '\\Seen' mailbox Unread header subject read; doveadm flags remove -u {ADA} '\\Seen' "
                      "mailbox Unread header subject unread")
    store.run()
    assert store.subjects(ADA, "Unread") == {"unread"}
    host.check_output(f"doveadm flags add -u {ADA} '\\Seen' mailbox Unread ALL")
    store.run()
    assert store.subjects(ADA, "Unread") == set()


def test_each_account_of_many_loses_its_own(host, store):
    """Accounts are done in groups, and the same UID is old in one and young in the next."""
    users = [f"{name}@letterlock.test" for name in ("ada", "lists", "many", "odd", "clients", "lost")]
    for number, user in enumerate(users):
        for mailbox in ("Trash", "Junk"):
            host.check_output(f"doveadm mailbox create -u {user} {mailbox} 2>/dev/null; doveadm expunge -u {user} mailbox {mailbox} ALL")
            if number % 2:
                store.save(user, mailbox, 0, "makes-room")
                host.check_output(f"doveadm expunge -u {user} mailbox {mailbox} ALL")
            for message in range(4):
                is_old = (message + number) % 3 == 0
                store.save(user, mailbox, 31 if is_old else 29, f"{'old' if is_old else 'young'}-{message}")
    store.run()
    for number, user in enumerate(users):
        for mailbox in ("Trash", "Junk"):
            young = {f"young-{message}" for message in range(4) if (message + number) % 3}
            assert store.subjects(user, mailbox) == young, (user, mailbox)
            host.check_output(f"doveadm expunge -u {user} mailbox {mailbox} ALL")


@pytest.mark.requirement("RET-5")
def test_an_account_that_was_copied_keeps_what_is_young(host, store, declared):
    """Its mailboxes have the same GUIDs, and what is old under a UID in one is young under that UID in the other."""
    for user in (ADA, "lists@letterlock.test"):
        host.check_output(f"doveadm mailbox create -u {user} Trash 2>/dev/null; doveadm expunge -u {user} mailbox Trash ALL")
    others = ["odd@letterlock.test", "clients@letterlock.test", "lost@letterlock.test"]
    for user in others:
        store.save(user, "Trash", 31, "old")
    store.save(ADA, "Trash", 29, "both-young")
    home = f"{declared['mail_root']}/letterlock.test"
    host.check_output(f"mv {home}/lists {home}/lists.kept && cp -a {home}/ada {home}/lists")
    try:
        store.save(ADA, "Trash", 31, "old-in-ada")
        store.save(ADA, "Trash", 29, "young-in-ada")
        store.save("lists@letterlock.test", "Trash", 29, "young-in-lists")
        store.save("lists@letterlock.test", "Trash", 31, "old-in-lists")
        store.run()
        assert store.subjects(ADA, "Trash") == {"both-young", "young-in-ada"}
        assert store.subjects("lists@letterlock.test", "Trash") == {"both-young", "young-in-lists"}
    finally:
        host.check_output(f"rm -rf {home}/lists && mv {home}/lists.kept {home}/lists; doveadm expunge -u {ADA} mailbox Trash ALL")
    assert not any(store.subjects(user, "Trash") for user in others)


def test_a_moved_message_counts_from_its_move(host, store, mail):
    """Trash counts from when mail was thrown away; `since: received` from when it came, wherever it is moved."""
    user = "lists@letterlock.test"
    store.save(user, "Drafts", 31, "thrown-away")
    with clients.imap(*mail.login(user)) as client:
        received = imaplib.Time2Internaldate(time.time() - 31 * 86400)
        client.append("Drafts", None, received, b"Subject: put-into-sent\r\nMessage-ID: <put@x>\r\n\r\nx\r\n")
        client.select("Drafts")
        assert client.uid("MOVE", "1", "Trash")[0] == "OK"
        assert client.uid("MOVE", "2", "Sent")[0] == "OK"
    store.run()
    assert "thrown-away" in store.subjects(user, "Trash")
    assert store.subjects(user, "Sent") == set()
    host.check_output(f"doveadm expunge -u {user} mailbox Trash ALL")


@pytest.mark.requirement("RET-5")
def test_a_saved_date_survives_flags_and_a_copied_disk(host, store, declared):
    """Neither a flag change nor new ctimes make old mail young."""
    user = "lists@letterlock.test"
    store.save(user, "Trash", 31, "kept-date")
    host.check_output(f"doveadm flags add -u {user} '\\Seen' mailbox Trash ALL")
    home = f"{declared['mail_root']}/letterlock.test/lists"
    host.check_output(f"cp -a {home} {home}.copy && rm -rf {home} && mv {home}.copy {home}")
    store.run()
    assert store.subjects(user, "Trash") == set()
