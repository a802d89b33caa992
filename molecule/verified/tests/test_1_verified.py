"""Hosts that meet what they claim are told so; each violation is told under its own requirement, and no other one wavers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from scanning import message
from verifying import ELSEWHERE, RUNS

pytestmark = pytest.mark.requirement("OPS-5")

GRACE = "grace@example.test"
# What this inventory does not claim.
UNCLAIMED = {"LOSS-6", "MAL-5"}
LIVE = "/etc/letterlock/dovecot/current"
CONF = f"{LIVE}/dovecot.conf"
KEEP = f"cp -p {CONF} /root/conf"
# Listeners that are gone from the configuration stay until a restart.
RELOAD, BACK = "doveadm reload && sleep 1", f"cp -p /root/conf {CONF} && systemctl restart dovecot"
RESTART = "systemctl daemon-reload && systemctl restart dovecot"
BACKUP, SCAN = "/var/lib/letterlock/metrics/backup.prom", "/var/lib/letterlock/metrics/scan.prom"
QUARANTINE = "/var/lib/letterlock/quarantine"
RING = "/var/lib/letterlock/keys/accounts/letterlock.test/ada.json"
LEDGER = "$(ls /var/lib/letterlock/ledger/*.jsonl | head -1)"
SCANNER_READY = "timeout 90 sh -c 'until letterlock scan status; do sleep 0.5; done'"
DROP_IN, CLAMD = "/run/systemd/system/dovecot.service.d", "/run/systemd/system/letterlock-clamd.service.d"
# Each wrong password makes the next one wait longer; the healthy host has shown that.
QUICK = "--only=not refused_late"


@dataclass(frozen=True)
class Violation:
    """Something that is done to a host by hand: what it is, what it violates, and how it is done and undone."""

    name: str
    requirement: str
    plant: str
    undo: str

    def __str__(self) -> str:
        """Return its name, for pytest."""
        return self.name


def changed(name: str, requirement: str, *expressions: str) -> Violation:
    """Return a violation by sed's *expressions* on Dovecot's configuration."""
    words = " ".join(f"-e '{expression}'" for expression in expressions)
    return Violation(name, requirement, f"{KEEP} && sed -i -E {words} {CONF} && ! cmp -s {CONF} /root/conf && {RELOAD}", BACK)


def setting(name: str, requirement: str, lines: str) -> Violation:
    """Return a violation by *lines* at the end of Dovecot's configuration."""
    return Violation(name, requirement, f"{KEEP} && printf '%b' {lines!r} >>{CONF} && {RELOAD}", BACK)


def figure(name: str, requirement: str, file: str, metric: str, value: str = "1700000000") -> Violation:
    """Return a violation by another *value* of a *metric*."""
    change = f"sed -i -E 's/^({metric}) .*/\\1 {value}/' {file} && grep -q '^{metric} {value}$' {file}"
    return Violation(name, requirement, f"cp -p {file} /root/figures && {change}", f"cp -p /root/figures {file}")


def open_to_all(name: str, find: str) -> Violation:
    """Return a violation by a file that others may read: the first that *find* names."""
    file = f"$(readlink -f $({find} | head -1))"
    return Violation(name, "SEC-1", f"f={file}; test -f $f && stat -c %a $f >/root/mode && chmod 644 $f", f"chmod $(cat /root/mode) {file}")


def replaced(name: str, requirement: str, file: str, program: str) -> Violation:
    """Return a violation by what a *program* in Python makes of the JSON `d` in a *file*."""
    text = f'import json; d = json.load(open("{file}")); {program}; json.dump(d, open("{file}", "w"))'
    return Violation(name, requirement, f"cp -p {file} /root/json && python3 -c '{text}'", f"cp -p /root/json {file}")


