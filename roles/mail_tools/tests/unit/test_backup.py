"""What a backup copies, compares and forgets."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from letterlock import backup, backup_commands, capture, changes, manifest, parts, restic, restore
from letterlock.changes import Changes
from letterlock.doveadm import any_of

DAY = 86400
NOW = 1_790_000_000


def snapshot(days: float, *tags: str, host: str = "mx1", identity: str = "") -> dict:
    """Return a snapshot that is *days* old."""
    made = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(NOW - days * DAY)) + ".123456789Z"
    return {"id": identity or f"{days}", "hostname": host, "tags": ["letterlock", *tags], "time": made}


SETTINGS = SimpleNamespace(host="mx1", keep_seconds=30 * DAY)


def test_what_is_due_goes_and_nothing_else():
    """By age, of this host only, with what was written down beside a snapshot."""
    old, gone, young = snapshot(40), snapshot(39.9, "gone"), snapshot(1)
    assert backup.due(SETTINGS, [old, gone, snapshot(50, host="mx2"), snapshot(29), young], NOW) == [old, gone]
    assert backup.due(SETTINGS, [], NOW) == []


@pytest.mark.parametrize("clock", [NOW - 2 * DAY, NOW + 60 * DAY])
def test_a_wrong_clock_forgets_nothing(clock):
    """Behind the newest snapshot, or so far ahead that all would go."""
    with pytest.raises(backup.Refused, match="nothing was forgotten"):
        backup.due(SETTINGS, [snapshot(40), snapshot(0)], clock)


def test_what_is_remembered_says_when_to_ask():
    """When one is due, or when they make no sense: the one of the future may have been removed since."""
    assert not backup_commands.is_due(SETTINGS, [snapshot(29), snapshot(1)], NOW)
    assert backup_commands.is_due(SETTINGS, [snapshot(40), snapshot(1)], NOW)
    assert backup_commands.is_due(SETTINGS, [snapshot(-30), snapshot(1)], NOW)


def test_which_snapshot_is_meant():
    """The latest, one by its name, or the last one up to a day or moment."""
    own = [snapshot(3, identity="aaa1"), snapshot(2, identity="bbb2"), snapshot(2, "gone", identity="ccc3")]
    all_of_them = [*own, snapshot(1, host="mx2")]
    day = all_of_them[0]["time"][:10]
    assert restore.choose(all_of_them, "mx1", "latest")["id"] == "bbb2"
    assert restore.choose(all_of_them, "mx1", "aaa")["id"] == "aaa1"
    assert restore.choose(all_of_them, "mx1", day)["id"] == "aaa1"
    for wanted in ("1999-01-01", "zzz", "ccc"):
        with pytest.raises(backup.Refused, match="names 0 snapshots"):
            restore.choose(all_of_them, "mx1", wanted)


@pytest.mark.parametrize(("said", "means"), [
    ("Fatal: wrong password or no key found\n", "mail_backup_password does not open"),
    ("ignoring error for /a: decrypting blob <data/e3> from d2 failed: ciphertext verification failed\nFatal: There were 2 errors\n",
     "the repository is damaged (restic: ignoring error for /a: decrypting"),
    ("Fatal: unable to open config file: x\nIs there a repository at the following location?\n/srv/x\n", "there is no repository at"),
    ("dial tcp 127.0.0.1:8000: connect: connection refused\n", "the repository can't be reached"),
    ("something else\n", "restic: exit code 1: something else"),
])
def test_faults_are_named(said, means):
    """In words that say what to change, with restic's own behind them."""
    assert restic.meaning(said, 1).startswith(means)


def mailbox(tmp_path) -> tuple:
    """Make a mailbox of sdbox; return (root, home, stage, its directory)."""
    root, stage = tmp_path / "mail", tmp_path / "stage"
    box = root / "x.test" / "ada" / "sdbox" / "mailboxes" / "INBOX" / "dbox-Mails"
    box.mkdir(parents=True)
    for name in ("dovecot.index", "dovecot.index.log", "dovecot.index.cache", "u.1", "u.2"):
        (box / name).write_text(name)
    return root, root / "x.test" / "ada", stage, box


def test_indexes_are_copied_and_messages_are_listed(tmp_path):
    """A copy that is up to date stays as it is; what is no more goes."""
    root, home, stage, box = mailbox(tmp_path)
    (found,) = capture.capture(root, home, stage)
    assert found.directory == "x.test/ada/sdbox/mailboxes/INBOX/dbox-Mails"
    assert set(found.names) == {"u.1", "u.2"}
    target = stage / found.directory
    assert sorted(capture.names_in(target)) == ["dovecot.index", "dovecot.index.cache", "dovecot.index.log"]
    before = (target / "dovecot.index").stat().st_ctime_ns
    (box / "dovecot.index.log").write_text("a longer log")
    (box / "dovecot.index.cache").unlink()
    list(capture.capture(root, home, stage))
    assert sorted(capture.names_in(target)) == ["dovecot.index", "dovecot.index.log"]
    assert (target / "dovecot.index.log").read_text() == "a longer log"
    assert (target / "dovecot.index").stat().st_ctime_ns == before
    for name in capture.names_in(box):
        (box / name).unlink()
    assert list(capture.capture(root, home, stage)) == []
    assert not target.exists()


