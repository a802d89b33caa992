"""What mail_scan refuses before anything changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from roles_loader import load

preflight = load("mail_scan/preflight.py", "mail_scan_preflight")
DEFAULTS = yaml.safe_load((Path(__file__).resolve().parents[2] / "defaults" / "main.yml").read_text())
RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
GOOD = {
    **DEFAULTS, "dovecot_mailboxes": [{"name": "Spam", "special_use": "\\Junk"}], "mail_scan_enabled": True,
    "mail_scan_quarantine_recipients": [RECIPIENT],
}


def test_good_variables():
    """The defaults hold with a recipient, and nothing is asked while the role is off."""
    assert preflight.faults(GOOD, {}) == []
    assert preflight.faults(DEFAULTS, {}) == []


def test_junk_needs_a_mailbox():
    """Where there is none, the two variables are named."""
    found = preflight.faults({**GOOD, "mail_scan_rspamd": True, "dovecot_mailboxes": [{"name": "Trash", "special_use": "\\Trash"}]}, {})
    assert len(found) == 1
    assert "dovecot_mailboxes" in found[0]
    assert preflight.faults({**GOOD, "mail_scan_rspamd": True}, {}) == []
    quoted = [{"name": 'Sp"am', "special_use": "\\Junk"}]
    (fault,) = preflight.faults({**GOOD, "mail_scan_rspamd": True, "dovecot_mailboxes": quoted}, {})
    assert "no quotes and backslashes" in fault
    assert preflight.faults({**GOOD, "dovecot_mailboxes": quoted}, {}) == []


@pytest.mark.parametrize(("name", "value", "said"), [
    ("mail_scan_quarantine_recipients", [], "age-keygen"),
    ("mail_scan_quarantine_recipients", ["AGE-SECRET-KEY-1QQ"], "off every host"),
    ("mail_scan_quarantine_recipients", ["age1b"], "is not an age recipient"),
    ("mail_scan_quarantine_recipients", [RECIPIENT[:-1] + "q"], "or has a typo"),
    ("mail_scan_timeout", "10", "500ms"),
    ("mail_scan_gate_budget", "2h", "up to an hour"),
    ("mail_scan_gate_recent", "soon", "not a duration"),
    ("mail_scan_size_max", "5G", "more than clamd can count"),
    ("mail_scan_signatures_directory", "signatures", "absolute path"),
    ("mail_scan_freshclam_mirror", "a b", "address of a mirror"),
    ("mail_scan_freshclam_urls", ["https://mirror.example/a b.hdb"], "not the URL"),
    ("mail_scan_freshclam_urls", ["https://mirror.example/a.txt"], "no database with this ending"),
    ("mail_scan_freshclam_urls", ["https://a.example/a.hdb", "https://b.example/a.hdb"], "two databases are named 'a.hdb'"),
    ("mail_scan_freshclam_official", False, "nothing to fetch"),
    ("mail_scan_notice_from", "postmaster", "holds no address"),
    ("mail_scan_rspamd_password", 'a"b', "quotes"),
    ("mail_scan_notice_subject", "a\nBcc: x@y", "control characters"),
])
def test_bad_variables(name, value, said):
    """Each is told by its name and what is wrong."""
    found = preflight.faults({**GOOD, name: value}, {})
    assert len(found) == 1
    assert found[0].startswith(name)
    assert said in found[0]
