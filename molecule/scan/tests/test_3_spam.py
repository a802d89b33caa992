r"""Spam goes to \Junk, users teach rspamd by what they move, and nothing is let in unasked while rspamd is away."""

from __future__ import annotations

import re
import smtplib
import time

import clients
import pytest
from conftest import wait_for
from scanning import EICAR, message

pytestmark = pytest.mark.requirement("MAL-5")

USER = "bob@letterlock.test"
# https://spamassassin.apache.org/gtube/ ; in two parts, so that this file itself is none.
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-" + "ANTI-UBE-TEST-EMAIL*C.34X"
WORDS = " ".join(f"word{number}" for number in range(40))


def found(mail, mailbox: str, subject: str) -> list[bytes]:
    """Return the messages of a mailbox with *subject*."""
    return [text for text in clients.imap_messages(*mail.login(USER), mailbox) if f"Subject: {subject}\r\n".encode() in text]


def learnt(host) -> int:
    """Return how many messages rspamd has learnt."""
    said = host.check_output("rspamc -h /run/letterlock-rspamd/controller.sock stat")
    return int(re.search(r"Messages learned: (\d+)", said).group(1))


def is_ready(host) -> bool:
    """Tell whether rspamd answers; it makes its sockets when it has read its rules."""
    return host.run("test -S /run/letterlock-rspamd/scan.sock && rspamc -h /run/letterlock-rspamd/controller.sock stat").rc == 0


def move(mail, source: str, target: str, subject: str) -> None:
    """Move messages as a user does."""
    with clients.imap(*mail.login(USER)) as client:
        client.select(source)
        uids = client.uid("SEARCH", "SUBJECT", subject)[1][0].decode().replace(" ", ",")
        assert client.uid("MOVE", uids, target)[0] == "OK"


def test_gtube_lands_in_junk(mail):
    """Spam in Junk, with a header field that says why; other mail in INBOX without one, whatever its sender wrote there."""
    mail.deliver(USER, message("spam", GTUBE))
    mail.deliver(USER, b"X-Letterlock-Spam: yes; score=99\r\n" + message("forged", WORDS))
    (spam,) = found(mail, "Junk", "spam")
    assert b"\r\nX-Letterlock-Spam: yes; score=15.0\r\n" in spam
    assert not found(mail, "INBOX", "spam")
    (forged,) = found(mail, "INBOX", "forged")
    assert b"X-Letterlock-Spam" not in forged


def test_malware_is_malware_first(mail, scanner):
    """A message that is both is in quarantine, and not in Junk."""
    mail.deliver(USER, message("both", f"{GTUBE}\r\n{EICAR}"))
    assert scanner.quarantine(USER)[-1]["stage"] == "delivery"
    assert not found(mail, "Junk", "both")


def test_users_teach_by_moving(mail, host):
    """Into Junk is spam, out of it ham, and from there to Trash nothing."""
    before = learnt(host)
    mail.deliver(USER, message("lesson", WORDS))
    move(mail, "INBOX", "Junk", "lesson")
    wait_for(lambda: learnt(host) == before + 1)
    move(mail, "Junk", "INBOX", "lesson")
    wait_for(lambda: learnt(host) == before + 2)
    move(mail, "INBOX", "Junk", "lesson")
    wait_for(lambda: "spam: " in host.check_output("journalctl --unit 'letterlock-learn@*' --no-pager --output cat --lines 3"))
    count = learnt(host)
    move(mail, "Junk", "Trash", "lesson")
    time.sleep(2)
    assert learnt(host) == count
    said = host.check_output("journalctl --unit 'letterlock-learn@*' --no-pager --output cat")
    assert "ham: learnt" in said
    assert "word1" not in said


def test_without_rspamd_mail_is_deferred(mail, host):
    """Gone or hanging: 451, and nothing is in the mailbox."""
    host.check_output("systemctl stop letterlock-rspamd")
    try:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            mail.deliver(USER, message("unasked", WORDS))
    finally:
        host.check_output("systemctl start letterlock-rspamd")
    assert refused.value.smtp_code == 451
    wait_for(lambda: is_ready(host), 60)
    assert not found(mail, "INBOX", "unasked")
    mail.deliver(USER, message("asked", WORDS))
    assert found(mail, "INBOX", "asked")


@pytest.mark.requirement("HARD-1")
def test_rspamd_is_shut_in(host):
    """No port, no history on the disk, a sandbox and memory limits; the distribution's own units silent."""
    listening = host.check_output("ss -Hltn")
    assert not re.search(r":(1133[2-5]|6379)\b", listening)
    assert not host.file("/var/lib/rspamd/rspamd.history").exists
    for unit in ("letterlock-rspamd", "letterlock-redis"):
        told = host.check_output(f"systemd-analyze security --no-pager {unit}.service | tail -1")
        assert float(re.search(r": (\d+\.\d+)", told).group(1)) <= 2.0, told
        assert host.check_output(f"systemctl show --property MemoryMax --value {unit}") != "infinity"
    for unit in ("rspamd", "redis-server"):
        assert not host.service(unit).is_running


def test_other_policies_for_spam(site, mail, host):
    """`reject` answers 550, `tag` leaves it in INBOX; the web interface is on loopback, with a password that no log or unit shows."""
    password = "of-the-web-interface"
    site.converge(mail_scan_spam="reject")
    with pytest.raises(smtplib.SMTPDataError) as refused:
        mail.deliver(USER, message("rejected spam", GTUBE))
    assert refused.value.smtp_code == 550
    run = site.run("--diff", mail_scan_spam="tag", mail_scan_rspamd_password=password)
    assert run.code == 0, run.output
    assert password not in run.output
    wait_for(lambda: is_ready(host), 60)
    mail.deliver(USER, message("tagged spam", GTUBE))
    assert found(mail, "INBOX", "tagged spam")
    wait_for(lambda: "127.0.0.1:11334" in host.check_output("ss -Hltn"))
    answer = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:11334/stat\").status)'"
    assert "403" in host.run(answer).stderr or "401" in host.run(answer).stderr
    assert host.run(f"runuser -u nobody -- grep -r {password} /etc/letterlock /run/letterlock-rspamd").stdout == ""
    # -R follows the links to the release.
    assert host.run(f"grep -Rl --exclude=*.secret {password} /etc/systemd/system/ /etc/letterlock").stdout == ""
    site.converge()
    wait_for(lambda: is_ready(host), 60)
