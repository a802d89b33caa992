"""Whether mail lies encrypted, and what opens it."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.requirement("REST-1")


@pytest.fixture
def statuses(host, server) -> list[dict]:
    """Return what the host says of each account's keys, with the messages counted."""
    server.insist_on("crypt", "mail_crypt_enabled is off")
    return json.loads(host.run("letterlock keys status --json --count").stdout)


def test_all_mail_that_should_be_is_encrypted(statuses):
    """Each account has keys, and not one message of theirs is in clear."""
    for each in statuses:
        assert "fault" not in each, each["fault"]
        assert each["state"] == "sealed", each["account"]


@pytest.mark.requirement("REST-4")
def test_what_was_there_before_is_encrypted(statuses):
    """Message by message, by their files."""
    clear = {each["account"]: each["clear"] for each in statuses if each.get("clear")}
    assert not clear, f"messages in clear: {clear}"


@pytest.mark.requirement("REST-2")
def test_indexes_hold_no_headers(host, server):
    """A record of Dovecot's cache has room for two dates, and for no line of a header."""
    server.insist_on("crypt", "mail_crypt_enabled is off")
    size = host.check_output("doveconf -h mail_cache_record_max_size").split()
    assert int(size[0]) <= 28, size
    assert "fts" not in host.check_output("doveconf -h mail_plugins").split()


@pytest.mark.requirement("REST-3")
def test_a_forgotten_password_was_thought_of(server, statuses):
    """Each account has a recovery key or an escrow, unless the operator said none."""
    if server.declared["escrow"] == ["none"]:
        return
    # Who has no keys at all is told by the requirement of that.
    lost = [each["account"] for each in statuses if "fault" not in each and not each["recovery"] and not each["escrow"]]
    assert not lost, f"a forgotten password loses the mail of {lost}"
