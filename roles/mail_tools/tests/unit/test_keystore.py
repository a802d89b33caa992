"""What Dovecot reads is made of the keyrings, and changes with them or not at all."""

from __future__ import annotations

import os
import stat

import pytest
from letterlock import keystore, sealing, session_key, stored
from letterlock.keyring import Credential, Keyring
from letterlock.retention import Refused
from letterlock.settings import Unusable

ADA, BOB = "ada@example.org", "bob@example.org"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return an empty root of keys, and let files belong to whoever runs the tests."""
    monkeypatch.setattr(keystore, "ROOT", tmp_path / "keys")
    monkeypatch.setattr(keystore.grp, "getgrnam", lambda _name: type("Group", (), {"gr_gid": os.getgid()}))
    monkeypatch.setattr(keystore.os, "chown", lambda *_: None)
    wanted = keystore.KeySettings([ADA, BOB], [ADA, BOB], [], 4, 8, {}, "2.4", "sdbox", tmp_path, "127.0.0.1", ["imap"])
    monkeypatch.setattr(keystore, "read_settings", lambda: wanted)
    return tmp_path / "keys"


def lines(root, name: str) -> list[str]:
    """Return the lines of a passwd-file, and insist that not everybody reads it."""
    file = root / "dovecot" / name
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]


def test_each_password_has_a_slot_of_its_own(root):
    """The account's own in the first, for all protocols; both dialects are there."""
    for account in (ADA, BOB):
        keystore.keep(Keyring.make(account, "geheim", "{ARGON2ID}x", []))
    with keystore.changed(ADA) as ring:
        _, keys = ring.opened("geheim")
        ring.put(Credential("phone", "{ARGON2ID}p", 1, {}, [], ["pop3"]), keys, "of the phone")
    assert keystore.accounts() == [ADA, BOB]
    for series in ("2.3", "2.4"):
        assert [line.split(":")[0] for line in lines(root, f"{series}/userdb")] == [ADA, BOB]
        assert [line.split(":")[0] for line in lines(root, f"{series}/imap/0")] == [ADA, BOB]
        assert [line.split(":")[1] for line in lines(root, f"{series}/pop3/1")] == ["{ARGON2ID}p"]
        assert not (root / "dovecot" / series / "imap" / "1").exists()
        assert "PRIVATE" not in "".join(lines(root, f"{series}/userdb"))
    with keystore.changed(ADA) as ring:
        ring.revoke("phone")
    assert lines(root, "2.4/pop3/1") == []


def test_a_damaged_keyring_concerns_its_own_account(root, capsys):
    """The others are there as before, and it is told by name."""
    for account in (ADA, BOB):
        keystore.keep(Keyring.make(account, "geheim", "{ARGON2ID}x", []))
    keystore.file_of(ADA).write_text("{")
    keystore.show()
    assert [line.split(":")[0] for line in lines(root, "2.3/userdb")] == [BOB]
    assert "ada.json: is damaged" in capsys.readouterr().err
    keystore.file_of(ADA).write_text(keystore.file_of(BOB).read_text())
    with pytest.raises(Refused, match="has the keys of bob"):
        keystore.read(ADA)


def test_an_account_in_clear_or_at_rest(root):
    """The one is written in clear, of the other nothing is public, nobody logs in, and both keep their keys."""
    for account in (ADA, BOB):
        keystore.keep(Keyring.make(account, "geheim", "{ARGON2ID}x", []))
    with keystore.changed(ADA) as ring:
        ring.state = "clear"
    with keystore.changed(BOB) as ring:
        ring.state = "moving"
    assert lines(root, "2.3/userdb") == [f"{ADA}:::::::userdb_mail_crypt_save_version=0", f"{BOB}:::::::"]
    assert [line.split(" ")[-1] == "nologin" for line in lines(root, "2.4/pop3/0")] == [False, True]
    assert [line.split(":")[2] for line in (root / "begun.passdb").read_text().splitlines()] == ["clear", "moving"]
    keystore.retire({ADA})
    assert keystore.accounts() == [ADA, BOB]
    keystore.retire(set())
    assert keystore.accounts() == [BOB]


def test_an_account_that_the_host_does_not_know_is_not_listed(root):
    """Its keys stay for the day when it is back."""
    keystore.keep(Keyring.make("gone@example.org", "geheim", "{ARGON2ID}x", []))
    assert lines(root, "2.4/userdb") == lines(root, "2.4/imap/0") == []
    assert keystore.accounts() == ["gone@example.org"]


def test_what_is_removed_is_served_no_more(root):
    """And there is nothing to be removed a second time."""
    keystore.keep(Keyring.make(BOB, "geheim", "{ARGON2ID}x", []))
    assert keystore.remove(BOB)
    assert not keystore.remove(BOB)
    assert lines(root, "2.4/userdb") == []
    with pytest.raises(Refused, match="has no keys"):
        keystore.read(BOB)


def test_a_host_without_the_role_notices_nothing(root, tmp_path, monkeypatch):
    """Of a backup, a restore or an erasure; keys that a backup has come back all the same."""
    def unusable() -> None:
        raise Unusable("mail_crypt is not deployed on this host")

    monkeypatch.setattr(keystore, "read_settings", unusable)
    keystore.copy_to(tmp_path / "stage")
    assert keystore.bring_back(tmp_path / "stage", {ADA}) == []
    assert not keystore.remove(ADA)
    assert not root.exists()
    Keyring.make(ADA, "geheim", "{ARGON2ID}x", []).write(keystore.place_for(ADA))
    keystore.copy_to(tmp_path / "stage")
    keystore.file_of(ADA).unlink()
    assert keystore.bring_back(tmp_path / "stage", {ADA, BOB}) == [ADA]
    assert keystore.read(ADA).opened("geheim")
    assert keystore.remove(ADA)


def test_two_directories_change_places(tmp_path):
    """In one step; where one is missing nothing changes."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    sealing.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "other").exists()
    with pytest.raises(OSError, match="No such file"):
        sealing.exchange(tmp_path / "one", tmp_path / "none")
    assert (tmp_path / "one" / "other").exists()


def test_all_messages_of_a_store_are_found(tmp_path):
    """And nothing that is none, in both formats."""
    for name in ("mailboxes/INBOX/dbox-Mails/u.1", "mailboxes/INBOX/dbox-Mails/dovecot.index", "cur/1.M1:2,S", ".Sent/new/2.M2", "tmp/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(path.rpartition("/")[2] for path in stored.all_files(tmp_path)) == ["1.M1:2,S", "2.M2", "u.1"]


def test_only_the_keys_of_a_session_are_handed_on():
    """In the dialect that they came in, and of 2.4's groups those that the account has."""
    fields = {
        "uid": "1", "crypt_global_private_key": "key1", "crypt_global_private_key/key1/crypt_private_key_file": "inline:QQ==",
        "crypt_global_private_key/key1/crypt_private_key_password": "x", "crypt_global_private_key/key2/crypt_private_key_password": "x",
    }
    assert session_key.settings_of(fields) == (
        "crypt_global_private_key key1 {\n  crypt_private_key_file = inline:QQ==\n  crypt_private_key_password = x\n}\n"
    )
    assert session_key.settings_of({"uid": "1"}) == ""
