"""Whatever of the kit is changed by hand is found and named, and nothing that is secret is told."""

from __future__ import annotations

import json

import pytest
from verifying import run_tool

pytestmark = pytest.mark.requirement("OPS-3", "OPS-5")

LIVE = "/etc/letterlock/dovecot/current"
# {what names it in the output: what is done by hand}
BY_HAND = {
    "# a line by hand": f"echo '# a line by hand' >>{LIVE}/dovecot.conf",
    "accounts.passdb": f"chmod 666 $(readlink -f {LIVE}/accounts.passdb)",
    "stray.conf": f"touch {LIVE}/stray.conf",
    "/etc/letterlock/backup/password": "echo another-password-by-hand >/etc/letterlock/backup/password",
    "letterlock/cli.py": "echo '# by hand' >>/usr/lib/letterlock/letterlock/cli.py",
    "letterlock-retention.timer": "echo '# by hand' >>/etc/systemd/system/letterlock-retention.timer",
    "dovecot.service": "systemctl disable --quiet dovecot.service",
    "letterlock-sweep.timer": "systemctl stop letterlock-sweep.timer",
    "clamav-daemon.service.d": "rm /etc/systemd/system/clamav-daemon.service.d/00-letterlock-guard.conf",
    "/srv/mail": "chmod 777 /srv/mail",
    "restic": "dpkg --remove --force-depends restic",
    "retention.json": f"sed -i 's/case-1/case-9/' {LIVE}/retention.json",
}


def drift(site, folder) -> tuple[int, str, dict]:
    """Return the exit code, what was printed, and what was written of the host of *site*."""
    done = run_tool("drift", *site.command[1:], f"--output={folder}", "--no-verify")
    return done.returncode, done.stdout + done.stderr, json.loads((folder / "drift.json").read_text())


def test_a_host_in_line_has_not_drifted(site, tmp_path):
    """Exit code 0, and nothing named; by playbook as well, which verifies, too."""
    code, said, made = drift(site, tmp_path)
    assert code == 0, said
    assert made["drifts"] == []
    run = site.run(playbook="playbooks/drift.yml", drift_output=str(tmp_path))
    assert run.code == 0, run.output
    assert (tmp_path / "report.html").exists()


def test_what_is_done_by_hand_is_found(host, mail, site, tmp_path):
    """A dozen kinds of it, at once; a deployment takes them back."""
    for command in BY_HAND.values():
        host.check_output(command)
    code, said, made = drift(site, tmp_path)
    assert code == 2, said
    run = site.run(playbook="playbooks/drift.yml", drift_output=str(tmp_path), drift_verifies=False)
    assert run.code == 2, run.output
    assert "the hosts are not what the inventory declares" in run.output
    assert "# a line by hand" in run.output
    missed = [name for name in BY_HAND if name not in said]
    assert not missed, f"not named: {missed}\n{said}"
    assert all(each["host"] == mail.host["name"] for each in made["drifts"])
    for secret in ("another-password-by-hand", "$argon2id$"):
        assert secret not in said + run.output
    site.converge()
    code, said, _ = drift(site, tmp_path)
    assert code == 0, said
    # The release that was live is kept, and closed again.
    assert set(host.check_output("stat --format %a /etc/letterlock/dovecot/releases/*/accounts.passdb").split()) == {"640"}


def test_a_host_that_can_not_be_reached_is_an_error(site, tmp_path):
    """Exit code 1: it is neither in line nor drifted."""
    done = run_tool("drift", *site.command[1:-1], "--inventory=nowhere,", "--limit=nowhere", f"--output={tmp_path}")
    assert done.returncode == 1, done.stdout + done.stderr
