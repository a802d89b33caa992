"""What a restore and a drill decide by themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from letterlock import backup, drill, links, marks, plan, policies, restic, restore, stored

DBOX = b"2 M1e C6b05ebfb\n\x01\x02N          %016x\n%s\n\x01\x03\nG00\n\n"


def test_mail_knows_each_message_by_mailbox_and_guid():
    """A copy in another mailbox counts once more; what is in a mailbox without a status does not count."""
    boxes = [{"mailbox": "INBOX", "guid": "a"}, {"mailbox": "Archive", "guid": "b"}]
    rows = [{"mailbox-guid": "a", "guid": "1"}, {"mailbox-guid": "b", "guid": "1"}, {"mailbox-guid": "c", "guid": "2"}]
    mail = restore.Mail(boxes, rows)
    assert mail.count == 2
    assert mail.everywhere() == {"1": 2}


def test_what_is_wished_for():
    """Less than whole accounts in their place is selective, and has its target."""
    assert not restore.Wish(accounts=("ada",)).selective
    assert restore.Wish(mailboxes=("INBOX",)).selective
    assert restore.Wish(into="Restored/2026-11-20").target("INBOX") == "Restored/2026-11-20/INBOX"
    assert restore.Wish().target("INBOX") == "INBOX"


@pytest.mark.parametrize(("file", "text"), [
    (DBOX % (4, b"a\nb\n"), b"a\r\nb\r\n"),
    (DBOX % (6, b"a\r\nb\r\n"), b"a\r\nb\r\n"),
    (DBOX % (3, b"a\nb"), b"a\r\nb"),
])
def test_a_hash_is_that_of_what_a_client_reads(tmp_path, file, text):
    """Whatever lines the file has, and without the metadata around it."""
    folder = tmp_path / "sdbox" / "mailboxes" / "Entw&APw-rfe" / "dbox-Mails"
    folder.mkdir(parents=True)
    (folder / "u.5").write_bytes(file)
    (folder / "dovecot.index").write_bytes(b"")
    assert stored.hashes(tmp_path, "Entwürfe", {5, 6}) == {5: hashlib.sha256(text).hexdigest()}
    assert stored.hashes(tmp_path, "Entwürfe", {6}) == {}
    assert stored.files_of(tmp_path, "Entwürfe", {5, 6}).keys() == {5}


@pytest.mark.parametrize("data", [b"", b"2 M1e C1\nnothing", b"2 M1e C1\n\x01\x02N          0000000000000003\n\x1f\x8bx"])
def test_what_cannot_be_read_has_no_hash(data):
    """A torn file, or one that is compressed or sealed in a way that is not known."""
    assert stored.hash_of(stored.octets_of_dbox(data)) == ""


def test_maildir_has_its_uids_in_a_list(tmp_path):
    """Flags in a file's name don't matter; what the list does not name is no message yet."""
    folder = tmp_path / "Maildir" / ".Archive"
    for name in ("cur", "new"):
        (folder / name).mkdir(parents=True)
    (folder / "dovecot-uidlist").write_text("3 V7 N9 Gx\n4 W12 :1.M1.host,S=3\n8 :2.M2.host\n")
    (folder / "cur" / "1.M1.host,S=3:2,FS").write_text("a\n")
    (folder / "new" / "3.M3.host").write_text("b\n")
    assert stored.hashes(tmp_path, "Archive", {4, 5}) == {4: hashlib.sha256(b"a\r\n").hexdigest()}
    assert stored.files_of(tmp_path, "Archive", {4, 8}).keys() == {4}


@pytest.mark.parametrize("worth", [0, 1000])
def test_hashes_of_many_mailboxes_come_in_their_order(tmp_path, monkeypatch, worth):
    """From several processes or one; what is not wanted is not read, and an account without mail has none."""
    monkeypatch.setattr(stored, "WORTH_PROCESSES", worth)
    homes = []
    for number in range(5):
        homes.append(tmp_path / str(number))
        folder = homes[-1] / "sdbox" / "mailboxes" / "INBOX" / "dbox-Mails"
        folder.mkdir(parents=True)
        (folder / f"u.{number}").write_bytes(DBOX % (1, b"%d" % number))
    wanted = [(home, "INBOX", {0, 1, 2, 4}) for home in homes] + [(tmp_path / "none", "INBOX", {1})]
    expected = [{} if number == 3 else {number: hashlib.sha256(b"%d" % number).hexdigest()} for number in range(5)]
    assert list(stored.all_hashes(wanted)) == [*expected, {}]


def test_what_restic_says_it_did_is_taken_for_what_is_there(tmp_path):
    """Directory by directory, however the files of several are mixed; what it does not name is missing."""
    work = backup.Backup.__new__(backup.Backup)
    work.settings = SimpleNamespace(mail_root=Path("/srv/mail"))
    work.outcome, work.arguments = backup.Outcome(messages=4), list
    items = [
        "d/a/box/u.1", "d/b/Maildir/cur/9.M1:2,S", "d/a/box/u.2", "d/a/box/", "d/b/Maildir/cur/", "d/b/Maildir/new/8.M1", "d/b/Maildir/",
    ]
    said = [{"message_type": "verbose_status", "action": "new", "item": f"/srv/mail/{item}", "duration": 0} for item in items]
    said.append({"message_type": "summary", "snapshot_id": "5"})
    # As restic writes it, and as any JSON may be written.
    text = [json.dumps(message, separators=(",", ":") if number % 2 else None) for number, message in enumerate(said)]
    work.restic = SimpleNamespace(lines=lambda *_, **__: text)
    summary: dict = {}
    assert list(work.backed_up(summary)) == [("d/a/box", {"u.1", "u.2"}), ("d/b/Maildir", {"9.M1", "8.M1"})]
    assert summary["snapshot_id"] == "5"
    with (tmp_path / "spool").open("w+") as spool:
        for line in (["d/a/box", ["u.1", "u.3"]], ["d/b/Maildir", ["9.M1:2,FS"]], ["d/c/box", ["u.7"]]):
            spool.write(json.dumps(line) + "\n")
        assert list(work.not_among(work.backed_up({}), spool)) == [("d/a/box", "u.3"), ("d/c/box", "u.7")]


def test_what_restic_could_not_read_is_looked_for_again(tmp_path, monkeypatch):
    """Where files keep their names: what is still there was passed over, what is gone was expunged; progress is told."""
    box = tmp_path / "mail" / "d" / "a" / "box"
    box.mkdir(parents=True)
    for name in ("u.1", "u.2"):
        (box / name).touch()
    monkeypatch.setattr(backup, "HOME", tmp_path)
    told: list[str] = []
    settings = SimpleNamespace(mail_root=tmp_path / "mail", host="mx1", keep_seconds=1000, raw={"prunes": True})
    work = backup.Backup.__new__(backup.Backup)
    work.settings, work.say, work.renames, work.snapshots, work.arguments = settings, told.append, False, [], list
    work.outcome, work.now = backup.Outcome(messages=4), 0
    said = [
        {"message_type": "status", "files_done": 2},
        {"message_type": "summary", "snapshot_id": "5", "data_added": 7},
        *({"message_type": "error", "during": "archival", "item": str(item)} for item in (box / "u.2", box / "u.3", "/etc/x")),
    ]
    work.restic = SimpleNamespace(lines=lambda *_, **__: map(json.dumps, said))
    with (tmp_path / "spool").open("w+") as spool:
        spool.write(json.dumps(["d/a/box", ["u.1", "u.2", "u.3", "u.4"]]) + "\n")
        missing = work.snapshot(spool)
    assert missing == [("d/a/box", "u.2"), ("d/a/box", "u.3"), ("d/a/box", "u.4")]
    assert work.on_disk(missing) == [("d/a/box", "u.2")]
    assert told == ["2 files of 4 messages"]
    assert [snapshot["id"] for snapshot in backup.read_state()["snapshots"]] == ["5"]


def test_a_restored_message_is_no_younger_for_it(tmp_path):
    """Retention finds it by its UID, and counts from when it was saved first."""
    kept = marks.Marks(tmp_path / "marks.sqlite")
    kept.keep_saved([("ada:box", 12, 100), ("ada:box", 13, 200)])
    memory = kept.of(["ada:box", "bob:box"])
    assert memory.saved == {"ada:box": {12: 100, 13: 200}}
    raw = [{"name": "all", "mailboxes": ["*"], "keep_for": "30d"}]
    (policy,), _ = policies.parse_policies(raw, {}, [])
    mailbox = plan.Mailbox("ada", "INBOX", "box", 2, None, 14, 1, (policy,))
    assert "12:13" in mailbox.condition(10_000_000, [], memory.saved["ada:box"])
    message = policies.Message(uid=12, saved=9_999_999, received=0, size=0, flags=frozenset())
    assert plan.saved_at_the_latest(message, [], memory.saved["ada:box"]).saved == 100
    kept.adopt("ada:box", "ada:new")
    kept.save(1000, 10)
    assert kept.of(["ada:new"]).saved == {"ada:new": {12: 100, 13: 200}}


def test_an_answer_of_imap_is_read():
    """UID, size, flags without the session's own, and the date as a moment."""
    line = b'3 (UID 5 FLAGS (\\Seen \\Recent own) INTERNALDATE "05-Mar-2019 10:11:12 +0100" RFC822.SIZE 42)'
    assert drill.imap_message((line, b"")) == (5, (42, ["\\Seen", "own"], 1551777072))


