"""A restore is proven by reading the mail back, over IMAP and POP3, on a host that had lost it."""

from __future__ import annotations

import json
import shlex
import time

import busy
import clients
import lane
import pytest

pytestmark = pytest.mark.requirement("LOSS-4")

USERS = ["ada@letterlock.test", "bob@letterlock.test", "grace@example.test"]
BUSY = "bob@letterlock.test"


def seen(store) -> dict:
    """Return what all users see, when POP3 has marked as seen what it gives."""
    for user in USERS:
        store.seen(user)
    return {user: store.seen(user) for user in USERS}


def test_all_is_as_it_was(host, store):
    """UIDVALIDITY, UIDs, flags, keywords, dates, sizes, unique ids of POP3, and every octet; the ledger, too."""
    before = seen(store)
    assert [len(before[USERS[0]][name][1]) for name in ("INBOX", "Archive")] == [5, 3]
    ledger = host.check_output("cat /var/lib/letterlock/ledger/ledger-*.jsonl")
    # What else an account has in its home, such as a script.
    script = f"{store.root}/letterlock.test/ada/.dovecot.sieve"
    host.check_output(f"printf 'keep;' >{script} && chown vmail: {script}")
    store.backup()
    store.lose()
    assert store.seen(USERS[0])["INBOX"][1] == []
    restored = store.letterlock("backup restore")
    assert restored.rc == 0, restored
    assert "0 differences" in restored.stdout, restored
    for user in USERS:
        assert store.seen(user) == before[user]
    assert host.check_output("cat /var/lib/letterlock/ledger/ledger-*.jsonl").startswith(ledger)
    assert store.letterlock("ledger verify").rc == 0
    assert host.check_output(f"cat {script}; stat --format %U {script}") == "keep;vmail"
    assert not host.file(f"{store.root}/.letterlock-restore").exists
    # The restored host goes on: mail comes in, and backups go to the same repository.
    store.fill("ada@letterlock.test", "after", 5)
    assert "0 failures" in store.backup()


def test_mail_that_is_there_is_left_as_it_is(store):
    """A restore of an account that lacks nothing adds nothing, and one of what does not exist is refused."""
    before = store.seen(BUSY)
    again = store.letterlock(f"backup restore {BUSY}")
    assert again.rc == 0, again
    assert f"{BUSY}: 0 messages added to what is there" in again.stdout
    assert store.seen(BUSY) == before
    for unknown in ("nobody@letterlock.test", "--snapshot 1999-01-01", f"{BUSY} --mailbox Nowhere"):
        assert store.letterlock(f"backup restore {unknown}").rc == 2


def test_what_came_in_since_the_loss_is_kept(host, mail, store):
    """The lost mail is back under its own UIDs, and what was delivered to the empty host comes after it, once."""
    before = seen(store)
    store.backup()
    store.lose()
    mail.deliver(USERS[0], b"Subject: meanwhile\r\n\r\nx\r\n")
    refused = store.letterlock("backup run")
    assert refused.rc == 2, refused
    assert "bring that one's mail back first" in refused.stderr
    dry = store.letterlock("backup restore --dry-run")
    assert f"{USERS[0]}: would be put in its place as it was" in dry.stdout, dry
    assert len(store.seen(USERS[0])["INBOX"][1]) == 1
    # Killed in the middle, it goes on when it is run again: while restic fetches, and when a first home is about to be in its place.
    # Which may take: a host that has lost its state does not know which of the repository's keys is its own, and tries them all.
    aside = f"{store.root}/.letterlock-aside/letterlock.test/ada"
    for moment in ("sleep 0.5", "sleep 1.2", f"timeout 120 sh -c 'until test -d {aside}; do sleep 0.01; done'"):
        host.run(f"letterlock backup restore & {moment}; kill -KILL $!; pkill -KILL -x restic; :")
    assert host.file(aside).is_directory
    done = store.letterlock("backup restore")
    assert done.rc == 0, done
    assert "0 differences" in done.stdout, done
    now = store.seen(USERS[0])
    assert now["INBOX"][0] == before[USERS[0]]["INBOX"][0]
    assert now["INBOX"][1][:-1] == before[USERS[0]]["INBOX"][1]
    assert "meanwhile" in busy.subjects(mail, USERS[0])
    assert {user: store.seen(user) for user in USERS[1:]} == {user: before[user] for user in USERS[1:]}
    assert not host.check_output(f"find {store.root} -maxdepth 1 -name '.letterlock*'")
    assert "0 failures" in store.backup()


