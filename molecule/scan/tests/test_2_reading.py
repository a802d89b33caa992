"""Mail that became malware after its delivery: the gate takes it before a session's first command, the sweep without any session."""

from __future__ import annotations

import imaplib
import poplib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import clients
import pytest
import scanning
from conftest import wait_for
from scanning import EICAR, message

pytestmark = pytest.mark.requirement("MAL-2")

USER, NEIGHBOUR, POP = "ada@letterlock.test", "bob@letterlock.test", "grace@example.test"
# Asks the gate as Dovecot does, and prints the shortest time, in seconds.
ASK = """python3 - <<'END'
import socket, time
best = 9
for _ in range(20):
    client, served = socket.socketpair()
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect("/run/letterlock-gate/imap")
        socket.send_fds(gate, [b"VERSION\\tscript-login\\t1\\t0\\n::1\\t::1\\t{account}\\tuid=1\\n"], [served.fileno()])
        assert gate.recv(99) == b"{account}\\tuid=1\\n"
    best = min(best, time.monotonic() - begun)
print(best)
END"""
# Brings messages into an account that no scanner has seen: by an import, and into a Maildir, where that takes minutes, as files.
FILL = {"sdbox": """python3 - <<'END'
import os, shutil, subprocess
for folder in ("cur", "new", "tmp"):
    os.makedirs(f"/srv/fill/{{folder}}")
for number in range({count}):
    with open(f"/srv/fill/cur/{{number}}.M1.fill:2,", "w") as file:
        file.write(f"Subject: {{number}}\\n\\nNothing.\\n")
subprocess.run(["chown", "-R", "vmail:", "/srv/fill"], check=True)
done = subprocess.run(["doveadm", "-o", "mail_fsync=never", "import", "-u", "{account}", "maildir:/srv/fill", "", "all"])
shutil.rmtree("/srv/fill")
raise SystemExit(done.returncode)
END""", "maildir": """setpriv --reuid vmail --regid vmail --clear-groups python3 - <<'END'
import os
os.umask(0o077)
home = "{root}/" + "/".join(reversed("{account}".split("@")))
for folder in ("cur", "new", "tmp"):
    os.makedirs(f"{{home}}/Maildir/{{folder}}", exist_ok=True)
for number in range({count}):
    with open(f"{{home}}/Maildir/cur/{{number}}.M1.fill:2,", "w") as file:
        file.write(f"Subject: {{number}}\\n\\nNothing.\\n")
END
doveadm mailbox status -u {account} messages INBOX"""}
# Has Dovecot encrypt with a key that nobody has the other half of.
SEALS = {
    "2.3": lambda key: [
        {"name": "mail_plugins", "value": "$mail_plugins mail_crypt"},
        {"section": "plugin", "name": "mail_crypt_global_public_key", "value": key},
        {"section": "plugin", "name": "mail_crypt_save_version", "value": "2"},
    ],
    "2.4": lambda key: [
        {"section": "mail_plugins", "name": "mail_crypt", "value": "yes"},
        {"name": "crypt_global_public_key_file", "value": f"inline:{key}"},
    ],
}
# Takes all that pipes of root's may hold on the whole machine, as several thousand sessions do, for two minutes.
USE_UP_PIPES = """systemd-run --quiet --unit pipes --service-type notify --property NotifyAccess=all --property CapabilityBoundingSet= \
python3 -c 'import fcntl, os, subprocess, time
held, full, end = [], False, time.monotonic() + 120
while time.monotonic() < end:
    try:
        held += [os.pipe()]
        fcntl.fcntl(held[-1][1], fcntl.F_SETPIPE_SZ, 1 << 20)
    except PermissionError:
        for descriptor in held.pop():
            os.close(descriptor)
        full = full or not subprocess.run(["systemd-notify", "--ready"], check=True).returncode
        time.sleep(0.05)'"""
LARGE = "large@example.test"
FOLDERS = ["Sent", "Trash", "Entw&APw-rfe"]