@pytest.mark.parametrize(("seen", "settled", "found"), [
    ((9, ["\\Seen"], 6), True, []),
    ((9, [], 6), True, ["flags was ['\\\\Seen'] and is []"]),
    ((9, [], 6), False, []),
    ((8, [], 6), False, ["size was 9 and is 8"]),
    (None, True, ["missing"]),
    (None, False, []),
])
def test_a_message_that_was_unsettled_may_have_other_flags_or_be_gone(seen, settled, found):
    """Nothing else may differ of it, and of the others nothing at all."""
    assert list(drill.message_differences([5, "guid", 9, ["\\Seen"], 5, 6, "hash", settled], seen)) == found


def test_a_drill_that_compared_nothing_proves_nothing():
    """Nor does one that found a difference."""
    assert not drill.Report("host").proven
    assert drill.Report("host", imap_messages=1).proven
    assert not drill.Report("host", imap_messages=1, differences=["one"]).proven


@pytest.mark.parametrize(("said", "meant"), [
    ("dial tcp: connect: connection refused\nIs there a repository at the following location?", "the repository can't be reached"),
    ("x509: certificate signed by unknown authority\nno answer: i/o timeout", "mail_backup_ca_file does not know"),
    ("unable to open config file: no such file\nIs there a repository at the following location?", "there is no repository"),
])
def test_what_restic_says_means_the_nearest_fault(said, meant):
    """A repository out of reach is not one that is not there, or a new one would be made."""
    assert restic.meaning(said, 1).startswith(meant)


