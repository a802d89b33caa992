"""A change that fails its probe is taken back; a run that is killed leaves a host that serves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import clients
import pytest

pytestmark = pytest.mark.requirement("OPS-2")

LIVE = "/etc/letterlock/dovecot/current"
# Each is valid to doveconf and fatal to users.
BREAKING = {
    "no login name is allowed": [{"name": "auth_username_chars", "value": "0"}],
    "sessions can't start": [{"name": "executable", "value": "/bin/false", "section": "service imap"}],
    "login processes can't start": [{"name": "chroot", "value": "nowhere", "section": "service imap-login"}],
    "no LMTP": [{"name": "executable", "value": "/bin/false", "section": "service lmtp"}],
}


def serves(mail) -> bool:
    """Tell whether a real login works."""
    with clients.imap(*mail.login()) as client:
        return client.select()[0] == "OK"


@pytest.mark.parametrize("what", BREAKING)
def test_a_change_that_breaks_users_is_rolled_back(host, mail, site, what):
    """The play fails and says why; the earlier release serves; the next good run goes through."""
    before = host.check_output(f"readlink {LIVE}")
    run = site.run(dovecot_settings=BREAKING[what])
    assert run.code != 0, run.output
    assert "failed its probe" in run.output, run.output
    assert "serves again" in run.output, run.output
    assert host.check_output(f"readlink {LIVE}") == before
    assert serves(mail)
    assert not host.file("/etc/letterlock/dovecot/pending").exists
    assert host.file("/etc/letterlock/dovecot/rejected/dovecot.conf").exists
    assert host.file("/run/letterlock/probe.passdb").size == 0
    assert site.converge().changed(mail.host["name"]) == 0


def test_units_of_a_release_go_and_come_with_it(host, site):
    """A release that brings a timer and fails its probe leaves no timer; one that fails to take it away keeps it running."""
    policies = {"mail_retention_policies": [{"name": "trash", "mailboxes": ["Trash"], "keep_for": "30d"}]}
    breaking = {"dovecot_settings": BREAKING["no LMTP"]}
    assert site.run(**policies, **breaking).code != 0
    assert host.run("systemctl cat letterlock-retention.timer").rc != 0
    assert not host.check_output("systemctl list-units --all --no-legend 'letterlock-retention*'")
    site.converge(**policies)
    assert host.check_output("systemctl is-active letterlock-retention.timer") == "active"
    assert site.run(**breaking).code != 0
    assert host.check_output("systemctl is-active letterlock-retention.timer") == "active"
    site.converge()
    assert host.run("systemctl cat letterlock-retention.timer").rc != 0


@pytest.mark.parametrize("seconds", [0.8, 1.2, 1.6, 2.0])
def test_a_run_that_is_killed_leaves_a_host_that_serves(host, mail, site, seconds):
    """Kill -9 of the controller at any moment; the next run completes what was asked."""
    # No whole hours: doveconf would print those as hours.
    marker = f"{int(seconds * 100) + 1} mins"
    change = {"dovecot_settings": [{"name": "imap_idle_notify_interval", "value": marker, "section": "protocol imap"}]}
    process = site.start(**change)
    time.sleep(seconds)
    # Its workers have sessions of their own, and would wait for it for good.
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for each in (process.pid, *map(int, workers)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.communicate()
    assert serves(mail)
    site.converge(**change)
    assert marker in host.check_output("doveconf -f protocol=imap imap_idle_notify_interval")
    assert serves(mail)
    assert site.converge(**change).changed(mail.host["name"]) == 0


def test_a_run_that_is_killed_between_swap_and_probe_is_finished_by_the_next(host, mail, site):
    """The moment that matters most: the new release is live and nothing has proven it."""
    change = {"dovecot_sessions_per_account_and_address": 17}
    # At most 30 s, and it ends only the process that holds the transaction's lock.
    watcher = (
        "timeout 30 sh -c 'until [ -e /etc/letterlock/dovecot/pending ]; do :; done; "
        "for process in /proc/[0-9]*; do "
        "ls -l $process/fd 2>/dev/null | grep -q letterlock-commit.lock && kill -9 ${process#/proc/}; done; :'"
    )
    name = mail.host["name"]
    ssh = ["ssh", "-F", host.backend.ssh_config, name, watcher]
    with subprocess.Popen(ssh) as watching:
        time.sleep(1)
        run = site.run(**change)
        watching.wait(timeout=40)
    if run.code != 0:
        assert host.file("/etc/letterlock/dovecot/pending").exists
        assert serves(mail)
    assert site.converge(**change).code == 0
    assert not host.file("/etc/letterlock/dovecot/pending").exists
    assert "17" in host.check_output("doveconf -h mail_max_userip_connections")
    assert site.converge(**change).changed(name) == 0
    assert run.code != 0, "the run was not killed in time; the test proved nothing"


DRIFT = {
    "an edited configuration": f"sed -i 's/^auth_verbose = no/auth_verbose = yes/' {LIVE}/dovecot.conf",
    "a removed drop-in": "rm /etc/systemd/system/dovecot.service.d/50-letterlock.conf",
    "an opened mode": f"chmod 644 {LIVE}/accounts.passdb",
    "a configuration of its own": "rm /etc/dovecot/dovecot.conf && echo 'protocols = imap' > /etc/dovecot/dovecot.conf",
    "a stopped service": "systemctl stop dovecot",
    "a disabled service": "systemctl disable dovecot",
    "a removed guard": "rm /etc/systemd/system/dovecot.service.d/00-letterlock-guard.conf",
    "a changed owner of the mail": "chown root /srv/mail",
}


@pytest.mark.requirement("OPS-3")
@pytest.mark.parametrize("what", DRIFT)
def test_drift_is_seen_and_repaired(host, mail, site, what):
    """What somebody changed by hand shows in check mode and is gone after a run."""
    host.check_output(DRIFT[what])
    check = site.run("--check", "--diff")
    assert check.code == 0, check.output
    assert check.changed(mail.host["name"]) > 0, check.output
    assert "$argon2id$" not in check.output
    assert site.converge().changed(mail.host["name"]) > 0
    assert serves(mail)
    assert site.converge().changed(mail.host["name"]) == 0