def empty(mail, user: str) -> None:
    """Remove all mail of INBOX."""
    with clients.imap(*mail.login(user)) as client:
        if client.select("INBOX")[1] != [b"0"]:
            client.store("1:*", "+FLAGS", "(\\Deleted)")
            client.expunge()


def rows(client) -> dict[bytes, tuple]:
    r"""Return {subject: (UID, flags)} of the selected mailbox, but for \Seen, which POP3's RETR sets."""
    _, answers = client.uid("FETCH", "1:*", "(UID FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
    return {
        answer[1].split(b":", 1)[1].strip(): (
            re.search(rb"UID (\d+)", answer[0]).group(1),
            frozenset(re.search(rb"FLAGS \((.*?)\)", answer[0]).group(1).split()) - {b"\\Recent", b"\\Seen"},
        )
        for answer in answers if isinstance(answer, tuple)
    }


def sweep(host) -> str:
    """Sweep by the service; return what it said at last."""
    host.run("systemctl start letterlock-sweep")
    return [line for line in host.check_output("journalctl --unit letterlock-sweep --no-pager --output cat").splitlines()
            if line.startswith("sweep by")][-1]


def test_the_gate_takes_what_became_malware(mail, scanner, no_sweep):
    """POP3 RETR, IMAP FETCH and partial FETCH in new sessions never yield it; its clean neighbours keep UID and flags."""
    empty(mail, USER)
    secret = "late-worm-one"
    bad = scanning.with_attachment("late", secret.encode() * 200)
    for text in (message("first"), bad, message("second")):
        mail.deliver(USER, text)
    with clients.imap(*mail.login(USER)) as client:
        client.select("INBOX")
        client.store("1", "+FLAGS", "(\\Flagged own)")
        client.store("2", "+FLAGS", "(\\Answered)")
        for folder in FOLDERS:
            client.create(folder)
            client.append(folder, "(\\Seen)", None, bad)
        before = rows(client)
    assert set(before) == {b"first", b"late", b"second"}
    scanner.add("late.hdb", scanning.hash_line("Test.Late", secret.encode() * 200))
    # The first session after that, by POP3.
    with clients.pop3(*mail.login(USER)) as client:
        texts = [b"\n".join(client.retr(number + 1)[1]) for number in range(client.stat()[0])]
    assert not any(b"Subject: late" in text for text in texts)
    with clients.imap(*mail.login(USER)) as client:
        client.select("INBOX")
        after = rows(client)
        for uid in (before[b"late"][0].decode(), "1:*"):
            _, answers = client.uid("FETCH", uid, "(BODY.PEEK[2]<0.1024>)")
            assert not any(b"bGF0ZS13b3Jt" in answer[1] for answer in answers if isinstance(answer, tuple))
        for folder in FOLDERS:
            assert client.select(folder)[1] == [b"0"], folder
    notice = [subject for subject in after if subject.startswith(b"Held back")]
    assert {subject: row for subject, row in after.items() if subject not in notice} == {
        subject: row for subject, row in before.items() if subject != b"late"
    }
    items = scanner.quarantine(USER)
    assert sorted(item["mailbox"] for item in items if item["signature"] == "Test.Late") == sorted(["INBOX", "Sent", "Trash", "Entwürfe"])
    (item,) = [item for item in items if item["signature"] == "Test.Late" and item["mailbox"] == "INBOX"]
    assert (item["stage"], item["flags"]) == ("gate", ["\\Answered"])


@pytest.mark.requirement("MAL-4")
def test_a_release_keeps_mailbox_flags_and_dates(mail, scanner, no_sweep):
    """A false positive of a folder with a UTF-8 name: back there, and not taken again by gate or sweep for the same signature."""
    (item,) = [item for item in scanner.quarantine(USER) if item["mailbox"] == "Entwürfe"]
    released = scanner.with_identity(f"release {item['identity']}")
    assert released.rc == 0, released.stderr
    for _ in range(2):
        with clients.imap(*mail.login(USER)) as client:
            client.select(FOLDERS[2])
            _, answers = client.fetch("1", "(FLAGS INTERNALDATE)")
            assert b"\\Seen" in answers[0]
            shown = imaplib.Internaldate2tuple(answers[0])
            assert abs(time.mktime(shown) - item["received"]) < 2
            assert client.list(pattern="Released*")[1] == [None]
        scanner.host.check_output("rm -f /var/lib/letterlock/scan/judged.sqlite*; systemctl restart letterlock-gate.socket")


def test_partial_fetches_of_a_session_that_comes_late(mail, scanner, no_sweep):
    """Byte ranges of an attachment are what no firewall can judge; here there is none to fetch."""
    body = b"another late worm" * 4000
    mail.deliver(NEIGHBOUR, scanning.with_attachment("pieces", body))
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.select("INBOX")
        (uid,) = client.uid("SEARCH", "SUBJECT", "pieces")[1][0].split()
        assert b"YW5vdGhlciBs" in client.uid("FETCH", uid, "(BODY.PEEK[2]<0.1024>)")[1][0][1]
    scanner.add("pieces.hdb", scanning.hash_line("Test.Pieces", body))
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.select("INBOX")
        for start in range(0, 8192, 1024):
            assert client.uid("FETCH", uid, f"(BODY.PEEK[2]<{start}.1024>)")[1] == [None]


@pytest.mark.requirement("MAL-2", "RET-2")
def test_the_relay_of_retention_stands_behind_the_gate(mail, scanner):
    """What POP3 fetched goes, as without a gate."""
    mail.deliver(POP, message("fetched"))
    with clients.pop3(*mail.login(POP)) as client:
        for number in range(client.stat()[0]):
            client.retr(number + 1)

    def is_gone() -> bool:
        with clients.pop3(*mail.login(POP)) as client:
            return client.stat()[0] == 0

    wait_for(is_gone)


def test_a_login_without_news_looks_at_no_message(mail, scanner, no_sweep):
    """Nothing new: Dovecot is asked nothing, and the gate's answer takes milliseconds. A flag is no news, a message is."""
    host = scanner.host
    for _ in range(2):
        # The first makes Dovecot's caches, and what changed within this second may change again without a trace.
        with clients.imap(*mail.login(NEIGHBOUR)):
            pass
        time.sleep(1.2)
    with clients.imap(*mail.login(NEIGHBOUR)):
        pass
    asked = "journalctl --sync; journalctl --unit dovecot --no-pager --output cat | grep -c 'mailbox status'"
    before = int(host.check_output(asked))
    took = float(host.check_output(ASK.format(account=NEIGHBOUR)))
    with clients.imap(*mail.login(NEIGHBOUR)):
        pass
    assert int(host.check_output(asked)) == before
    assert took < 0.005
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.append("INBOX", None, None, message("news"))
    with clients.imap(*mail.login(NEIGHBOUR)):
        pass
    assert int(host.check_output(asked)) == before + 1


def test_without_a_scanner_what_was_never_judged_is_not_served(mail, scanner, no_sweep):
    """With clamd gone a session with unjudged mail is refused for now, by IMAP and POP3; others go on."""
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.append("INBOX", None, None, message("unjudged"))
    # Of more than a session's budget is enough for, a part would be as unjudged as the neighbour's.
    empty(mail, USER)
    mail.deliver(USER, message("judged"))
    with clients.imap(*mail.login(USER)):
        pass
    scanner.host.check_output("systemctl stop letterlock-clamd")
    try:
        with clients.imap(*mail.login(USER)) as client:
            assert client.select("INBOX")[0] == "OK"
        with pytest.raises(imaplib.IMAP4.abort, match="UNAVAILABLE"), clients.imap(*mail.login(NEIGHBOUR)) as client:
            client.select("INBOX")
        with pytest.raises(poplib.error_proto, match="SYS/TEMP"), clients.pop3(*mail.login(NEIGHBOUR)):
            pass
    finally:
        scanner.host.check_output("systemctl start letterlock-clamd")
        wait_for(lambda: scanner.host.run("letterlock scan status").rc == 0)
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        assert client.select("INBOX")[0] == "OK"


def test_sessions_that_begin_together(mail, scanner, no_sweep):
    """As a client opens several: what became malware is in quarantine once, with one notice, and none of them sees it."""
    def subjects() -> set[bytes]:
        with clients.imap(*mail.login(NEIGHBOUR)) as client:
            client.select("INBOX")
            return set(rows(client))

    empty(mail, NEIGHBOUR)
    mail.deliver(NEIGHBOUR, message("for all of them", "worm-for-many"))
    scanner.add("many.ndb", scanning.pattern("Test.Many", "worm-for-many"))
    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda _: subjects(), range(6)))
    assert not any(b"for all of them" in each for each in seen)
    assert len([item for item in scanner.quarantine(NEIGHBOUR) if item["signature"] == "Test.Many"]) == 1
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        assert client.select("INBOX") == ("OK", [b"1"])


