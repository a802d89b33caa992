"""A drill reads every message of a backup back on a scratch host, and says what differs."""

from __future__ import annotations

import json

import busy
import clients
import lane
import pytest
import testinfra

pytestmark = pytest.mark.requirement("LOSS-5")

USERS = ["ada@letterlock.test", "bob@letterlock.test", "grace@example.test", "held@letterlock.test"]
BUSY = [
    "bob@letterlock.test", "grace@example.test", "empty@example.test", "held@letterlock.test",
    *(f"{number}@busy.test" for number in range(1, 9)),
]
SCRATCH = {"deb12": "scratch12", "deb13": "scratch13"}
# The host on which one account's mail is encrypted.
SEALED = "deb12"


def drill(site, scratch: str, reports, **variables: object) -> tuple:
    """Run the playbook; return (its run, its report)."""
    run = site.run(f"--limit={scratch}", playbook="playbooks/restore_drill.yml", restore_drill_reports=str(reports), **variables)
    files = sorted(reports.glob("*.json"))
    assert len(files) == 1, run.output
    return run, json.loads(files[0].read_text())


def scratch_host(name: str):
    """Return testinfra's host of a scratch host."""
    return testinfra.get_host(f"ssh://{name}", ssh_config=lane.SSH_CONFIG)


@pytest.mark.requirement("LOSS-5", "REST-1")
def test_every_message_is_read_back(host, mail, store, site, tmp_path):
    """By IMAP and POP3, with UIDs, flags, dates and the hash of the text; nothing stays on the scratch host, nor does a key to it."""
    for user in USERS:
        store.fill(user, user.split("@")[0])
    said = store.backup()
    assert "0 without a hash" in said, said
    run, report = drill(site, SCRATCH[mail.host["name"]], tmp_path)
    assert run.code == 0, run.output
    assert report["proven"], report
    assert report["host"] == mail.host["name"]
    # Of the account under a hold, what its user expunged is hidden from clients, and its mail is there for POP3.
    assert (report["accounts"], report["messages"]) == (13, 37)
    # Of the account whose mail is encrypted: its files, and with its own password what is in them, by both protocols.
    by_imap, by_pop3 = (9, 5) if mail.host["name"] == SEALED else (0, 0)
    assert (report["encrypted"], report["opened"]) == (by_imap, by_imap + by_pop3)
    assert (report["imap_messages"], report["imap_hashes"], report["without_hash"]) == (36, 36 - by_imap, 0)
    assert (report["pop3_messages"], report["pop3_hashes"]) == (20, 20 - by_pop3)
    assert report["rto_seconds"] > report["restore_seconds"] > 0
    assert 0 < report["age_seconds"] < 600
    page = next(tmp_path.glob("*.html")).read_text()
    assert "Proven: every message" in page
    assert "http" not in page
    metrics = host.check_output("cat /var/lib/letterlock/metrics/backup.prom")
    assert "letterlock_backup_last_drill_timestamp_seconds" in metrics
    assert "letterlock_backup_drill_messages 37" in metrics
    scratch = scratch_host(SCRATCH[mail.host["name"]])
    assert scratch.check_output("find /srv/mail -type f -not -path '*/probe*' | wc -l") == "0"
    assert not scratch.file("/run/letterlock/drill").exists
    assert not scratch.file("/etc/systemd/system/letterlock-backup.timer").exists
    refused = scratch.run("letterlock backup run")
    assert refused.rc == 2, refused
    assert "scratch host" in refused.stderr


