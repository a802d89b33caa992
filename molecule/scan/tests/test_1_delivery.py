"""What comes in over LMTP is judged before it is in a mailbox, and nothing is lost or let in unjudged when it can't be."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import smtplib
import socket
import ssl
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import clients
import lane
import pytest
import scanning
from conftest import wait_for
from scanning import EICAR, message

pytestmark = pytest.mark.requirement("MAL-1")

USER = "ada@letterlock.test"


def subjects(mail, user: str, mailbox: str = "INBOX") -> list[str]:
    """Return the subjects in a mailbox."""
    texts = clients.imap_messages(*mail.login(user), mailbox)
    return [re.search(rb"^Subject: (.*?)\r$", text, re.MULTILINE).group(1).decode() for text in texts]


def refusal(mail, user: str, text: bytes) -> tuple[int, bytes]:
    """Return code and reason with which a delivery is refused."""
    with pytest.raises(smtplib.SMTPResponseException) as refused:
        mail.deliver(user, text)
    return refused.value.smtp_code, refused.value.smtp_error


@pytest.mark.requirement("LOSS-2")
def test_clean_mail_arrives_as_it_was(mail):
    """Lines with dots, long lines, eight bits, no body: octet by octet."""
    texts = [
        message("dots", "..\r\n.\tx\r\n. "), message("long", "y" * 300_000), message("eight", "Grüße\r\n\r\n"),
        b"Subject: headless\r\n\r\n", message("lone", "a\rb"),
    ]
    for text in texts:
        mail.deliver("grace@example.test", text)
    found = [clients.without_trace(text) for text in clients.imap_messages(*mail.login("grace@example.test"))]
    assert found == texts


@pytest.mark.requirement("MAL-1", "MAL-4")
def test_malware_is_in_quarantine_and_its_user_is_told(mail, scanner):
    """EICAR, in an attachment: not in the mailbox, but sealed; the notice names sender, subject, date and verdict."""
    mail.deliver(USER, message("before"))
    mail.deliver(USER, scanning.with_attachment("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", EICAR.encode()))
    (item,) = scanner.quarantine(USER)
    assert (item["verdict"], item["signature"], item["mailbox"], item["stage"]) == ("malware", "Test.Eicar", "INBOX", "delivery")
    texts = clients.imap_messages(*mail.login(USER))
    assert not any(b"filename" in text for text in texts)
    (notice,) = [text for text in texts if b"Auto-Submitted" in text]
    for part in (b"eve@example.org", item["identity"].encode(), b"Test.Eicar", b"Return-Path: <>"):
        assert part in notice
    # No sender and no subject outside the seal, and no word of the message.
    kept = scanner.host.check_output("cat /var/lib/letterlock/quarantine/*.json")
    assert "eve@" not in kept
    sealed = scanner.host.run(f"grep -c -e eve@ -e EICAR -e hello /var/lib/letterlock/quarantine/{item['identity']}.age")
    assert sealed.stdout.strip() == "0"
    assert scanner.host.file("/var/lib/letterlock/quarantine").mode == 0o700
    assert scanner.host.file(f"/var/lib/letterlock/quarantine/{item['identity']}.age").mode == 0o600
    (line,) = scanner.ledger(kind="quarantine", action="quarantined", item=item["identity"])
    assert line["account"] == USER
    assert "eve@" not in json.dumps(line)


@pytest.mark.requirement("MAL-4")
def test_show_needs_the_identity_for_what_is_sealed(scanner):
    """Without it the record; with it sender, subject and date. Another identity opens nothing."""
    (item,) = scanner.quarantine(USER)
    plain = scanner.host.check_output(f"letterlock quarantine show {item['identity']}")
    assert "signature: Test.Eicar" in plain
    assert "eve@" not in plain
    opened = scanner.with_identity(f"show {item['identity']}")
    assert "subject: Grüße" in opened.stdout
    assert "sender: eve@example.org" in opened.stdout
    other = scanner.host.run(f"age-keygen 2>/dev/null | letterlock quarantine show {item['identity']} --identity -")
    assert other.rc == 1
    assert "no identity matched" in other.stderr


def test_several_recipients_each_have_their_own(mail, scanner):
    """One message for two accounts: an answer and an item for each, and one for an address with detail."""
    host = mail.host
    users = ("bob@letterlock.test", "grace@example.test", "nobody@letterlock.test")
    before = [len(scanner.quarantine(user)) for user in users]
    with clients.LMTPS(host["address"], host["lmtp_port"], clients.tls_context(mail.ca_file)) as client:
        client.ehlo_or_helo_if_needed()
        client.mail("eve@example.org")
        for recipient in ("bob@letterlock.test", "nobody@letterlock.test", "Grace+lists@example.test"):
            client.rcpt(recipient)
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(message("two", EICAR) + b".\r\n")
        assert [client.getreply()[0] for _ in range(2)] == [250, 250]
        # The session goes on.
        assert client.noop()[0] == 250
    more = [len(scanner.quarantine(user)) - count for user, count in zip(users, before, strict=True)]
    assert more == [1, 1, 0]


@pytest.mark.requirement("MAL-4")
def test_release_puts_it_back_for_good(mail, scanner):
    """A false positive: back in the mailbox as it was, and not taken again for the same signature, at delivery either."""
    text = message("false alarm", f"{EICAR}\r\n..dots\r\n")
    mail.deliver("bob@letterlock.test", text)
    item = scanner.quarantine("bob@letterlock.test")[-1]
    released = scanner.with_identity(f"release {item['identity']}")
    assert released.rc == 0, released.stderr
    texts = [clients.without_trace(found) for found in clients.imap_messages(*mail.login("bob@letterlock.test"))]
    assert text in texts
    mail.deliver("bob@letterlock.test", text)
    texts = [clients.without_trace(found) for found in clients.imap_messages(*mail.login("bob@letterlock.test"))]
    assert texts.count(text) == 2
    assert item["identity"] not in scanner.host.check_output("letterlock quarantine list")
    (line,) = scanner.ledger(action="released", item=item["identity"])
    assert line["into"] == "INBOX"
    assert scanner.host.check_output("letterlock ledger verify").startswith("whole")
    # The identity is on no command line, in no log and in no file.
    secret = re.search(r"AGE-SECRET-KEY-\S+", (scanner.lab / scanning.IDENTITY).read_text()).group()
    assert scanner.host.run(f"grep -rlF {secret} /var/lib/letterlock /etc/letterlock /tmp /var/tmp").stdout == ""
    assert secret not in scanner.host.check_output("journalctl --no-pager --output cat")


@pytest.mark.requirement("MAL-4")
@pytest.mark.parametrize(("answer", "code"), [("success", 0), ("failure", 1)])
def test_submit_tells_the_makers(mail, scanner, answer, code):
    """Clamsubmit brings them the message as it came; only what they took is in the ledger. They are played, for want of the internet."""
    host, place = scanner.host, "/root/reports"
    mail.deliver("bob@letterlock.test", message(f"submitted, {answer}", EICAR))
    item = scanner.quarantine("bob@letterlock.test")[-1]
    program = shlex.quote((lane.PROJECT / "molecule" / "shared" / "lab" / "reports.py").read_text())
    host.check_output(
        f"mkdir -p {place} && cp /etc/hosts {place}/hosts && echo '127.0.0.1 www.clamav.net clamav-site.s3.amazonaws.com' >>/etc/hosts && "
        f"printf %s {program} >{place}/reports.py && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
        f"-subj /CN=reports -addext 'subjectAltName=DNS:www.clamav.net,DNS:clamav-site.s3.amazonaws.com' "
        f"-keyout {place}/key.pem -out {place}/ca.pem && cat {place}/key.pem {place}/ca.pem >{place}/both.pem && "
        f"systemd-run --quiet --collect --unit reports python3 {place}/reports.py {place}/both.pem {answer} {place}/sent"
    )
    try:
        wait_for(lambda: ":443 " in host.check_output("ss -Hltn"))
        done = scanner.with_identity(f"submit {item['identity']} --name Ops --email ops@example.org", CURL_CA_BUNDLE=f"{place}/ca.pem")
        sent = host.check_output(f"cat {place}/sent")
    finally:
        host.check_output(f"systemctl stop reports; cat {place}/hosts >/etc/hosts; rm -r {place}")
    assert done.rc == code, done
    assert f"Subject: submitted, {answer}" in sent
    assert "Test.Eicar" in sent
    assert len(scanner.ledger(action="submitted", item=item["identity"])) == (1 if code == 0 else 0)


@pytest.mark.requirement("MAL-4", "RET-3")
def test_delete_and_holds(mail, scanner):
    """An item is deleted by its name; one of an account under a hold is not."""
    for user in (USER, "held@letterlock.test"):
        mail.deliver(user, message("doomed", EICAR))
    item, held = scanner.quarantine(USER)[-1], scanner.quarantine("held@letterlock.test")[-1]
    scanner.host.check_output(f"letterlock quarantine delete {item['identity']}")
    assert scanner.ledger(action="deleted", item=item["identity"])
    refused = scanner.host.run(f"letterlock quarantine delete {held['identity']}")
    assert refused.rc == 2
    assert "case-1" in refused.stderr
    unknown = scanner.host.run("letterlock quarantine delete ../../etc/passwd")
    assert unknown.rc == 2


@pytest.mark.requirement("MAL-4")
def test_quarantine_has_a_retention_of_its_own(mail, scanner):
    """After mail_scan_quarantine_keep_for an item goes, by a moved clock; that of a held account stays."""
    mail.deliver("held@letterlock.test", message("kept", EICAR))
    before = scanner.quarantine(USER)
    assert before
    # What is recorded under a moved clock would move the ledger's newest line with it.
    scanner.ledger()
    early = scanner.host.run("faketime -f +29d letterlock quarantine expire")
    assert early.rc == 0, early.stderr
    assert scanner.quarantine(USER) == before
    done = scanner.host.run("faketime -f +31d letterlock quarantine expire")
    # A clock that runs ahead is not believed (mail_retention_clock_ahead_max).
    assert done.rc == 2
    assert scanner.quarantine(USER) == before
    scanner.host.check_output(
        "cd /var/lib/letterlock/quarantine && for each in *.json; do "
        """python3 -c 'import json,sys; p=sys.argv[1]; d=json.load(open(p)); d["time"]-=31*86400; json.dump(d,open(p,"w"))' "$each"; done"""
    )
    scanner.host.check_output("letterlock quarantine expire")
    assert scanner.quarantine(USER) == []
    assert scanner.quarantine("held@letterlock.test")
    assert scanner.ledger(action="expired", account=USER)
    sealed = scanner.host.check_output("ls /var/lib/letterlock/quarantine/*.age")
    assert len(sealed.splitlines()) == len(scanner.quarantine("held@letterlock.test"))


# ---- what can't be looked into


def encrypted_zip() -> bytes:
    """Return a zip whose one entry says that it is encrypted."""
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("secret.txt", "0123456789" * 20)
    raw = bytearray(plain.getvalue())
    raw[6] |= 1  # general purpose bit 0 of the local header (APPNOTE.TXT, 4.4.4)
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    return bytes(raw)


def bomb() -> bytes:
    """Return a zip of a zip of zeros, beyond mail_scan_size_max."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"zeros-{number}", b"\0" * 50_000_000)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", inner.getvalue())
    return outer.getvalue()