def test_a_session_while_pipes_are_used_up(mail, scanner, no_sweep):
    """What thousands of other sessions take of the machine's pipes keeps no session from beginning."""
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.append("INBOX", None, None, message("through a small pipe", "y" * 200_000))
        client.append("INBOX", None, None, message("and this, too", EICAR))
    scanner.host.check_output(USE_UP_PIPES)
    try:
        with clients.imap(*mail.login(NEIGHBOUR)) as client:
            client.select("INBOX")
            found = rows(client).keys()
    finally:
        scanner.host.check_output("systemctl stop pipes")
    assert b"through a small pipe" in found
    assert b"and this, too" not in found


def test_over_budget_the_session_goes_on_and_the_sweep_takes_the_rest(mail, scanner, no_sweep, site):
    """A budget of a moment: the session begins, and the sweep takes the rest; with `wait` it waits."""
    for number in range(60):
        mail.deliver(NEIGHBOUR, message(f"many-{number}", "z" * 2000))
    site.converge(mail_scan_gate_budget="1ms")
    scanner.add("more.ndb", scanning.pattern("Test.More", "no message has this"))
    begun = time.monotonic()
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        assert client.select("INBOX")[0] == "OK"
    assert time.monotonic() - begun < 5
    site.converge(mail_scan_gate_budget="1ms", mail_scan_gate_over_budget="wait")
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        assert client.select("INBOX")[0] == "OK"
    site.converge()