MESSAGE_OF = "find /srv/mail/{} -type f '(' -name 'u.*' -o -path '*/cur/*' -o -path '*/new/*' ')' | head -1"
VIOLATIONS = [
    setting("port 143 is open", "TLS-1", "service imap-login {\n inet_listener imap {\n port = 143\n }\n}\n"),
    Violation(
        "a port that nobody declared", "SURF-2",
        "systemd-run --quiet --unit stranger --property WorkingDirectory=/mnt python3 -m http.server 8080; sleep 1",
        "systemctl stop stranger",
    ),
    changed(
        "TLS 1.0 is spoken", "TLS-2", "s/^ssl_min_protocol.*/ssl_min_protocol = TLSv1/",
        "s/^(ssl_cipher_list = )(.*)/\\1\\2:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:@SECLEVEL=0/",
    ),
    changed(
        "a weak cipher is taken", "TLS-3", "s/^(ssl_cipher_list = )(.*)/\\1\\2:ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:@SECLEVEL=0/",
    ),
    Violation(
        "a certificate that has ended", "TLS-4",
        # Where Dovecot's sandbox lets it read.
        "cd /etc/letterlock && umask 077 && openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out old.key && "
        "faketime -f -30d openssl req -x509 -key old.key -subj /CN=old -days 2 -out old.pem && "
        f"{KEEP} && sed -i -E -e 's#^(ssl_(server_)?cert(_file)? = <?).*#\\1/etc/letterlock/old.pem#' "
        f"-e 's#^(ssl_(server_)?key(_file)? = <?).*#\\1/etc/letterlock/old.key#' {CONF} && {RELOAD}",
        f"{BACK} && rm /etc/letterlock/old.*",
    ),
    Violation("LMTP answers everybody", "TLS-6", "nft flush ruleset", "nft --file /etc/letterlock/dovecot/current/lmtp.nft"),
    Violation(
        "a password with a weak hash", "AUTH-1",
        f"f=$(readlink -f {LIVE}/accounts.passdb); cp -p $f /root/passdb && echo 'x@letterlock.test:{{PLAIN}}x::::::' >>$f",
        f"cp -p /root/passdb $(readlink -f {LIVE}/accounts.passdb)",
    ),
    changed("sessions without a limit", "AUTH-4", "s/(mail_max_userip_connections = ).*/\\19999/"),
    Violation("guessers go on", "AUTH-6", "fail2ban-client stop letterlock", "systemctl restart letterlock-fail2ban"),
    Violation(
        "mail that is past its policy", "RET-1", f"printf 'Subject: old\\n\\nx\\n' | faketime -f -60d doveadm save -u {GRACE} -m Trash",
        f"doveadm expunge -u {GRACE} mailbox Trash all",
    ),
    setting("what POP3 fetches stays", "RET-2", "service pop3 {\n executable = pop3\n}\n"),
    replaced("a hold that was lifted by hand", "RET-3", f"{LIVE}/retention.json", 'd["holds"] = []'),
    Violation(
        "a line of the record that was changed", "RET-4",
        f"cp -p {LEDGER} /root/ledger && sed -i '1s/case-1/case-2/' {LEDGER} && ! cmp -s {LEDGER} /root/ledger",
        f"cp -p /root/ledger {LEDGER}",
    ),
    setting("mail that is not synced", "LOSS-1", "mail_fsync = never\n"),
    figure("a backup that is old", "LOSS-3", BACKUP, "letterlock_backup_last_success_timestamp_seconds"),
    figure("a backup without some accounts", "LOSS-3", BACKUP, "letterlock_backup_failures", "2"),
    figure("a repository that nobody checked", "LOSS-3", BACKUP, "letterlock_backup_last_check_timestamp_seconds"),
    figure("a drill that is long past", "LOSS-5", BACKUP, "letterlock_backup_last_drill_timestamp_seconds"),
    figure("a backup that does not forget", "LOSS-7", BACKUP, "letterlock_backup_oldest_snapshot_timestamp_seconds"),
    Violation(
        "a scanner that stands", "MAL-1",
        f"mkdir -p {CLAMD} && printf '[Unit]\\nConditionPathExists=/nowhere\\n' >{CLAMD}/off.conf && systemctl daemon-reload && "
        "systemctl stop letterlock-clamd",
        f"rm -r {CLAMD} && systemctl daemon-reload && systemctl start letterlock-clamd letterlock-signatures && {SCANNER_READY}",
    ),
    Violation("nobody notices new signatures", "MAL-2", "systemctl stop letterlock-sweep.path", "systemctl start letterlock-sweep.path"),
    figure("signatures that are old", "MAL-3", SCAN, "letterlock_scan_signature_faults", "1"),
    Violation(
        "malware in clear", "MAL-4", f"install -d -m 700 {QUARANTINE} && echo clear >{QUARANTINE}/x.age", f"rm {QUARANTINE}/x.age",
    ),
    Violation("an account without its keys", "REST-1", f"cp -p {RING} /root/ring && rm {RING}", f"cp -p /root/ring {RING}"),
    setting("room for headers in indexes", "REST-2", "mail_cache_record_max_size = 64 k\n"),
    replaced("a forgotten password loses the mail", "REST-3", RING, 'd["escrow"] = ""'),
    Violation(
        "a message in clear among encrypted ones", "REST-4",
        f"a=$({MESSAGE_OF.format('letterlock.test/ada')}); g=$({MESSAGE_OF.format('example.test/grace')}); "
        "echo $a >/root/which; cp -p $a /root/message && cat $g >$a", "cp -p /root/message $(cat /root/which)",
    ),
    open_to_all("a private key that all can read", "grep -r -l -s -e '-----BEGIN [EC ]*PRIVATE KEY' /etc/letterlock"),
    open_to_all("hashes that all can read", f"ls {LIVE}/accounts.passdb"),
    Violation(
        "a secret in the journal", "SEC-2", "logger 'hash $argon2id$v=19$m=19456,t=2,p=1$abcdefgh$ijklmnop'; sleep 1",
        "journalctl --rotate --quiet && journalctl --vacuum-time=1s --quiet",
    ),
    Violation(
        "a sandbox that was taken off", "HARD-1",
        f"mkdir -p {DROP_IN} && printf '[Service]\\nNoNewPrivileges=no\\n' >{DROP_IN}/zz-off.conf && {RESTART}",
        f"rm {DROP_IN}/zz-off.conf && {RESTART}",
    ),
    Violation(
        "memory without a bound", "HARD-2", "systemctl set-property --runtime dovecot.service MemoryMax=infinity",
        "rm -rf /run/systemd/system.control/dovecot.service.d && systemctl daemon-reload",
    ),
    Violation("a timer that stands", "OPS-4", "systemctl stop letterlock-retention.timer", "systemctl start letterlock-retention.timer"),
    Violation("a unit that failed", "OPS-4", "systemd-run --quiet --unit broken false; sleep 1", "systemctl reset-failed broken"),
]


