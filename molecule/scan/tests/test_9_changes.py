"""Other policies, and the role switched off: nothing of it is left but what is in quarantine."""

from __future__ import annotations

import shlex
import smtplib

import clients
import pytest
import scanning
from conftest import wait_for
from scanning import EICAR, message

pytestmark = pytest.mark.requirement("OPS-3")

USER = "bob@letterlock.test"
MIRROR_URL = "http://127.0.0.1:8998"
MIRROR = (
    "mkdir -p /srv/mirror && systemd-run --quiet --unit mirror --property WorkingDirectory=/srv/mirror "
    "python3 -m http.server --bind 127.0.0.1 8998"
)
SOON = "/run/systemd/system/letterlock-freshclam.timer.d"


def publish(host, text: str) -> None:
    """Put a database on the mirror, newer than what was there."""
    host.check_output(f"printf %s {shlex.quote(text)} >/srv/mirror/mirror.ndb")


def test_a_second_run_changes_nothing(site, mail):
    """Deployed again it changes nothing, and check mode says so, too."""
    assert site.converge().changed(mail.host["name"]) == 0
    checked = site.run("--check", "--diff")
    assert checked.code == 0, checked.output
    assert checked.changed(mail.host["name"]) == 0


@pytest.mark.requirement("MAL-1")
def test_other_policies(site, mail, scanner):
    """Reject answers 5xx, makes no bounce and keeps nothing; deliver_unscanned lets mail in while clamd is away."""
    site.converge(mail_scan_malware="reject", mail_scan_unavailable="deliver_unscanned")
    before = len(scanner.quarantine(USER))
    with pytest.raises(smtplib.SMTPDataError) as refused:
        mail.deliver(USER, message("rejected", EICAR))
    assert refused.value.smtp_code == 550
    assert b"Test.Eicar" in refused.value.smtp_error
    assert len(scanner.quarantine(USER)) == before
    scanner.host.check_output("systemctl stop letterlock-clamd")
    mail.deliver(USER, message("unscanned", EICAR))
    scanner.host.check_output("systemctl start letterlock-clamd")
    # The gate pays what is owed, before a session sees it.
    assert scanner.host.check_output(f"doveadm search -u {USER} mailbox INBOX body EICAR subject unscanned")
    wait_for(lambda: scanner.host.run("letterlock scan status").rc == 0)
    assert not any(b"\r\nSubject: unscanned" in text for text in clients.imap_messages(*mail.login(USER)))
    site.converge(mail_scan_malware="tag", mail_scan_notice=False)
    mail.deliver(USER, message("tagged", EICAR))
    newest = clients.without_trace(clients.imap_messages(*mail.login(USER))[-1])
    assert newest.startswith(b"X-Letterlock-Scan: malware; Test.Eicar\r\n")
    site.converge()


@pytest.mark.requirement("OPS-1")
def test_bad_variables_are_refused_all_at_once(site):
    """Before anything changes, with every fault and its variable."""
    run = site.run(
        mail_scan_quarantine_recipients=["AGE-SECRET-KEY-1X", "age1short"], mail_scan_timeout="2h", mail_scan_size_max="9G",
        mail_scan_signatures_directory="signatures", mail_scan_notice_from="nobody", mail_scan_quarantine_keep_for="often",
    )
    assert run.code != 0
    for part in (
        "belongs off every host", "'age1short'", "mail_scan_timeout", "mail_scan_size_max: 9G", "without blanks", "holds no address",
        "mail_scan_quarantine_keep_for",
    ):
        assert part in run.output, part


@pytest.mark.requirement("MAL-4")
def test_the_quarantine_is_in_backups(store, scanner, mail):
    """It comes back with what was released, on a host that has lost it."""
    mail.deliver(USER, message("to be backed up", EICAR))
    before = scanner.quarantine(USER)
    assert before
    store.backup()
    host = scanner.host
    lost = "/var/lib/letterlock/quarantine /var/lib/letterlock/released.sqlite"
    host.check_output(f"systemctl stop letterlock-quarantine.path && rm -rf {lost}")
    restored = store.letterlock("backup restore")
    host.check_output("systemctl start letterlock-quarantine.path")
    assert restored.rc == 0, restored.stdout + restored.stderr
    assert scanner.quarantine(USER) == before
    assert host.file("/var/lib/letterlock/quarantine").mode == 0o700
    assert "subject: to be backed up" in scanner.with_identity(f"show {before[-1]['identity']}").stdout
    assert host.file("/var/lib/letterlock/released.sqlite").exists


@pytest.mark.requirement("RET-6")
def test_an_erased_account_leaves_nothing_in_quarantine(site, mail, scanner):
    """The right to erasure covers it, and the ledger says so."""
    user = "grace@example.test"
    mail.deliver(user, message("to be erased", EICAR))
    accounts = [{"name": name, "password": password} for name, password in mail.accounts.items() if name != user]
    site.converge(mail_accounts_users=accounts, mail_retention_policies=[])
    scanner.host.check_output(f"letterlock erase {user} --confirm {user}")
    assert scanner.quarantine(user) == []
    assert scanner.ledger(action="erased", account=user)
    site.converge()