def texts(found: tuple) -> list[tuple]:
    """Return what is the same of a mailbox's messages whatever UIDs they have."""
    return sorted(message[1:] for message in found[1])


def test_what_a_user_deleted_comes_back(host, mail, store):
    """It is added to what is there, once, with flags, dates and text, and what was saved long ago is no younger for it."""
    user = USERS[2]
    host.check_output(f"printf 'Subject: thrown away\\r\\n\\r\\nx\\r\\n' | faketime -f -25d doveadm save -u {user} -m Trash")
    before = store.seen(user)
    store.backup()
    with clients.imap(*mail.login(user)) as client:
        for mailbox in ("INBOX", "Trash"):
            client.select(mailbox)
            client.store("1:*", "+FLAGS", "(\\Deleted)")
            client.expunge()
        client.unselect()
        assert client.delete("Archive")[0] == "OK"
    dry = store.letterlock(f"backup restore {user} --dry-run")
    assert f"{user}: up to 9 messages would be added to what is there" in dry.stdout, dry
    for count in (9, 0):
        done = store.letterlock(f"backup restore {user}")
        assert done.rc == 0, done
        assert f"{user}: {count} messages added to what is there" in done.stdout, done
        now = store.seen(user)
        assert {name: texts(now[name]) for name in ("INBOX", "Archive", "Trash")} == {
            name: texts(before[name]) for name in ("INBOX", "Archive", "Trash")
        }
    assert [text for _, text in now["POP3"]] == [text for _, text in before["POP3"]]
    for days, going in ((4, 0), (6, 1)):
        run = store.letterlock("retention run --dry-run", clock=f"+{days}d")
        assert f"{going} messages would go" in run.stdout, run


def test_a_mailbox_or_a_search_beside_or_into_place(mail, store):
    """Below Restored/ and the day, or another mailbox, by name or by what a search finds, and never twice."""
    user = USERS[2]
    before = store.seen(user)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for arguments, mailbox, count in (
        ("--beside --mailbox INBOX", f"Restored/{today}/INBOX", len(before["INBOX"][1])),
        ("--into Found --search 'subject grace-5'", "Found/INBOX", 1),
    ):
        for added in (count, 0):
            done = store.letterlock(f"backup restore {user} {arguments}")
            assert done.rc == 0, done
            assert f"{user}: {added} messages added" in done.stdout, done
        with clients.imap(*mail.login(user)) as client:
            assert client.select(f'"{mailbox}"', readonly=True) == ("OK", [str(count).encode()])
    assert store.seen(user) == before


def test_a_disk_that_is_full(host, store):
    """A restore that finds no room changes nothing, says so, and goes through when there is some."""
    before = seen(store)
    store.backup()
    store.lose()
    scratch = f"{store.root}/.letterlock-restore"
    host.check_output(f"mkdir -m 700 {scratch} && mount -t tmpfs -o size=64k none {scratch}")
    full = store.letterlock("backup restore")
    host.check_output(f"umount {scratch}")
    assert full.rc == 1, full
    assert "a disk is full" in full.stderr, full
    assert store.seen(USERS[0])["INBOX"][1] == []
    assert store.letterlock("backup restore").rc == 0
    assert {user: store.seen(user) for user in USERS} == before


def test_a_manifest_without_its_data(host, store, vault):
    """A snapshot that promises what it does not hold is found out."""
    name = host.check_output("hostname")
    store.backup()
    assert store.restic(f"backup --host {name} --tag letterlock /var/lib/letterlock/backup/stage").rc == 0
    snapshot = store.letterlock("backup list").stdout.splitlines()
    last = [line.split()[0] for line in snapshot if "until" in line][-1]
    host.check_output(f"rm -rf {store.root}/example.test/grace")
    found = store.letterlock(f"backup restore --snapshot {last} {USERS[2]}")
    assert found.rc == 1, found
    assert f"DIFFERS {USERS[2]}: missing: the mailbox" in found.stdout, found
    assert vault.restic(f"forget {last}").rc == 0
    host.check_output(f"rm -rf {store.root}/example.test/grace")
    assert store.letterlock(f"backup restore {USERS[2]}").rc == 0