def last(mail, user: str) -> bytes:
    """Return the newest message of an account."""
    return clients.without_trace(clients.imap_messages(*mail.login(user))[-1])


def test_what_the_scanner_can_not_look_into_is_tagged(mail):
    """An encrypted archive and a bomb: mail_scan_unreadable, which is `tag` by default."""
    for content, name in ((encrypted_zip(), b"Heuristics.Encrypted.Zip"), (bomb(), b"Heuristics.Limits.Exceeded")):
        text = scanning.with_attachment("closed", content, "a.zip")
        mail.deliver(USER, text)
        head, _, rest = last(mail, USER).partition(b"\r\n")
        assert head.startswith(b"X-Letterlock-Scan: unreadable; " + name)
        assert rest == text


def test_nobody_else_writes_the_tag(mail):
    """A header field of the kit's own name, folded or not, is taken out of what comes in."""
    text = b"X-Letterlock-Scan: clean;\r\n\tfolded\r\nSubject: forged\r\nx-letterlock-more: y\r\n\r\nX-Letterlock-Scan: body\r\n"
    mail.deliver(USER, text)
    assert last(mail, USER) == b"Subject: forged\r\n\r\nX-Letterlock-Scan: body\r\n"


def test_bad_input(mail, scanner):
    """10,000 nested parts, NULs, broken base64, 50 MB: judged or tagged, delivered, and the front lives on; malware among it is found."""
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(10_000))
    texts = {
        "nested": b"Subject: nested\r\nMIME-Version: 1.0\r\n" + nested + b"\r\nx\r\n",
        "nuls": message("nuls", "a\0b\0c" * 100),
        "base64": scanning.with_attachment("base64", b"", encoded=b"!!!!" * 1000 + b"\r\n====\r\n"),
        "large": scanning.with_attachment("large", b"\x81\x00" * 18_000_000),
    }
    for text in texts.values():
        mail.deliver(USER, text)
    found = subjects(mail, USER)
    assert [subject for subject in texts if subject not in found] == []
    before = len(scanner.quarantine(USER))
    mail.deliver(USER, scanning.with_attachment("broken and bad", b"", encoded=b"!!!!\r\n" + EICAR.encode()))
    assert len(scanner.quarantine(USER)) == before + 1
    assert scanner.host.service("letterlock-lmtp.service").is_running