@pytest.mark.requirement("MAL-3")
def test_a_mirror_without_signatures_is_told(site, mail, scanner):
    """Freshclam runs in its sandbox, and fails; the operator's own databases judge on, and the status says what is missing."""
    host = scanner.host
    host.check_output(MIRROR)
    site.converge(mail_scan_freshclam=True, mail_scan_freshclam_mirror=MIRROR_URL)
    assert host.run("systemctl start letterlock-freshclam").rc == 1
    assert '"GET /daily.cvd' in host.check_output("journalctl --unit mirror --no-pager --output cat")
    said = host.check_output("journalctl --unit letterlock-freshclam --no-pager --output cat --lines 20")
    assert "ERROR: Update failed" in said
    status = scanner.refresh() and host.run("letterlock scan status")
    assert status.rc == 1
    assert "/var/lib/clamav holds no signatures" in status.stderr
    before = len(scanner.quarantine(USER))
    mail.deliver(USER, message("by the operator's own", EICAR))
    assert len(scanner.quarantine(USER)) == before + 1
    host.check_output("systemctl stop mirror")
    site.converge()
    host.check_output("systemctl reset-failed letterlock-freshclam letterlock-signatures; systemctl start letterlock-signatures")
    assert host.run("letterlock scan status").rc == 0


@pytest.mark.requirement("MAL-3")
def test_freshclam_fetches_from_a_mirror_of_ones_own_by_its_timer(site, mail, scanner):
    """What the mirror gets is fetched, comes into force and judges; a broken version doesn't take its place."""
    host = scanner.host
    host.check_output(MIRROR)
    publish(host, scanning.pattern("Test.Mirror", "mirror-worm"))
    urls = [f"{MIRROR_URL}/mirror.ndb"]
    site.converge(mail_scan_freshclam=True, mail_scan_freshclam_official=False, mail_scan_freshclam_urls=urls)
    mail.deliver(USER, message("before the timer", "mirror-worm"))
    number = scanner.number()
    # The timer has its minute and a random delay of up to twenty; the test can't wait for either.
    host.check_output(
        f"mkdir -p {SOON} && printf '[Timer]\\nOnActiveSec=\\nOnActiveSec=1s\\nRandomizedDelaySec=0\\n' >{SOON}/soon.conf "
        "&& systemctl daemon-reload && systemctl restart letterlock-freshclam.timer"
    )
    wait_for(lambda: scanner.number() > number, 60)
    # It was fetched, so the sweep that follows finds what came before.
    wait_for(lambda: any(item["signature"] == "Test.Mirror" for item in scanner.quarantine(USER)), 60)
    assert host.run("letterlock scan status").rc == 0
    publish(host, "Test.Broken:0:*:no hexadecimal\n")
    host.run("systemctl start letterlock-freshclam")
    scanner.refresh()
    before = len(scanner.quarantine(USER))
    mail.deliver(USER, message("after the broken one", "mirror-worm"))
    assert len(scanner.quarantine(USER)) == before + 1
    host.check_output(f"systemctl stop mirror; rm -r {SOON}; systemctl daemon-reload")
    site.converge()
    host.check_output("rm /var/lib/clamav/mirror.ndb; systemctl reset-failed; systemctl start letterlock-signatures")


def test_switched_off_nothing_is_left(site, mail, scanner):
    """No unit, no socket, no package, no guard; Dovecot's own LMTP takes mail again. The quarantine stays."""
    kept = scanner.host.check_output("ls /var/lib/letterlock/quarantine/*.age | wc -l")
    site.converge(mail_scan_enabled=False)
    mail.deliver(USER, message("unjudged", EICAR))
    assert any(b"unjudged" in text for text in clients.imap_messages(*mail.login(USER)))
    host = scanner.host
    units = ("letterlock-[clqs]*", "letterlock-gate*", "letterlock-freshclam*", "letterlock-redis*", "letterlock-rspamd*")
    assert host.check_output("find /etc/systemd/system " + " -o ".join(f"-name '{unit}'" for unit in units)) == ""
    guards = "find /etc/systemd/system -name 00-letterlock-guard.conf -not -path '*/dovecot.service.d/*'"
    assert host.check_output(guards) == ""
    assert host.run("dpkg-query -W -f '${db:Status-Abbrev}' clamav-daemon").stdout.strip() not in ("ii", "rc")
    for package in ("rspamd", "redis-server"):
        assert host.run(f"dpkg-query -W -f '${{db:Status-Abbrev}}' {package}").stdout.strip() != "ii"
    assert host.run("pgrep -x 'clamd|rspamd|redis-server'").rc == 1
    assert not host.file("/run/dovecot/lmtp-store").exists
    assert host.check_output("ls /var/lib/letterlock/quarantine/*.age | wc -l") == kept
    assert site.converge(mail_scan_enabled=False).changed(mail.host["name"]) == 0
    site.converge()
    mail.deliver(USER, message("judged again", EICAR))
    assert not any(b"judged again" in text and b"Auto-Submitted" not in text for text in clients.imap_messages(*mail.login(USER)))


@pytest.mark.requirement("OPS-4")
def test_the_host_is_whole(host):
    """No unit failed; for a sweep that a restart of Dovecot ended the next one makes up."""
    host.check_output("systemctl start letterlock-sweep.service")
    assert host.check_output("systemctl --failed --no-legend --plain") == ""
