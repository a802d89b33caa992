"""Nothing of an encrypted message lies in clear anywhere on the host, and the command that says so is not blind."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.requirement("REST-2")

ADA, CLEAR = "ada@letterlock.test", "grace@example.test"


def audit(keys, arguments: str = ""):
    """Run the audit of an account."""
    return keys.host.run(f"echo {keys.mail.accounts[ADA]} | letterlock leak-audit {ADA} {arguments}")


def test_nothing_leaks(keys):
    """Not in the store, its indexes, the journal, the scanner's and the kit's own state, nor in a backup."""
    done = audit(keys, "--backup")
    assert done.rc == 0, done
    files = int(re.search(r"0 places in (\d+) files", done.stdout).group(1))
    assert files > 20
    assert keys.texts(ADA, keys.mail.accounts[ADA])
    assert "Leak-Audit" not in keys.host.check_output(f"doveadm mailbox list -u {ADA}")


def test_a_leak_is_found(host, keys, site):
    """Dovecot's cache as it is by default holds sender and subject: each is named with its file and octet."""
    settings = [{"name": "mail_never_cache_fields", "value": "imap.bodystructure"}, {"name": "mail_cache_record_max_size", "value": "64k"}]
    site.converge(dovecot_settings=settings)
    found = audit(keys)
    assert found.rc == 1, found
    for part in ("subject", "sender", "header"):
        assert re.search(rf"/dovecot\.index\.cache: octet \d+: the message's {part}, as it is", found.stdout), found.stdout
    assert "the message's body" not in found.stdout
    host.check_output(f"doveadm mailbox cache remove -u {ADA} '*' 2>/dev/null; find /srv/mail/letterlock.test/ada -name '*.cache' -delete")
    site.converge()
    assert audit(keys).rc == 0


def test_who_is_not_encrypted_is_not_audited(keys):
    """Nor is anybody whose password is not known."""
    refused = keys.host.run(f"echo x | letterlock leak-audit {CLEAR}")
    assert refused.rc == 2
    assert "has no keys" in refused.stderr
    assert keys.host.run(f"echo guess | letterlock leak-audit {ADA}").rc == 2


def test_full_text_search_is_refused(site):
    """It would store every word."""
    refused = site.run(dovecot_settings=[{"name": "mail_plugins", "value": "fts fts_flatcurve"}])
    assert refused.code != 0
    assert "a full-text index would hold every encrypted word" in refused.output