def test_a_mailbox_of_100000(mail, scanner, no_sweep, declared, site):
    """None of it ever judged: within the budget, and the time to list it, a session begins, without the newest, which is malware."""
    host, count = scanner.host, 100_000
    site.converge(mail_scan_gate_budget="2s")
    no_sweep()
    mail_format = "maildir" if "maildir" in host.check_output("doveconf -n") else "sdbox"
    host.check_output(FILL[mail_format].format(account=LARGE, count=count, root=declared["mail_root"]))
    mail.deliver(LARGE, message("newest", "worm-at-the-top"))
    scanner.add("top.ndb", scanning.pattern("Test.Top", "worm-at-the-top"))
    try:
        begun = time.monotonic()
        with clients.imap(*mail.login(LARGE)) as client:
            assert time.monotonic() - begun < 30
            # And the notice.
            assert client.select("INBOX", readonly=True) == ("OK", [b"%d" % (count + 1)])
        assert scanner.quarantine(LARGE)[-1]["signature"] == "Test.Top"
        peak = host.check_output("grep VmHWM /proc/$(systemctl show --property MainPID --value letterlock-gate)/status")
        assert int(peak.split()[1]) < 500_000, "kB"
    finally:
        host.check_output(f"doveadm expunge -u {LARGE} mailbox INBOX all")
        site.converge()


