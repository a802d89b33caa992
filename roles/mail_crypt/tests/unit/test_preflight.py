"""What mail_crypt refuses before anything changes."""

from __future__ import annotations

from pathlib import Path

import argon2
import pytest
import yaml
from roles_loader import load

preflight = load("mail_crypt/preflight.py", "mail_crypt_preflight")
DEFAULTS = yaml.safe_load((Path(__file__).resolve().parents[2] / "defaults" / "main.yml").read_text())
RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
USERS = [{"name": "ada@example.org"}, {"name": "bob@example.org", "state": "disabled"}]
GOOD = {**DEFAULTS, "mail_accounts_users": USERS, "mail_crypt_enabled": True, "mail_crypt_escrow": [RECIPIENT]}
HAS_KEYS = {"globs": {"x": ["/var/lib/letterlock/keys/accounts/example.org/ada.json"]}}


def test_good_variables():
    """With an answer for forgotten passwords; nothing is asked while the role is off."""
    assert preflight.faults(GOOD, {}) == []
    assert preflight.faults({**GOOD, "mail_crypt_escrow": ["none"]}, HAS_KEYS) == []
    assert preflight.faults(DEFAULTS, {}) == []


@pytest.mark.parametrize(("name", "value", "said"), [
    ("mail_crypt_escrow", [], "a forgotten password loses the mail"),
    ("mail_crypt_escrow", ["none", RECIPIENT], "choose"),
    ("mail_crypt_escrow", ["AGE-SECRET-KEY-1QQ"], "off every host"),
    ("mail_crypt_escrow", ["ssh-ed25519 AAAA"], "not an age recipient"),
    ("mail_crypt_accounts", ["eve@example.org"], "not in mail_accounts_users"),
    ("mail_crypt_app_passwords_max", 21, "from 0 to 20"),
    ("dovecot_settings", [{"name": "mail_plugins", "value": "fts fts_flatcurve"}], "every encrypted word"),
])
def test_bad_variables(name, value, said):
    """Each is told by its name and what is wrong."""
    found = preflight.faults({**GOOD, name: value}, {})
    assert len(found) == 1
    assert found[0].startswith(name)
    assert said in found[0]


def test_another_password_is_not_taken_for_the_account_s():
    """The keys would not open with it; one that the host keeps without a password here is its own affair."""
    begun = {"files": {preflight.BEGUN: "ada@example.org:{ARGON2ID}" + argon2.PasswordHasher(1, 8, 1).hash("first") + ":sealed\n"}}
    for password, count in (("first", 0), ("second", 1), ("", 0)):
        users = [{"name": "ada@example.org", "password": password}]
        found = preflight.faults({**GOOD, "mail_accounts_users": users}, begun)
        assert len(found) == count
        assert all("letterlock keys password ada@example.org" in fault for fault in found)


@pytest.mark.parametrize("change", [{"mail_crypt_enabled": False}, {"mail_crypt_accounts": ["bob@example.org"]}])
def test_encrypted_mail_is_not_left_behind(change):
    """Without the role nobody could read it."""
    (fault,) = preflight.faults({**GOOD, **change}, HAS_KEYS)
    assert "letterlock keys unseal ada@example.org" in fault
    in_clear = {**HAS_KEYS, "files": {preflight.BEGUN: "ada@example.org:x:clear\n"}}
    assert preflight.faults({**GOOD, **change}, in_clear) == []