def test_no_smuggling(mail):
    """A lone LF never ends a message: what follows the false end is text, for Dovecot too (CVE-2023-51764)."""
    host = mail.host
    with clients.LMTPS(host["address"], host["lmtp_port"], clients.tls_context(mail.ca_file)) as client:
        client.ehlo_or_helo_if_needed()
        client.mail("eve@example.org")
        client.rcpt(USER)
        client.putcmd("data")
        client.getreply()
        inner = f"MAIL FROM:<>\r\nRCPT TO:<{USER}>\r\nDATA\r\nSubject: inner\r\n\r\ny\r\n"
        client.send(f"Subject: outer\r\n\r\nx\n.\n{inner}.\r\n".encode())
        assert client.getreply()[0] == 250
        assert client.noop()[0] == 250
    # The dot at the beginning of a line is no part of it (RFC 5321, 4.5.2).
    assert last(mail, USER) == f"Subject: outer\r\n\r\nx\r\n\r\n{inner}".encode()
    assert "inner" not in subjects(mail, USER)


def test_protocol_faults(mail):
    """Commands out of order, unknown users, too long a line: refused, and the session or the next one goes on."""
    host = mail.host
    with clients.LMTPS(host["address"], host["lmtp_port"], clients.tls_context(mail.ca_file)) as client:
        code, offered = client.ehlo()
        assert code == 250
        assert b"CHUNKING" not in offered
        assert b"STARTTLS" not in offered
        assert client.docmd("DATA")[0] == 503
        assert client.docmd("BDAT 5 LAST")[0] == 502
        assert client.mail("eve@example.org", ["SIZE=99999999999"])[0] == 552
        client.mail("eve@example.org")
        assert client.rcpt("nobody@letterlock.test")[0] == 550
        assert client.docmd("DATA")[0] == 503
        assert client.docmd("X" * 9000)[0] == 500
    mail.deliver(USER, message("after"))
    assert "after" in subjects(mail, USER)


