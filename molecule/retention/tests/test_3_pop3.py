"""POP3 leaves nothing behind that it fetched, and takes nothing that it did not."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import clients
import pytest
from retention_store import RawPop3, settle

pytestmark = pytest.mark.requirement("RET-2")

DROP = "drop@letterlock.test"
SPOOL = "/srv/mail/.letterlock"
WORK = "/srv/client"


def put(store, user: str, *subjects: str, octets: int = 20) -> None:
    """Put messages into INBOX."""
    store.save(user, "INBOX", 0, *subjects, octets=octets)


def empty(host, user: str) -> None:
    """Start from nothing."""
    host.check_output(f"doveadm expunge -u {user} mailbox INBOX ALL")


@pytest.fixture(autouse=True)
def _start_empty(host):
    for user in (DROP, "day@example.test", "stays@example.test", "clients@letterlock.test"):
        empty(host, user)


def rests(host, store, user: str, *subjects: str) -> None:
    """Fail unless exactly *subjects* stay, when the host has had its time to be wrong."""
    host.check_output("sleep 3; systemctl start letterlock-fetched")
    assert store.subjects(user, "INBOX") == set(subjects)


def test_what_was_not_fetched_whole_stays(host, store, mail):
    """Half a RETR, a RETR without QUIT, a TOP, a look by IMAP, mail that arrived since."""
    put(store, DROP, "one", "two", octets=200_000)
    half = RawPop3(mail, DROP)
    half.say("RETR 1")
    half.stream.recv(1000)
    half.drop()
    rude = RawPop3(mail, DROP)
    rude.say("RETR 1")
    rude.whole()
    rude.drop()
    polite = RawPop3(mail, DROP)
    polite.say("TOP 1 100000")
    polite.whole()
    polite.say("UIDL")
    polite.whole()
    polite.say("QUIT")
    with clients.imap(*mail.login(DROP)) as client:
        client.select()
        client.fetch("1:*", "(BODY[])")
    rests(host, store, DROP, "one", "two")


def test_fetched_mail_goes_at_the_end_of_the_session(host, store, mail):
    """"Leave on server" is no choice of the client's: no DELE, and the mail is gone; the rest is there."""
    put(store, DROP, "one", "two", "three")
    session = RawPop3(mail, DROP)
    session.say("RETR 1")
    session.whole()
    put(store, DROP, "since")
    session.say("RETR 3")
    session.whole()
    assert session.say("QUIT").startswith(b"+OK")
    assert settle(lambda: store.subjects(DROP, "INBOX") == {"two", "since"}), store.subjects(DROP, "INBOX")
    lines = [line for line in store.ledger() if line["kind"] == "expunge" and line["account"] == DROP]
    assert [line["why"] for line in lines[-2:]] == ["fetched by POP3"] * 2
    assert {line["policy"] for line in lines} == {"fetched"}
    assert settle(lambda: not host.check_output(f"find {SPOOL} -type f"))
    # The figures come last.
    counted = 'letterlock_retention_expunged_total{policy="fetched"}'
    assert settle(lambda: counted in host.check_output("cat /var/lib/letterlock/metrics/retention.prom"))


def test_a_crash_after_quit_loses_neither_mail_nor_record(host, store, mail):
    """The host dies between fetch and expunge: the mail is there, and the next start takes it."""
    put(store, DROP, "one", "two")
    host.check_output("systemctl stop letterlock-fetched.path letterlock-fetched.timer")
    session = RawPop3(mail, DROP)
    session.say("RETR 2")
    session.whole()
    session.say("QUIT")
    assert settle(lambda: host.check_output(f"ls {SPOOL}/fetched"))
    host.check_output("systemctl kill --signal KILL dovecot; sleep 3")
    assert settle(lambda: store.host.run(f"doveadm fetch -u {DROP} uid mailbox INBOX ALL").rc == 0)
    assert store.subjects(DROP, "INBOX") == {"one", "two"}
    host.check_output("systemctl start letterlock-fetched.path letterlock-fetched.timer")
    assert settle(lambda: store.subjects(DROP, "INBOX") == {"one"})


