"""Who may log in, and what becomes of those who may not."""

from __future__ import annotations

import imaplib
import poplib
import time
from contextlib import ExitStack

import clients
import pytest

pytestmark = pytest.mark.requirement("AUTH-2")

REFUSALS = (imaplib.IMAP4.error, poplib.error_proto)


def sessions(declared: dict) -> list:
    """Return the clients of the chosen protocols."""
    return [{"imap": clients.imap, "pop3": clients.pop3}[protocol] for protocol in declared["protocols"]]


@pytest.mark.parametrize("user", ["ada@letterlock.test", "nobody@letterlock.test", "letterlock-probe@localhost"])
def test_a_wrong_password_is_refused_and_delayed(mail, declared, user):
    """Whether the account exists can't be told, and each guess costs time."""
    for session in sessions(declared):
        started = time.monotonic()
        with pytest.raises(REFUSALS) as refusal, session(mail.host, mail.ca_file, user, "not-the-password"):
            pass
        # Dovecot answers failures in rounds, so that a delay of 2 s can be little more than one.
        assert time.monotonic() - started >= 1.0
        assert "uthentication failed" in str(refusal.value)
        # A good login takes back what the failure added to this address's next delay.
        with session(*mail.login()):
            pass


@pytest.mark.requirement("AUTH-3")
def test_the_right_password_opens_the_mailbox(mail, declared):
    """Every account of the inventory logs in on every chosen protocol."""
    for user in mail.accounts:
        for session in sessions(declared):
            with session(*mail.login(user)) as client:
                assert client


@pytest.mark.requirement("SURF-3")
def test_trimmed_capabilities_are_not_offered(mail, declared):
    """COMPRESS, which is off by default, isn't announced; what clients need is."""
    if "imap" not in declared["protocols"]:
        return
    with clients.imap(*mail.login()) as client:
        capabilities = set(client.capability()[1][0].decode().split())
    assert "COMPRESS=DEFLATE" not in capabilities
    assert {"IMAP4REV1", "IDLE", "MOVE", "QUOTA", "SPECIAL-USE", "UIDPLUS"} <= {name.upper() for name in capabilities}


@pytest.mark.requirement("AUTH-4")
def test_sessions_of_one_account_are_limited(mail, declared):
    """One account can't take all sessions: the one over the limit is refused, others still get in."""
    most = declared["sessions_per_account_and_address"]
    session = sessions(declared)[0]
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(session(*mail.login()))
        with pytest.raises(REFUSALS), session(*mail.login()):
            pass
        for other in [user for user in mail.accounts if user != mail.user]:
            with session(*mail.login(other)) as client:
                assert client


@pytest.mark.requirement("AUTH-5", "SEC-2")
def test_the_journal_says_who_and_from_where_and_no_password(host, mail, declared):
    """A login leaves account and address in the journal; no password ever does."""
    for session in sessions(declared):
        with session(*mail.login()):
            pass
    journal = host.check_output("journalctl --unit dovecot --no-pager --output cat")
    logins = [line for line in journal.splitlines() if "ogin: user=" in line or "ogged in: user=" in line]
    assert any(f"user=<{mail.user}>" in line and "rip=" in line and "TLS" in line for line in logins), journal[-2000:]
    for secret in [*mail.accounts.values(), "not-the-password"]:
        assert secret not in host.check_output("journalctl --no-pager --output cat")
    assert "$argon2id$" not in host.check_output("journalctl --no-pager --output cat")