def test_one_account(host, store):
    """As of a moment; the others are not touched."""
    before = seen(store)
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    host.check_output(f"rm -rf {store.root}/example.test/grace")
    done = store.letterlock(f"backup restore --snapshot {now} grace@example.test")
    assert done.rc == 0, done
    assert "1 accounts back as they were" in done.stdout
    assert {user: store.seen(user) for user in USERS} == before


@pytest.mark.requirement("RET-3", "LOSS-4")
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


@pytest.mark.requirement("LOSS-3")
def test_a_backup_of_a_mailbox_that_never_rests(host, mail, store):
    """Deliveries, flags and expunges at full speed: what was acknowledged before and not expunged is there, and readable."""
    # A small load, which needs no machine of its own.
    before, a_second = busy.backup_under_load(mail, store, [BUSY], [mail.host["name"]], 15)
    assert sum(a_second.values()) > 15, f"too little load to prove anything: {a_second}"
    left = busy.subjects(mail, BUSY)
    host.check_output(f"rm -rf {store.root}/letterlock.test/bob")
    restored = store.letterlock(f"backup restore {BUSY}")
    assert restored.rc == 0, restored.stdout
    there = busy.subjects(mail, BUSY)
    assert not before & left.keys() - there.keys()
    assert {f"bob-{number}" for number in range(6) if number != 3} <= there.keys()


@pytest.mark.any_format
def test_a_file_that_got_the_number_of_another(host):
    """An inode that was freed while the backup ran, and used again: each file comes back as itself, which restic by itself gets wrong."""
    program = shlex.quote((lane.PROJECT / "molecule" / "shared" / "lab" / "reused.py").read_text())
    restored = json.loads(host.check_output(f"printf %s {program} | python3 -"))
    as_they_were = {"list": ["a list of UIDs", 1], "z/1": ["a message", 2], "z/2": ["a message", 2]}
    assert (restored["kit"], restored["chosen"]) == (as_they_were, as_they_were)
    # When this ends to be so, `links` can go.
    assert restored["restic"]["list"] != ["a list of UIDs", 1]


@pytest.mark.requirement("LOSS-3")
def test_a_manifest_of_what_changed_is_as_a_new_one(host, mail, store):
    """Of a mailbox that is large enough to be asked for changes only: flags, an expunge, a move, and mail that came."""
    file = "/var/lib/letterlock/backup/stage/manifests/letterlock.test/bob.json"
    with clients.imap(*mail.login(BUSY)) as client:
        _, (count,) = client.select("INBOX")
    # A busy machine has brought few by the load.
    for number in range(int(count), 260):
        mail.deliver(BUSY, b"Subject: one of many, %d\r\n\r\nx\r\n" % number)
    store.backup()
    with clients.imap(*mail.login(BUSY)) as client:
        _, (count,) = client.select("INBOX")
        assert int(count) > 250, "too little mail to prove anything"
        client.store("3,5", "+FLAGS", "(\\Flagged own-keyword)")
        client.copy("9:10", "Archive")
        client.store("9:12", "+FLAGS", "(\\Deleted)")
        client.expunge()
    mail.deliver(BUSY, b"Subject: came since\r\n\r\nx\r\n")
    store.backup()
    made = json.loads(host.check_output(f"cat {file}*"))
    host.check_output(f"rm {file}*")
    store.backup()
    assert made == json.loads(host.check_output(f"cat {file}*"))


@pytest.mark.any_format
@pytest.mark.requirement("OPS-3")
def test_a_role_that_is_switched_off_leaves_nothing_behind(host, mail, site, vault):
    """No unit and no secret; the repository stays."""
    site.converge(mail_backup_repository="")
    assert not host.check_output("find /etc/systemd/system -name 'letterlock-backup*'")
    assert not host.check_output("find /etc/letterlock/backup -type f")
    assert vault.host.file(f"{vault.path}/config").exists
    assert site.converge(mail_backup_repository="").changed(mail.host["name"]) == 0
    site.converge()
    assert site.converge().changed(mail.host["name"]) == 0