@pytest.mark.requirement("TLS-6")
def test_lmtp_speaks_tls_only(mail):
    """The front keeps the promise of dovecot_tls_profile: no cleartext, no old version."""
    address = mail.host["address"], mail.host["lmtp_port"]
    with socket.create_connection(address, 10) as plain:
        plain.settimeout(5)
        plain.sendall(b"LHLO x\r\n")
        with pytest.raises((TimeoutError, ConnectionResetError, AssertionError)):
            assert b"250" in plain.recv(100)
    context = clients.tls_context(mail.ca_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection(address, 10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname=address[0])


# ---- the scanner is not there


@pytest.fixture
def stopped(scanner):
    """Stop clamd for the time of a test."""
    scanner.host.check_output("systemctl stop letterlock-clamd")
    yield
    scanner.host.check_output("systemctl start letterlock-clamd")
    wait_for(lambda: scanner.host.run("letterlock scan status").rc == 0)


def stored(host, user: str, subject: str) -> bool:
    """Tell whether INBOX holds a message; no session is needed to see it."""
    return bool(host.check_output(f"doveadm search -u {user} mailbox INBOX subject '{subject}'"))


def test_without_a_scanner_mail_is_deferred(mail, host, stopped):
    """Clamd is gone: 451, nothing in the mailbox, nothing lost; the next try, with clamd back, delivers."""
    code, reason = refusal(mail, USER, message("deferred"))
    assert (code, b"4.7.1" in reason) == (451, True)
    assert not stored(host, USER, "deferred")


def test_a_scanner_that_hangs_defers(mail, scanner):
    """Clamd answers nothing within mail_scan_timeout: 451."""
    pid = scanner.host.check_output("systemctl show --property MainPID --value letterlock-clamd")
    scanner.host.check_output(f"kill -STOP {pid}")
    try:
        code, _ = refusal(mail, USER, message("hangs"))
    finally:
        scanner.host.check_output(f"kill -CONT {pid}")
    assert code == 451
    assert not stored(scanner.host, USER, "hangs")


def test_a_scanner_that_is_killed_in_the_middle(mail, scanner):
    """Kill -9 while it scans: each delivery is answered with 250 and in a mailbox or in quarantine, or with 451 and in neither."""
    before = len(scanner.quarantine(USER))

    def deliver(number: int) -> tuple[str, int]:
        subject = f"killed-{number}"
        bad = number % 4 == 0
        text = scanning.with_attachment(subject, (EICAR.encode() if bad else bytes([number])) + b"\x55\xaa" * 400_000 * (not bad))
        try:
            mail.deliver(USER, text)
        except smtplib.SMTPResponseException as refused:
            return subject, refused.smtp_code
        return subject, 250

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(deliver, number) for number in range(40)]
        for _ in range(2):
            scanner.host.check_output("sleep 0.7; systemctl kill --signal KILL letterlock-clamd; sleep 1.5")
        codes = dict(answer.result() for answer in answers)
    wait_for(lambda: scanner.host.run("letterlock scan status").rc == 0)
    assert set(codes.values()) <= {250, 451}
    found = subjects(mail, USER)
    clean = {subject for subject, code in codes.items() if code == 250 and int(subject.rpartition("-")[2]) % 4}
    bad = [subject for subject, code in codes.items() if code == 250 and int(subject.rpartition("-")[2]) % 4 == 0]
    assert {subject for subject in found if subject.startswith("killed-")} == clean
    assert len(scanner.quarantine(USER)) - before == len(bad)