def test_a_grace(host, store, mail):
    """expunge_after: 24h from the end of the session, then gone, whatever the client says."""
    put(store, "day@example.test", "one", "two")
    with clients.pop3(*mail.login("day@example.test")) as client:
        client.retr(1)
    rests(host, store, "day@example.test", "one", "two")
    for hours, left in ((23, {"one", "two"}), (25, {"two"})):
        ended = int(time.time()) - hours * 3600
        host.check_output(f"sed -i 's/\"ended\": [0-9]*/\"ended\": {ended}/' {SPOOL}/waiting/*.json")
        assert store.letterlock("retention fetched").rc == 0
        assert store.subjects("day@example.test", "INBOX") == left
    assert not host.check_output(f"find {SPOOL} -type f")


def test_keep_keeps(host, store, mail):
    """An account whose policy says keep."""
    put(store, "stays@example.test", "one")
    with clients.pop3(*mail.login("stays@example.test")) as client:
        client.retr(1)
    rests(host, store, "stays@example.test", "one")


def test_the_clients_own_dele_still_works(store, mail):
    """At once, by Dovecot itself."""
    put(store, DROP, "one", "two")
    with clients.pop3(*mail.login(DROP)) as client:
        client.dele(1)
    assert store.subjects(DROP, "INBOX") == {"two"}


def client_command(name: str, host_name: str, user: str, password: str, *, keep: bool) -> str:
    """Return the shell script that fetches with a real client from Debian."""
    server = f"{host_name}.letterlock.test"
    configurations = {
        "fetchmail": (
            f'poll {server} protocol pop3 port 995 user "{user}" password "{password}" ssl sslcertck sslcertfile {WORK}/ca.crt '
            f'{"keep" if keep else "nokeep"} fetchall mda "cat >>{WORK}/fetched"\n'
        ),
        "mpop": (
            f"account default\nhost {server}\nport 995\ntls on\ntls_starttls off\ntls_trust_file {WORK}/ca.crt\nuser {user}\n"
            f"password {password}\nkeep {'on' if keep else 'off'}\ndelivery mbox {WORK}/fetched\nuidls_file {WORK}/uidls\n"
        ),
        "getmail": (
            f"[retriever]\ntype = SimplePOP3SSLRetriever\nserver = {server}\nport = 995\nusername = {user}\npassword = {password}\n"
            f"ca_certs = {WORK}/ca.crt\n[destination]\ntype = Mboxrd\npath = {WORK}/fetched\n"
            f"[options]\ndelete = {str(not keep).lower()}\nread_all = true\n"
        ),
    }
    commands = {
        "fetchmail": f"fetchmail --fetchmailrc {WORK}/rc --pidfile {WORK}/pid",
        "mpop": f"mpop --file={WORK}/rc",
        "getmail": f"timeout --signal KILL 20 getmail --getmaildir {WORK} --rcfile {WORK}/rc",
    }
    # getmail delivers nothing as root. Now and then it waits forever for its own delivery process. A client that is killed has
    # not said QUIT (one that is asked to end does say it, in the middle of its work): nothing is gone, and it asks again.
    return (
        f"for try in 1 2 3; do find {WORK} -type f ! -name ca.crt -delete; : >{WORK}/fetched; "
        f"printf %s {shlex.quote(configurations[name])} >{WORK}/rc; chmod 600 {WORK}/rc; chown -R nobody {WORK}; "
        f"runuser -u nobody -- env HOME={WORK} FETCHMAILHOME={WORK} {commands[name]} && exit 0; done; exit 1"
    )


@pytest.mark.parametrize("keep", [True, False], ids=["leave on server", "delete"])
@pytest.mark.parametrize("name", ["fetchmail", "mpop", "getmail"])
def test_real_clients(host, store, mail, name, keep):
    """fetchmail, mpop and getmail get every message once, and the server keeps none, whatever they are set to."""
    user = "clients@letterlock.test"
    put(store, user, "alpha", "beta", "gamma")
    authority = Path(mail.ca_file).read_text(encoding="ascii")
    host.check_output(f"mkdir -p {WORK} && printf %s {shlex.quote(authority)} >{WORK}/ca.crt")
    done = host.run(client_command(name, mail.host["name"], user, mail.accounts[user], keep=keep))
    assert done.rc == 0, done
    fetched = host.check_output(f"cat {WORK}/fetched")
    for subject in ("alpha", "beta", "gamma"):
        assert fetched.count(f"Subject: {subject}") == 1, fetched
    assert settle(lambda: store.subjects(user, "INBOX") == set()), store.subjects(user, "INBOX")