def test_a_mailbox_that_is_deleted_meanwhile(tmp_path):
    """Is no fault: it is passed over."""
    _, home, _, box = mailbox(tmp_path)
    found = capture.directories(home)
    assert next(found) == home
    assert next(found) == home / "sdbox"
    assert next(found) == home / "sdbox" / "mailboxes"
    shutil.rmtree(box.parent)
    assert box not in list(found)


def test_a_large_cache_is_copied_in_parts(tmp_path, monkeypatch):
    """Parts that stay are not written again; together they are the file, whether it grows or shrinks."""
    monkeypatch.setattr(parts, "BYTES", 10)
    root, home, stage, box = mailbox(tmp_path)
    cache, copied = box / "dovecot.index.cache", stage / box.relative_to(root)
    before: dict[str, int] = {}
    grows = [("0123456789abcdefghij", 0), ("0123456789abcdefghijKLM", 2)]
    for text, same in [*grows, ("XXXXXXXXXXabcdefghij", 1), ("short", 0), ("0123456789a", 0)]:
        cache.write_text(text)
        list(capture.capture(root, home, stage))
        now = {name: (copied / name).stat().st_mtime_ns for name in capture.names_in(copied) if "cache" in name}
        assert sum(before.get(name) == time for name, time in now.items()) == same, text
        assert len(now) == -(-len(text) // 10)
        before = now
        restored = tmp_path / "restored" / str(len(text))
        shutil.copytree(copied, restored)
        parts.join(restored)
        assert sorted(capture.names_in(restored)) == ["dovecot.index", "dovecot.index.cache", "dovecot.index.log"]
        assert (restored / "dovecot.index.cache").read_text() == text
        assert (restored / "dovecot.index.cache").stat().st_mtime_ns == cache.stat().st_mtime_ns
        shutil.rmtree(restored)


HOLDS = """
import fcntl, sys, time
with open(sys.argv[1], "r+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    file.write("written under the lock")
"""


@pytest.mark.parametrize("name", ["dovecot.index.log", "dovecot.index.cache"])
def test_a_lock_of_dovecots_is_waited_for(tmp_path, name):
    """And what its holder wrote is in the copy."""
    root, home, stage, box = mailbox(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(box / name), "0.5"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        (found,) = capture.capture(root, home, stage)
    assert (stage / found.directory / name).read_text().startswith("written under the lock")


def test_a_lock_that_is_never_given_up_is_told(tmp_path, monkeypatch):
    """Neither lock is then left behind."""
    root, home, stage, box = mailbox(tmp_path)
    monkeypatch.setattr(capture, "LOCK_SECONDS", 0.2)
    command = [sys.executable, "-c", HOLDS, str(box / "dovecot.index.cache"), "1.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(capture.Busy, match="locked for more than"):
            list(capture.capture(root, home, stage))
        tries = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        subprocess.run([sys.executable, "-c", tries, str(box / "dovecot.index.log")], check=True)


BOX = {"mailbox": "INBOX", "guid": "g", "uidvalidity": "7", "uidnext": "4", "highestmodseq": "10", "messages": "2"}


def row(uid: int, modseq: int, flags: str = "\\Seen \\Recent") -> dict:
    """Return a row of doveadm's."""
    return {"mailbox-guid": "g", "uid": str(uid), "guid": f"m{uid}", "modseq": str(modseq), "flags": flags, "size.virtual": "9",
            "date.saved.unixtime": "5", "date.received.unixtime": "6"}


def test_a_manifest_knows_what_was_unsettled():
    """What changed after the indexes were copied may come back with other flags, or not at all; nothing else may."""
    before = manifest.of_account("a", [BOX], [row(1, 3), row(2, 11), {**row(9, 3), "mailbox-guid": "made-later"}])
    assert before["mailboxes"][0]["messages"] == [
        [1, "m1", 9, ["\\Seen"], 5, 6, "", True], [2, "m2", 9, ["\\Seen"], 5, 6, "", False],
    ]
    now = manifest.of_account("a", [BOX], [row(1, 3), row(2, 3, "\\Flagged")])
    assert list(manifest.differences(before, now)) == []
    assert list(manifest.differences(before, manifest.of_account("a", [BOX], [row(1, 3)]))) == []
    assert list(manifest.differences(before, manifest.of_account("a", [BOX], [row(2, 3)]))) == ["missing: INBOX, UID 1"]
    assert list(manifest.differences(before, {"mailboxes": []})) == ["missing: the mailbox INBOX with 2 messages"]


@pytest.mark.parametrize(("place", "value", "saying"), [
    ("uidvalidity", 8, "uidvalidity was 7 and is 8"), ("guid", "h", "guid was g and is h"),
    ("uidnext", 3, "uidnext was 4 and is 3"), (1, "m9", "guid was m1 and is m9"), (2, 8, "size was 9 and is 8"),
    (3, [], "flags was"), (4, 1, "saved was 5"),
    (5, 1, "received was 6"),
])
def test_every_difference_is_told(place, value, saying):
    """Of a mailbox and of a message."""
    before = manifest.of_account("a", [BOX], [row(1, 3)])
    now = copy.deepcopy(before)
    inside = now["mailboxes"][0] if isinstance(place, str) else now["mailboxes"][0]["messages"][0]
    inside[place] = value
    (told,) = manifest.differences(before, now)
    assert saying in told


def test_a_manifest_goes_on_from_the_last_one():
    """What has no higher MODSEQ stands, with its hash; what was unsettled, changed or came anew is asked for."""
    last = manifest.of_account("a", [BOX], [row(1, 3), row(2, 11)], {"g": {1: "h1", 2: "h2"}})
    same = Changes(manifest.of_account("a", [BOX], [row(1, 3), row(2, 4)]), [BOX])
    assert (same.query, same.is_whole([])) == ([], True)
    box = {**BOX, "uidnext": "5", "highestmodseq": "12", "messages": "3"}
    news = Changes(last, [box])
    assert news.query == any_of([["mailbox", "INBOX", "mailbox-guid", "g", "modseq", "11"]])
    rows = [row(2, 11, "\\Flagged"), row(3, 12)]
    assert news.is_whole(rows)
    made = manifest.of_account("a", [box], rows, {"g": {1: "h1", 2: "h2", 3: "h3"}}, news.standing)
    assert made == manifest.of_account("a", [box], [row(1, 3), *rows], {"g": {1: "h1", 2: "h2", 3: "h3"}})
    # A message that was expunged since, and one that came after the status.
    assert not Changes(last, [{**box, "messages": "2"}]).is_whole(rows)
    assert Changes(last, [box]).is_whole([*rows, row(5, 13)])


@pytest.mark.parametrize("news", [{"uidvalidity": "8"}, {"highestmodseq": "9"}, {"uidnext": "3"}, {"guid": "another"}])
def test_a_mailbox_that_does_not_go_on_is_asked_for_all(news):
    """One that was made anew, or whose indexes were; so is one whose last manifest is of an older kind."""
    last = manifest.of_account("a", [BOX], [row(1, 3), row(2, 4)])
    box = {**BOX, **news}
    assert Changes(last, [box]).query == any_of([["mailbox", "INBOX", "mailbox-guid", box["guid"]]])
    assert not Changes(last, [box]).is_whole([])
    del last["mailboxes"][0]["highestmodseq"]
    assert Changes(last, [BOX]).standing == {}


def test_each_manifest_is_made_anew_now_and_then():
    """On a day of its account's own; small ones always are."""
    days = [changes.is_worth("a@b", [{"messages": "1000"}], day * DAY) for day in range(changes.ANEW_DAYS)]
    assert sorted(days) == [False] + [True] * (changes.ANEW_DAYS - 1)
    assert not any(changes.is_worth("a@b", [{"messages": "100"}], day * DAY) for day in range(7))


def test_flags_of_a_maildir_are_set_back(monkeypatch):
    """Those that came after the manifest go and those that went come; what was not settled, or is gone, is left."""
    def account(*messages: tuple[int, list[str], bool]) -> dict:
        return {"mailboxes": [{"name": "INBOX", "guid": "g", "messages": [
            [uid, f"m{uid}", 1, flags, 1, 1, "", settled] for uid, flags, settled in messages
        ]}]}

    before = account((1, ["\\Seen"], True), (2, [], True), (3, [], False), (4, [], True), (5, ["x"], True))
    now = account((1, [], True), (2, ["\\Seen"], True), (3, ["\\Seen"], True), (5, ["x"], True))
    asked = []
    monkeypatch.setattr(restore, "doveadm_run", lambda *words: asked.append((words[:2], words[4], words[-1])))
    work = SimpleNamespace(renames=True, say=print)
    assert restore.Restore.set_flags_back(work, "ada@example.org", manifest.settled_flags(before, now))
    assert asked == [(("flags", "add"), "\\Seen", "1"), (("flags", "remove"), "\\Seen", "2")]
    assert not restore.Restore.set_flags_back(work, "ada@example.org", manifest.settled_flags(before, before))
