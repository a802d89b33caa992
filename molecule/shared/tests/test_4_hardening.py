"""The sandbox takes hold in the running processes, not only in the unit file."""

from __future__ import annotations

import re
from contextlib import ExitStack

import clients
import pytest

pytestmark = pytest.mark.requirement("HARD-1")


@pytest.fixture
def main_pid(host) -> str:
    """Return the pid of Dovecot's master."""
    return host.check_output("systemctl show --property MainPID --value dovecot")


def inside(host, pid: str, command: str):
    """Run *command* in the mount namespace of process *pid*, as root: only the sandbox stands in the way."""
    return host.run(f"nsenter --target {pid} --mount sh -c {command!r}")


@pytest.mark.parametrize("path", ["/usr/letterlock", "/etc/letterlock/x", "/var/lib/x", "/srv/x", "/boot/x"])
def test_the_file_system_is_read_only(host, main_pid, path):
    """The service writes mail and its own state, and nothing else."""
    result = inside(host, main_pid, f"touch {path}")
    assert result.rc != 0
    assert "Read-only file system" in result.stderr or "No such file" in result.stderr, result.stderr


def test_mail_and_state_are_writable(host, main_pid, declared):
    """The sandbox leaves what the service needs."""
    for path in (f"{declared['mail_root']}/.sandbox-test", "/run/dovecot/.sandbox-test", "/var/lib/dovecot/.sandbox-test"):
        assert inside(host, main_pid, f"touch {path} && rm {path}").rc == 0, path


def test_homes_devices_and_other_processes_are_out_of_reach(host, main_pid):
    """ProtectHome, PrivateDevices, PrivateTmp, ProtectProc."""
    assert not inside(host, main_pid, "ls -A /root /home").stdout.replace("/root:", "").replace("/home:", "").strip()
    assert inside(host, main_pid, "test -e /dev/kmsg -o -e /dev/fuse").rc != 0
    host.check_output("touch /tmp/letterlock-marker")
    assert inside(host, main_pid, "test -e /tmp/letterlock-marker").rc != 0
    host.check_output("rm /tmp/letterlock-marker")


def test_privileges_are_bounded(host, main_pid):
    """Every process has no new privileges, a system call filter and only the capabilities that Dovecot needs."""
    pids = host.check_output("cat /sys/fs/cgroup$(systemctl show -p ControlGroup --value dovecot)/cgroup.procs").split()
    assert main_pid in pids
    for pid in pids:
        status = host.run(f"cat /proc/{pid}/status").stdout
        if not status:
            continue
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        bounding = int(re.search(r"CapBnd:\t(\w+)", status).group(1), 16)
        for forbidden in (12, 16, 17, 19, 21, 22, 25):  # NET_ADMIN SYS_MODULE SYS_RAWIO SYS_PTRACE SYS_ADMIN SYS_BOOT SYS_TIME
            assert not bounding >> forbidden & 1, (pid, forbidden)


def test_login_processes_are_locked_away(host, declared):
    """Who speaks with strangers runs as its own user in an empty root."""
    found = 0
    for protocol in declared["protocols"]:
        for pid in host.run(f"pgrep --full dovecot/{protocol}-login").stdout.split():
            assert host.check_output(f"stat --format %U /proc/{pid}") == "dovenull"
            assert host.check_output(f"readlink /proc/{pid}/root") == "/run/dovecot/login"
            assert re.search(r"CapEff:\t0{16}", host.check_output(f"cat /proc/{pid}/status"))
            found += 1
    assert found


def test_open_sessions_share_no_process(host, mail, declared):
    """Unless the operator asked for `fast`, each open session has a login and a mail process that no other has."""
    if declared["performance"] == "fast":
        return
    for protocol in declared["protocols"]:
        with ExitStack() as sessions:
            for _ in range(4):
                sessions.enter_context({"imap": clients.imap, "pop3": clients.pop3}[protocol](*mail.login()))
            who = [line.split() for line in host.check_output("doveadm who -1").splitlines()]
            mail_processes = {pid for user, service, pid, *_ in who if (user, service) == (mail.user, protocol)}
            assert len(mail_processes) == 4, who
            assert len(host.check_output(f"pgrep --full dovecot/{protocol}-login").split()) >= 4


def test_exposure_is_low(host):
    """Systemd's own score: Debian's unit has 8.7."""
    score = float(re.search(r"dovecot.service: ([\d.]+)", host.check_output("systemd-analyze security dovecot | tail -1")).group(1))
    assert score <= 3.0


@pytest.mark.requirement("HARD-2")
def test_limits(host, declared):
    """Memory, tasks and open files are bounded, and high enough for the sessions that are declared."""
    shown = dict(
        line.split("=", 1) for line in host.check_output("systemctl show dovecot -p MemoryMax -p TasksMax -p LimitNOFILE").splitlines()
    )
    assert shown["MemoryMax"] != "infinity"
    # A login and a mail process for each session of each protocol.
    assert int(shown["TasksMax"]) >= 4 * declared["sessions_max"]


@pytest.mark.requirement("SEC-1")
@pytest.mark.parametrize(
    ("path", "mode"),
    [("/etc/letterlock/tls", 0o700), ("/etc/letterlock/dovecot/current/accounts.passdb", 0o640), ("/run/letterlock/probe.passdb", 0o640)],
)
def test_secrets_are_not_world_readable(host, path, mode):
    """Keys are root's, password hashes are root's and Dovecot's."""
    assert host.file(path).exists
    assert host.check_output(f"stat --dereference --format %a {path}") == f"{mode:o}"


@pytest.mark.requirement("SEC-1")
def test_keys_are_roots_alone(host):
    """No private key on the host is readable by anyone else."""
    keys = host.check_output("grep --recursive --files-with-matches 'PRIVATE KEY' /etc/letterlock").split()
    assert keys
    for key in keys:
        assert host.check_output(f"stat --format '%U %a' {key}") == "root 600"


@pytest.mark.requirement("AUTH-1")
def test_passwords_are_argon2id_only(host):
    """No account has another scheme, and the probe's account is gone."""
    for line in host.check_output("grep -v ^# /etc/letterlock/dovecot/current/accounts.passdb").splitlines():
        assert line.split(":")[1].startswith("{ARGON2ID}$argon2id$")
    assert host.file("/run/letterlock/probe.passdb").size == 0


@pytest.mark.requirement("LOSS-1")
def test_the_effective_settings(host):
    """What the running configuration says of durability and cleartext."""
    shown = host.check_output("doveconf mail_fsync ssl")
    assert "mail_fsync = optimized" in shown
    assert "ssl = required" in shown
