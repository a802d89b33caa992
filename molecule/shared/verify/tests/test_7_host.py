"""Secrets, sandboxes and limits, and whether what runs by itself runs."""

from __future__ import annotations

import re

import pytest

EXPOSURE_MAX = 3.5
OWN = ("/etc/letterlock", "/var/lib/letterlock")
# Written so that the expression does not find itself where sudo logs the command.
SECRET = "[$]argon2id[$]v=|BEGIN [A-Z ]*PRIVATE KEY-|AGE-SECRET-KEY-1[A-Z0-9]{8}"


def own(host) -> str:
    """Return the directories of the kit that are there: a host without retention, backups and keys has no state."""
    return " ".join(path for path in OWN if host.file(path).exists)


def services(host) -> list[str]:
    """Return the services of the kit that are there."""
    units = "'letterlock-*' dovecot.service"
    return host.check_output(f"systemctl list-units --all --plain --no-legend --type service {units} | cut -d' ' -f1").split()


@pytest.mark.requirement("SEC-1")
def test_keys_are_roots_alone(host, server):
    """No private key of the kit is readable by anyone else."""
    found = host.check_output(
        f"grep --recursive --files-with-matches -e 'PRIVATE KEY' {own(host)} | xargs --no-run-if-empty stat --format '%U %a %n'"
    )
    assert found
    # A wrapped key in a passwd-file is Dovecot's to read.
    wrong = [line for line in found.splitlines() if not line.startswith(("root 600 ", "root 640 /var/lib/letterlock/keys/"))]
    assert not wrong, wrong


@pytest.mark.requirement("SEC-1")
def test_secrets_are_not_world_readable(host, server):
    """No file with a password, a hash or a key is anybody's to read, directly or by the directories above it."""
    names = "-name '*passdb*' -o -name '*password*' -o -name environment -o -name '*.secret' -o -name '*.key' -o -path '*/keys/*.json'"
    found = host.check_output(f"find -L {own(host)} -ignore_readdir_race -type f '(' {names} ')' -perm /o+r")
    assert not found, found


@pytest.mark.requirement("SEC-2")
def test_no_secret_is_in_the_journal(host, server):
    """No hash, no private key and no identity, in what the journal holds of a day."""
    count = host.run(f"journalctl --no-pager --since -1day --output cat | grep -c -E '{SECRET}'").stdout.strip()
    assert count == "0", f"{count} lines of the journal hold a secret"


@pytest.mark.requirement("HARD-1")
def test_processes_have_no_new_privileges(host, server):
    """Every process of Dovecot has the sandbox, not only its unit file."""
    said = host.check_output(
        "cd /sys/fs/cgroup; for pid in $(cat $(find . -path '*dovecot.service*' -name cgroup.procs) | sort -u); do "
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/$pid/status 2>/dev/null; done | sort | uniq -c"
    )
    wanted = {"NoNewPrivs:\t1", "Seccomp:\t2"}
    seen = {line.strip().split(None, 1)[1] for line in said.splitlines()}
    assert seen == wanted, said


@pytest.mark.requirement("HARD-1")
def test_exposure_is_low(host, server, figure):
    """By systemd's own score: Debian's unit of Dovecot has 8.7."""
    said = host.check_output("systemd-analyze security --no-pager " + " ".join(services(host)) + " | grep -E 'Overall exposure'")
    scores = dict(re.findall(r"exposure level for (\S+): ([\d.]+)", said))
    assert scores
    high = {unit: score for unit, score in scores.items() if float(score) > EXPOSURE_MAX}
    for unit, score in scores.items():
        figure("Exposure of services (systemd-analyze security)", unit, float(score), "of 10", most=EXPOSURE_MAX)
    assert not high, high


@pytest.mark.requirement("HARD-2")
def test_memory_and_tasks_are_bounded(host, server):
    """Of Dovecot, and of the scanner where there is one."""
    for unit in ["dovecot", *["letterlock-clamd"] * server.declared["scan"]]:
        shown = dict(line.split("=", 1) for line in host.check_output(f"systemctl show {unit} -p MemoryMax -p TasksMax").splitlines())
        assert "infinity" not in shown.values(), f"{unit}: {shown}"


@pytest.mark.requirement("OPS-4")
def test_no_unit_failed(host, server):
    """Of all the host's."""
    assert host.check_output("systemctl --failed --no-legend --plain") == ""


@pytest.mark.requirement("OPS-4")
def test_every_timer_of_the_kit_waits(host, server):
    """What is to run by itself is switched on, and knows when."""
    units = host.check_output("find /etc/systemd/system -maxdepth 1 -name 'letterlock-*.timer' -printf '%f\\n'").split()
    idle = [unit for unit in units if host.run(f"systemctl is-active {unit}").stdout.strip() != "active"]
    assert not idle, f"stopped: {idle}"


@pytest.mark.requirement("OPS-4")
def test_the_service_runs(host, server):
    """Since its last start, without one that failed."""
    assert host.check_output("systemctl is-active dovecot") == "active"