def test_the_sweep_takes_what_no_session_asks_for(mail, scanner):
    """Without a login, by the event of new signatures; an open session sees EXPUNGE, and a second sweep judges nothing."""
    mail.deliver(USER, message("swept", "sweep-worm"))
    mail.deliver("held@letterlock.test", message("swept, held", "sweep-worm"))
    with clients.imap(*mail.login(USER)) as client:
        client.select("INBOX")
        (number,) = client.search(None, "BODY", "sweep-worm")[1][0].split()
        scanner.add("sweep.ndb", scanning.pattern("Test.Sweep", "sweep-worm"))
        wait_for(lambda: any(item["signature"] == "Test.Sweep" for item in scanner.quarantine(USER)), 60)
        wait_for(lambda: scanner.host.run("systemctl is-active letterlock-sweep").stdout.strip() == "inactive", 60)
        client.noop()
        assert number in client.response("EXPUNGE")[1]
        client.select("INBOX")
        assert client.search(None, "BODY", "sweep-worm")[1] == [b""]
    (item,) = [item for item in scanner.quarantine(USER) if item["signature"] == "Test.Sweep"]
    assert item["stage"] == "sweep"
    # A hold keeps what the user may not see.
    assert [item["signature"] for item in scanner.quarantine("held@letterlock.test")][-1] == "Test.Sweep"
    said = sweep(scanner.host)
    # The notice came in since.
    judged = int(re.search(r"(\d+) messages judged", said).group(1))
    assert judged <= 4, said
    again = sweep(scanner.host)
    assert " 0 messages judged" in again, again
    assert " 0 failures" in again
    assert "letterlock_scan_last_sweep_timestamp_seconds" in scanner.host.check_output("cat /var/lib/letterlock/metrics/scan.prom")


def test_the_sweep_gives_way_to_people(mail, scanner, no_sweep):
    """While somebody waits for a delivery or a login the sweep judges nothing; afterwards it goes on."""
    host = scanner.host
    for number in range(5):
        mail.deliver(NEIGHBOUR, message(f"later-{number}", "w" * 100))
    scanner.add("way.ndb", scanning.pattern("Test.Way", "no message has this, either"))
    # As the front and the gate hold it, and for less than the sweep's patience.
    waits = "(flock --shared /var/lib/letterlock/scan/people sleep 4; touch /root/served)"
    said = host.check_output(f"rm -f /root/served; {waits} & sleep 0.5; letterlock scan sweep && stat /root/served")
    assert int(re.search(r"(\d+) messages judged", said).group(1)) >= 5
    host.check_output("rm /root/served")


def test_a_sweep_goes_on_where_it_was_killed(mail, scanner, no_sweep):
    """Killed in the middle: what was judged stays so, nothing is taken twice or lost."""
    for number in range(30):
        mail.deliver(USER, scanning.with_attachment(f"block-{number}", bytes([number]) * 3_000_000))
    mail.deliver(USER, message("killed sweep", "kill-worm"))
    scanner.add("kill.ndb", scanning.pattern("Test.Kill", "kill-worm"))
    run = "systemd-run --quiet --unit sweep-test --collect --property SupplementaryGroups=clamav letterlock scan sweep"
    scanner.host.check_output(f"{run} && sleep 1 && systemctl kill --signal KILL sweep-test; sleep 0.5")
    done = scanner.host.run("letterlock scan sweep")
    assert done.rc == 0, done.stderr
    assert len([item for item in scanner.quarantine(USER) if item["signature"] == "Test.Kill"]) == 1
    again = scanner.host.check_output("letterlock scan sweep")
    assert "0 taken" in again


def test_what_can_not_be_read_is_not_taken_for_clean(mail, scanner, no_sweep, declared):
    """A file that Dovecot can't open, among others: told, not served, and judged as soon as it can be read; its neighbours are judged."""
    host = scanner.host
    mail.deliver(NEIGHBOUR, message("closed", "closed-worm"))
    domain_last = "/".join(reversed(NEIGHBOUR.split("@")))
    file = host.check_output(
        f"find {declared['mail_root']}/{domain_last} -type f '(' -name 'u.*' -o -path '*/new/*' ')' -printf '%T@ %p\\n' | sort -n | tail -1"
    ).split(" ", 1)[1]
    for number in range(5):
        mail.deliver(NEIGHBOUR, message(f"after-{number}", "y" * 300 * number))
    host.check_output(f"chmod 000 {file}")
    try:
        scanner.add("closed.ndb", scanning.pattern("Test.Closed", "closed-worm"))
        done = host.run("letterlock scan sweep")
        assert (done.rc, " 1 failures" in done.stdout) == (1, True), done
        with pytest.raises(imaplib.IMAP4.abort, match="UNAVAILABLE"), clients.imap(*mail.login(NEIGHBOUR)) as client:
            client.select("INBOX")
    finally:
        host.check_output(f"chmod 600 {file}")
    done = host.check_output("letterlock scan sweep")
    assert re.search(r"\b[01] messages judged, 1 taken, 0 failures", done), done
    assert scanner.quarantine(NEIGHBOUR)[-1]["signature"] == "Test.Closed"