def snapshot(host) -> str:
    """Return what of a host may not change by being asked: files with modes and times, units, and messages, wherever in a Maildir."""
    return host.check_output(
        "find /etc -xdev -type f -printf '%p %m %u %s %T@\\n' | sort; systemctl list-unit-files --no-legend --no-pager | sort; "
        "find /srv/mail -type f '(' -name 'u.*' -o -path '*/cur/*' -o -path '*/new/*' ')' -exec sha256sum '{}' + | cut -c1-64 | sort"
    )


def test_a_healthy_host_meets_all_that_it_claims(host, mail, verifier):
    """With an account to log in with; and being asked changes nothing."""
    host.check_output(SCANNER_READY)
    for user in mail.accounts:
        mail.deliver(user, message("to be kept"))
    host.check_output(f"printf 'Subject: in the trash\\n\\nx\\n' | doveadm save -u {GRACE} -m Trash")
    for run in RUNS:
        host.check_output(f"letterlock {run}")
    before = snapshot(host)
    verified = verifier.run()
    assert snapshot(host) == before
    assert verified.why("violated") == {}
    assert verified.code == 0
    assert set(verified.why("not proven")) == ELSEWHERE, verified.why("not proven")
    assert set(verified.why("not claimed")) == UNCLAIMED, verified.why("not claimed")
    charts = {figure["chart"]: figure for figure in verified.made["hosts"][0]["figures"]}
    assert charts["Oldest mail that remains, by mailbox"]["what"] == f"{GRACE}, Trash (trash)"
    assert {"Certificates, time left", "Age of backups and drills"} <= set(charts)
    # Of one host: 20; here both are verified at once, and perhaps another scenario's hosts beside them.
    assert verified.made["seconds"] < 60


def test_without_an_account_nothing_is_proven_by_a_login(verifier):
    """It is not taken for passed."""
    verified = verifier.run("--only=login or logs_in or journal or capabilities", account=False)
    for number in ("AUTH-3", "AUTH-5", "SURF-3"):
        assert "no account" in verified.why("not proven")[number]


@pytest.mark.parametrize("violation", VIOLATIONS, ids=str)
def test_a_violation_is_told_under_its_own_requirement(host, mail, verifier, violation):
    """And no other requirement is called violated. Each is planted on one of the two hosts."""
    if VIOLATIONS.index(violation) % len(mail.side_by_side) != sorted(mail.side_by_side).index(mail.host["name"]):
        pytest.skip("planted on the other host")
    host.check_output(violation.plant)
    try:
        verified = verifier.run(QUICK)
    finally:
        host.check_output(violation.undo)
    assert set(verified.why("violated")) == {violation.requirement}, verified.why("violated")
    assert verified.code == 2


def test_the_host_is_whole_again(verifier):
    """What was done by hand is undone: all that it claims is proven again."""
    verified = verifier.run()
    assert verified.why("violated") == {}
    assert verified.code == 0
