"""Which names and hashes are taken, and when a hash is made anew."""

from __future__ import annotations

import argon2
import pytest
from roles_loader import load

plugin = load("mail_accounts/action_plugins/mail_accounts_hash.py")
preflight = load("mail_accounts/preflight.py")
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1)
USER = {"name": "ada@mail.test", "password": "right"}
VARIABLES = {"mail_accounts_domains": ["mail.test"], "mail_accounts_argon2id_memory_minimum": 7168, "mail_accounts_erase_max": 1}
HOST = {"globs": {"/srv/mail/*/*": ["/srv/mail/mail.test/ada", "/srv/mail/mail.test/grace"]}}


def test_a_hash_that_verifies_is_kept():
    """So that a second run changes nothing although salts are random."""
    live = plugin.hash_for(USER, None, HASHER)
    assert live.startswith("{ARGON2ID}$argon2id$")
    assert plugin.hash_for(USER, live, HASHER) == live


@pytest.mark.parametrize("live", ["{ARGON2ID}nonsense", "{PLAIN}right", "{ARGON2ID}" + HASHER.hash("wrong")])
def test_any_other_is_made_anew(live):
    """Another password, another scheme, no hash at all."""
    assert plugin.hash_for(USER, live, HASHER) != live


def test_a_cheaper_hash_is_made_anew():
    """Raised costs reach every account at the next run."""
    live = plugin.hash_for(USER, None, argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1))
    assert plugin.hash_for(USER, live, HASHER) != live


def faults(*users: dict, **variables: object) -> list[str]:
    """Return the faults of *users*, with argument_specs' defaults filled in."""
    filled = [{"state": "present", "delete_mail": False, **user} for user in users]
    return preflight.faults({**VARIABLES, "mail_accounts_users": filled, **variables}, HOST)


def test_good_accounts_have_no_faults():
    """What people use."""
    assert faults(USER, {"name": "o'neill".replace("'", "") + "+list@mail.test", "password": "x", "quota": "5G"}) == []


@pytest.mark.parametrize(
    "name", ["", "ada", "@mail.test", "../x@mail.test", "a/b@mail.test", "a:b@mail.test", "a b@mail.test", "Ada@mail.test", "a\n@mail.test",
             "a..b@mail.test", ".a@mail.test", "a%b@mail.test", "ada@mail.test.", "ada@other.test", "ada@-mail.test", "ä@mail.test"]
)
def test_names_that_could_do_harm_are_refused(name):
    """Path separators, control characters, the passwd-file's separator, Dovecot's variables."""
    assert faults({**USER, "name": name})


@pytest.mark.parametrize("password_hash", ["{PLAIN}x", "{SHA512-CRYPT}$6$x$y", "x", "{ARGON2I}$argon2i$v=19$m=65536,t=3,p=1$YWFh$YWFh",
                                           "{ARGON2ID}$argon2id$v=19$m=64,t=1,p=1$YWFh$YWFh",
                                           "{ARGON2ID}$argon2id$v=19$m=262144,t=1,p=1$YWFh$YWFh"])
def test_weak_or_unusable_hashes_are_refused(password_hash):
    """Another scheme, too cheap, too dear for Dovecot's auth process."""
    assert faults({"name": USER["name"], "password_hash": password_hash})


def test_contradictions_are_refused():
    """Twice the same account, two passwords or none, mail deleted of an account that stays."""
    assert "twice" in faults(USER, USER)[0]
    assert "either password or password_hash" in faults({"name": USER["name"]})[0]
    assert "goes with state absent" in faults({**USER, "delete_mail": True})[0]


def test_the_ceiling_counts_only_mail_that_is_there():
    """Accounts that are gone already don't count."""
    gone = [{"name": f"{name}@mail.test", "state": "absent", "delete_mail": True} for name in ("ada", "grace", "nobody")]
    assert faults(*gone[1:]) == []
    assert "2 accounts' mail would be deleted, 1 at most: ada@mail.test, grace@mail.test" in faults(*gone)[0]