@pytest.mark.requirement("MAL-2", "REST-1")
def test_mail_that_its_user_alone_can_read(mail, scanner, no_sweep, site):
    """The sweep passes it over and says so; the gate serves nothing that was never judged."""
    host = scanner.host
    host.check_output("openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout >/root/public.pem")
    key = host.check_output("base64 --wrap 0 /root/public.pem")
    site.converge(dovecot_settings=SEALS[host.check_output("dovecot --version")[:3]](key))
    host.check_output(f"printf 'Subject: sealed\\n\\nx\\n' | doveadm save -u {NEIGHBOUR}")
    sealed = host.check_output(f"doveadm -f flow fetch -u {NEIGHBOUR} uid mailbox INBOX '*'").partition("=")[2]
    done = host.check_output("letterlock scan sweep")
    assert " 0 failures" in done
    assert "passed over 1 messages that are encrypted" in done
    with pytest.raises(imaplib.IMAP4.abort, match="UNAVAILABLE"), clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.select("INBOX")
    host.check_output(f"doveadm expunge -u {NEIGHBOUR} mailbox INBOX uid {sealed}")
    site.converge()


def test_expunged_between_scan_and_move(mail, scanner, no_sweep):
    """A message that its user expunges while others are judged is no fault."""
    scanner.add("race.ndb", scanning.pattern("Test.Race", "race-worm"))
    with clients.imap(*mail.login(USER)) as client:
        client.select("INBOX")
        for number in range(5):
            client.append("INBOX", None, None, message(f"race-{number}", "race-worm"))
        client.noop()
        process = scanner.host.run("systemd-run --quiet --unit sweep-race --collect letterlock scan sweep")
        assert process.rc == 0
        found = client.search(None, "SUBJECT", "race-")[1][0].split()
        if found:
            client.store(b",".join(found).decode(), "+FLAGS", "(\\Deleted)")
            client.expunge()
    wait_for(lambda: scanner.host.run("systemctl is-active sweep-race").stdout.strip() != "active", 60)
    done = scanner.host.run("letterlock scan sweep")
    assert done.rc == 0, done.stderr
    with clients.imap(*mail.login(USER)) as client:
        client.select("INBOX")
        assert client.search(None, "BODY", "race-worm")[1] == [b""]


def test_a_full_quarantine_serves_nothing(mail, scanner, no_sweep):
    """No room for the sealed file: the session is refused, the message stays where it is, and is taken when there is room."""
    host, place = scanner.host, "/var/lib/letterlock/quarantine"
    mail.deliver(NEIGHBOUR, message("no room here", "full-worm"))
    scanner.add("full.ndb", scanning.pattern("Test.Full", "full-worm"))
    host.check_output("systemctl stop letterlock-quarantine.path letterlock-gate.socket")
    host.check_output(f"mount -t tmpfs -o size=4k,mode=700 tmpfs {place}")
    try:
        host.check_output(f"head -c 4096 /dev/zero >{place}/full && systemctl start letterlock-gate.socket")
        with pytest.raises(imaplib.IMAP4.abort, match="UNAVAILABLE"), clients.imap(*mail.login(NEIGHBOUR)) as client:
            client.select("INBOX")
    finally:
        host.check_output("systemctl stop letterlock-gate.socket")
        host.check_output(f"umount {place} && systemctl start letterlock-gate.socket letterlock-quarantine.path")
    with clients.imap(*mail.login(NEIGHBOUR)) as client:
        client.select("INBOX")
        assert client.search(None, "BODY", "full-worm")[1] == [b""]
    assert scanner.quarantine(NEIGHBOUR)[-1]["signature"] == "Test.Full"
