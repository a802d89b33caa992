"""After everything else: a run that has nothing to do says so, and the journal holds no surprise."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.requirement("OPS-4")

# A stop by systemd, and what is left of a look whether LMTP answers in cleartext.
HARMLESS = re.compile(
    r"Killed with signal 15 \(by pid=\d+ uid=0|SIGHUP received - reloading"
    r"|lmtp-server: conn [^ ]+ \[\d+\]: SSL handshak(e|ing with) .*wrong version number"
)


@pytest.mark.requirement("OPS-3")
def test_check_mode_finds_nothing_to_change(site, mail):
    """--check --diff after the deployment: zero changes, no diff, no failure."""
    run = site.run("--check", "--diff")
    assert run.code == 0, run.output
    assert run.changed(mail.host["name"]) == 0, run.output
    assert "--- before" not in run.output


def test_the_journal_has_no_warnings_or_errors(host):
    """Neither Dovecot nor systemd about it has anything to complain of."""
    said = host.check_output("journalctl --unit dovecot --priority warning --no-pager --output cat")
    assert [line for line in said.splitlines() if not HARMLESS.search(line)] == []


def test_no_unit_failed(host):
    """The host is as whole as before."""
    assert host.check_output("systemctl is-system-running") == "running"