def test_a_full_quarantine_neither_loses_nor_serves(mail, scanner):
    """No room for the sealed file: 451 and nothing in the mailbox, and nothing half done in quarantine."""
    host = scanner.host
    place = "/var/lib/letterlock/quarantine"
    host.check_output(f"systemctl stop letterlock-quarantine.path && mount -t tmpfs -o size=4k,mode=700 tmpfs {place}")
    try:
        # The front's sandbox has the mounts of its start.
        host.check_output(f"systemctl restart letterlock-lmtp.socket && head -c 4096 /dev/zero >{place}/full")
        code, _ = refusal(mail, USER, message("no room", EICAR))
        left = host.check_output(f"find {place} -name '*.age' -o -name '*.json'")
    finally:
        host.check_output("systemctl stop letterlock-lmtp.socket")
        host.check_output(f"umount {place} && systemctl start letterlock-lmtp.socket letterlock-quarantine.path")
    assert code == 451
    assert left == ""
    assert "no room" not in subjects(mail, USER)


@pytest.mark.requirement("HARD-2", "MAL-1")
def test_a_scanner_without_memory_defers(mail, scanner):
    """It can't load what it is to judge and says so: 451, not clean; with memory again it goes on."""
    host = scanner.host
    limit = "runuser -u clamav -- prlimit --pid $(systemctl show --property MainPID --value letterlock-clamd) --as={}:unlimited"
    text = scanning.with_attachment("no memory", b"\x81\x00" * 5_000_000)
    host.check_output(limit.format("100000000"))
    try:
        assert refusal(mail, USER, text)[0] == 451
        assert refusal(mail, USER, message("no memory, bad", EICAR))[0] == 451
    finally:
        host.check_output(limit.format("unlimited"))
    assert not stored(host, USER, "no memory")
    mail.deliver(USER, text)
    assert stored(host, USER, "no memory")


# ---- signatures


@pytest.mark.requirement("MAL-3")
def test_new_signatures_come_into_force_by_themselves(mail, scanner):
    """A database is put into the directory: within moments mail is judged by it, and clamd was not restarted for that."""
    pid = scanner.host.check_output("systemctl show --property MainPID --value letterlock-clamd")
    number = scanner.number()
    mail.deliver(USER, message("day zero", "worm-of-today"))
    line = shlex.quote(scanning.pattern("Test.Today", "worm-of-today"))
    scanner.host.check_output(f"printf %s {line} >{scanning.SIGNATURES}/today.ndb")
    wait_for(lambda: scanner.number() > number)
    mail.deliver(USER, message("day one", "worm-of-today"))
    found = subjects(mail, USER)
    assert not {"day zero", "day one"} & set(found)
    assert scanner.host.check_output("systemctl show --property MainPID --value letterlock-clamd") == pid
    # A name that clamd itself gives.
    assert scanner.quarantine(USER)[-1]["signature"] == "Test.Today"