@pytest.mark.requirement("SEC-1")
def test_no_master_credential_is_left(mail):
    """The mail host never knew one: with a user's own password, too, nobody is let in as its master."""
    user = f"{USERS[0]}*letterlock-drill"
    host, ca_file, _, password = mail.login(USERS[0])
    with pytest.raises(clients.imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"), clients.imap(host, ca_file, user, password):
        pass


def test_a_host_with_mail_is_no_place_for_a_drill(host, mail, store):
    """A drill removes all mail of its host first, so that it must be declared a scratch host."""
    # Reading by POP3 marks as seen.
    store.seen(USERS[0])
    before = store.seen(USERS[0])
    refused = store.letterlock(f"backup drill --host {mail.host['name']}")
    assert refused.rc == 2, refused
    assert "not declared a scratch host" in refused.stderr
    assert store.seen(USERS[0]) == before


def test_what_differs_is_told(host, mail, store, site, tmp_path):
    """A message whose stored octets changed after they were hashed: the drill fails, and names it in the report."""
    files = host.check_output(f"find {store.root}/example.test/grace -name 'u.*' -o -path '*/cur/*' -type f | sort").splitlines()
    doomed = max(files, key=lambda file: int(host.check_output(f"stat --format %s '{file}'")))
    host.check_output(f"cp -a '{doomed}' /root/saved && printf XXXX | dd of='{doomed}' bs=1 seek=90 conv=notrunc status=none")
    store.backup()
    run, report = drill(site, SCRATCH[mail.host["name"]], tmp_path)
    host.check_output(f"cp -a /root/saved '{doomed}'")
    assert run.code != 0
    assert "not proven" in run.output
    assert not report["proven"]
    assert any(difference.startswith("grace@example.test") for difference in report["differences"]), report
    assert "Not proven" in next(tmp_path.glob("*.html")).read_text()
    store.backup()


@pytest.mark.requirement("LOSS-3", "LOSS-5")
def test_a_backup_of_mail_that_never_rests(mail, store, site, tmp_path, record_property):
    """Messages come in at full speed, some are flagged, some expunged: what was acknowledged before and not expunged is there."""
    before, a_second = busy.backup_under_load(mail, store, BUSY, mail.side_by_side, 200)
    # For .lab/results/drill.xml.
    record_property("messages a second", {how: round(rate) for how, rate in a_second.items()})
    assert sum(a_second.values()) >= 200, f"too little load to prove anything: {a_second}"
    manifests = {}
    for user in BUSY:
        local, domain = user.split("@")
        made = json.loads(store.host.check_output(f"cat /var/lib/letterlock/backup/stage/manifests/{domain}/{local}.json*"))
        manifests[user] = {message[0] for box in made["mailboxes"] if box["name"] == "INBOX" for message in box["messages"]}
    for user in BUSY:
        left = busy.subjects(mail, user)
        acknowledged = {left[subject] for subject in before & left.keys()}
        assert acknowledged
        assert acknowledged <= manifests[user]
    run, report = drill(site, SCRATCH[mail.host["name"]], tmp_path)
    assert run.code == 0, run.output
    assert report["proven"], report
    assert report["imap_hashes"] > 200


@pytest.mark.requirement("LOSS-3", "LOSS-5")
def test_a_repository_that_is_damaged(mail, store, site, tmp_path):
    """A flipped byte in what the newest snapshot brought: the drill fails, and says that it is the repository."""
    server, name = scratch_host("store"), mail.host["name"]
    server.check_output(f"touch /root/before-{name}")
    mail.deliver(BUSY[1], b"Subject: new\r\n\r\n" + b"0123456789abcdef\r\n" * 1000)
    store.backup()
    pack = server.check_output(
        f"find /srv/backups/{name}/mail/data -type f -newer /root/before-{name} -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2"
    )
    server.check_output(
        f"cp -a {pack} /root/pack-{name} && chmod u+w {pack} && "
        f"printf XXXX | dd of={pack} bs=1 seek=$(($(stat --format %s {pack}) / 2)) conv=notrunc"
    )
    run = site.run(f"--limit={SCRATCH[name]}", playbook="playbooks/restore_drill.yml", restore_drill_reports=str(tmp_path))
    server.check_output(f"cp -a /root/pack-{name} {pack}")
    assert run.code != 0
    assert "the repository is damaged" in run.output, run.output


@pytest.mark.requirement("LOSS-4", "LOSS-5")
def test_mail_of_dovecot_2_3_on_2_4(mail, store, site, tmp_path):
    """The next release takes the mail of this one as it is; a sample of the texts is read."""
    if mail.host["name"] != "deb12":
        pytest.skip("there is no newer release for this host's mail")
    store.backup()
    run, report = drill(site, "heir", tmp_path, restore_drill_percent=50)
    assert run.code == 0, run.output
    assert report["proven"], report
    assert report["imap_messages"] == report["pop3_messages"] + 16
    assert 0 < report["imap_hashes"] < report["imap_messages"]