def test_what_restic_made_one_is_fetched_apart(tmp_path):
    """Files that differ in the snapshot come in one round each; links that are links stay; what was lost comes last, each by itself."""
    for name in ("a", "lost", "z"):
        (tmp_path / "mail" / name).mkdir(parents=True)
    message, wrong, right = (tmp_path / "mail" / name for name in ("z/1", "a/list", "z/2"))
    message.write_text("message")
    wrong.hardlink_to(message)
    right.hardlink_to(message)
    rows = [
        {"path": f"/mail/{name}", "type": "file", "size": size, "mtime": "m", "ctime": "c"}
        for name, size in {"a/list": 3, "z/1": 7, "z/2": 7, "lost/1": 4}.items()
    ]
    asked = []

    def bring(_snapshot, target, paths):
        asked.append(sorted(paths))
        for path in paths:
            Path(f"{target}{path}").write_text(path)

    engine = SimpleNamespace(restore=bring, listed=lambda _snapshot, _paths: iter(rows), version=lambda: (0, 14))
    links.separate(engine, "id", tmp_path, [f"/mail/{name}" for name in ("a", "lost", "z")])
    assert sorted(asked) == [["/mail/a/list"], ["/mail/lost/1"], ["/mail/z/1", "/mail/z/2"]]
    assert wrong.read_text() == "/mail/a/list"