@pytest.mark.requirement("MAL-3")
def test_new_signatures_leave_no_gap(mail, scanner):
    """While they change, each message is taken and each malware found: nothing is deferred."""
    before, enough, codes = len(scanner.quarantine(USER)), threading.Event(), []

    def deliver() -> None:
        for number in itertools.takewhile(lambda _: not enough.is_set(), itertools.count()):
            try:
                mail.deliver(USER, message("no gap", EICAR if number % 2 else "clean"))
                codes.append(250)
            except smtplib.SMTPResponseException as refused:
                codes.append(refused.smtp_code)

    with ThreadPoolExecutor(1) as pool:
        delivering = pool.submit(deliver)
        try:
            for number in range(20):
                scanner.add("gap.ndb", scanning.pattern(f"Test.Gap{number}", f"worm-in-no-gap-{number}"))
                if number > 1 and len(codes) > 10:
                    break
        finally:
            enough.set()
        delivering.result()
    assert set(codes) == {250}
    assert len(codes) > 10, "too few to prove anything"
    assert len(scanner.quarantine(USER)) - before == len(codes) // 2


@pytest.mark.requirement("MAL-3")
def test_yara_rules_and_logical_signatures(mail, scanner):
    """The operator's other kinds of databases."""
    scanner.add("own.yar", scanning.yara_rule("OwnRule", "worm-by-rule"))
    scanner.add("own.ldb", scanning.both("Test.Both", "half-a-worm", "its-other-half"))
    for text, signature in (("worm-by-rule", "YARA.OwnRule"), ("half-a-worm its-other-half", "Test.Both")):
        mail.deliver(USER, message("caught", text))
        assert scanner.quarantine(USER)[-1]["signature"] == signature
    mail.deliver(USER, message("half", "half-a-worm"))
    assert "half" in subjects(mail, USER)
    scanner.remove("own.yar")


@pytest.mark.requirement("MAL-3")
def test_a_broken_database_is_told_and_its_version_before_stays(mail, scanner):
    """The unit fails, the metric says so, and what the database found before it finds still."""
    number = scanner.number()
    scanner.add("today.ndb", "this is no signature\n")
    assert not scanner.host.run("systemctl is-failed letterlock-signatures").rc
    assert scanner.number() == number
    metrics = scanner.host.check_output("cat /var/lib/letterlock/metrics/scan.prom")
    assert "letterlock_scan_signature_faults 1" in metrics
    before = len(scanner.quarantine(USER))
    mail.deliver(USER, message("still", "worm-of-today"))
    assert len(scanner.quarantine(USER)) == before + 1
    scanner.add("today.ndb", scanning.pattern("Test.Today", "worm-of-today"))
    assert scanner.host.run("systemctl is-failed letterlock-signatures").rc
    assert "letterlock_scan_signature_faults 0" in scanner.host.check_output("cat /var/lib/letterlock/metrics/scan.prom")


@pytest.mark.requirement("MAL-3")
def test_old_signatures_are_told(scanner):
    """Older than mail_scan_signatures_age_max: the command fails and says so."""
    done = scanner.host.run("faketime -f +400d letterlock scan status")
    assert done.rc == 1
    assert "mail_scan_signatures_age_max" in done.stderr


@pytest.mark.requirement("HARD-1")
def test_the_scanners_are_shut_in(host):
    """Sandboxes, memory limits, and Debian's own units silent."""
    for unit, ceiling in (("letterlock-clamd", 2.0), ("letterlock-lmtp", 2.5), ("letterlock-signatures", 2.5)):
        told = host.check_output(f"systemd-analyze security --no-pager {unit}.service | tail -1")
        assert float(re.search(r": (\d+\.\d+)", told).group(1)) <= ceiling, told
    for unit in ("letterlock-clamd", "letterlock-lmtp"):
        assert host.check_output(f"systemctl show --property MemoryMax --value {unit}") != "infinity"
    for unit in ("clamav-daemon", "clamav-freshclam"):
        assert not host.service(unit).is_running
    assert host.check_output("ps -o user= -C clamd") == "clamav"
    # Accounts lie beside its configuration, and it can't read them.
    assert host.run("runuser -u clamav -- cat /etc/letterlock/dovecot/current/accounts.passdb").rc != 0
    assert oct(host.file("/run/dovecot/lmtp-store").mode) == "0o600"
