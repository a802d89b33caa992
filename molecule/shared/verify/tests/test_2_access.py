"""What is there to talk to, and who gets in."""

from __future__ import annotations

import imaplib
import json
import poplib
import re
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

PACKAGES = {"imap": "dovecot-imapd", "pop3": "dovecot-pop3d"}
INSIDE = {"imap": 993, "pop3": 995}
REFUSALS = (imaplib.IMAP4.error, poplib.error_proto)
ELSEWHERE = re.compile(r"^(127\.|\[?::1\]?$|%lo)")
NOBODY = "letterlock-verification@localhost"
PASSWD_FILES = "/etc/letterlock/dovecot/current/accounts.passdb /var/lib/letterlock/keys/dovecot/*/imap/*"


def context(server) -> ssl.SSLContext:
    """Return a context that trusts what the inventory's clients trust."""
    made = ssl.create_default_context(cafile=server.ca_file or None)
    # The address is one that the tests reach; names are verified by a test of their own.
    made.check_hostname = False
    return made


def login(server, protocol: str, user: str, password: str):
    """Return a session of *user*; raise one of REFUSALS. Where the certificate is not to be trusted, no password is sent."""
    port = server.tls_ports[protocol]
    try:
        with socket.create_connection((server.address, port), timeout=10) as plain:
            context(server).wrap_socket(plain).close()
    except ssl.SSLCertVerificationError as error:
        pytest.skip(f"not proven: no password is sent to a host whose certificate can't be verified: {error.verify_message}")
    if protocol == "imap":
        client = imaplib.IMAP4_SSL(server.address, port, ssl_context=context(server), timeout=60)
        client.login(user, password)
    else:
        client = poplib.POP3_SSL(server.address, port, context=context(server), timeout=60)
        client.user(user)
        client.pass_(password)
    return client


def leave(client) -> None:
    """End a session without a change: POP3's QUIT would be one."""
    (client.logout if isinstance(client, imaplib.IMAP4) else client.close)()


@pytest.mark.requirement("SURF-1")
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_what_is_not_chosen_is_not_installed(host, server, protocol):
    """A protocol's program is there exactly when the protocol is chosen."""
    chosen = protocol in server.declared["protocols"]
    assert host.package(PACKAGES[protocol]).is_installed == chosen
    assert host.file(f"/usr/lib/dovecot/{protocol}-login").exists == chosen


@pytest.mark.requirement("SURF-2")
def test_only_declared_ports_listen(host, server):
    """Nothing but SSH and what is declared takes connections or datagrams from other hosts."""
    lines = host.check_output("ss -Hlntu | awk '{print $1, $5}'").splitlines()
    seen = {
        (kind, int(local.rpartition(":")[2])) for kind, local in map(str.split, lines) if not ELSEWHERE.match(local.rpartition(":")[0])
    }
    ssh = {("tcp", int(port)) for port in re.findall(r"^port (\d+)", host.run("sshd -T").stdout, re.MULTILINE)} or {("tcp", 22)}
    # 143 and 110 are told by the requirement of their own.
    seen -= {("tcp", 143), ("tcp", 110)}
    wanted = ssh | {("tcp", INSIDE[protocol]) for protocol in server.declared["protocols"]}
    if server.declared["lmtp_port"]:
        wanted.add(("tcp", server.declared["lmtp_port"]))
    assert seen <= wanted, f"not declared: {sorted(seen - wanted)}"
    assert wanted - ssh <= seen, f"declared and not there: {sorted(wanted - ssh - seen)}"


@pytest.mark.requirement("AUTH-1")
def test_passwords_are_argon2id_only(host, server):
    """No account has another scheme."""
    schemes = host.check_output(f"cat {PASSWD_FILES} 2>/dev/null | grep -v '^#' | cut -d: -f2 | cut -d'$' -f1,2 | sort | uniq -c")
    for line in schemes.splitlines():
        assert line.split()[1] == "{ARGON2ID}$argon2id", f"another scheme: {line.strip()}"


@pytest.mark.requirement("AUTH-2")
def test_a_wrong_password_is_refused_late(server):
    """For an account that does not exist, as for one that does."""

    def refused(protocol: str) -> tuple[float, str]:
        started = time.monotonic()
        with pytest.raises(REFUSALS) as refusal:
            login(server, protocol, NOBODY, "not-the-password")
        return time.monotonic() - started, str(refusal.value)

    # At once: a second one after the first would be refused later still.
    with ThreadPoolExecutor() as pool:
        for protocol, (seconds, said) in zip(server.tls_ports, pool.map(refused, server.tls_ports), strict=True):
            server.evidence.add(f"login as {NOBODY} over {protocol}, {seconds:.1f} s", 1, said)
            assert seconds >= 1.0
            assert "uthentication failed" in said


@pytest.mark.requirement("AUTH-3")
def test_the_account_that_was_given_logs_in(server, account):
    """On each protocol that is chosen."""
    for protocol in server.tls_ports:
        client = login(server, protocol, *account)
        server.evidence.add(f"login as {account[0]} over {protocol}", 0, "let in")
        leave(client)


@pytest.mark.requirement("AUTH-4")
def test_sessions_are_limited(host, server):
    """As the inventory says: for an account from one address."""
    most = server.declared["sessions_per_account_and_address"]
    shown = host.check_output("doveconf -n")
    assert len(re.findall(rf"mail_max_userip_connections = {most}$", shown, re.MULTILINE)) >= 1, shown[:500]


@pytest.mark.requirement("AUTH-5")
def test_the_journal_says_who_and_from_where(host, server, account):
    """A login leaves account, address and TLS in the journal."""
    protocol = next(iter(server.tls_ports))
    leave(login(server, protocol, *account))
    said = host.check_output("journalctl --unit dovecot --since -5min --no-pager --output cat")
    assert [line for line in said.splitlines() if f"user=<{account[0]}>" in line and "rip=" in line and "TLS" in line]


@pytest.mark.requirement("AUTH-6")
def test_guessers_are_shut_out(host, server):
    """fail2ban runs, and its jail for mail reads Dovecot's journal."""
    server.insist_on("bans", "mail_fail2ban is off")
    status = host.run("fail2ban-client status letterlock")
    assert status.rc == 0, status.stderr or status.stdout
    assert "_SYSTEMD_UNIT=dovecot.service" in status.stdout


@pytest.mark.requirement("SURF-3")
def test_hidden_capabilities_are_not_offered(server, account):
    """COMPRESS, which is off by default, is not announced."""
    if "imap" not in server.tls_ports:
        pytest.skip("not claimed: IMAP is not chosen")
    client = login(server, "imap", *account)
    capabilities = client.capability()[1][0].decode().split()
    server.evidence.add("CAPABILITY", 0, json.dumps(capabilities))
    leave(client)
    assert "COMPRESS=DEFLATE" not in capabilities
