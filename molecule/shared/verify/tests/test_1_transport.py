"""What anybody on the network finds: which ports answer, in which TLS, with which certificate."""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import ssl

import pytest
from cryptography import x509

pytestmark = pytest.mark.requirement("TLS-1")

CLEARTEXT = {"imap": 143, "pop3": 110}
WEAK = ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-CCM"]
DAYS_LEFT = 7
CONNECT_SECONDS = 5


def answers(address: str, port: int) -> bool:
    """Tell whether anything takes a connection."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def speaks_tls(address: str, port: int) -> bool:
    """Tell whether a client that trusts anybody gets a session; who only knocked would leave an error in Dovecot's journal."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as plain, context.wrap_socket(plain) as stream:
            return stream.recv(1000).startswith(b"220")
    except OSError:
        return False


def answer_to(address: str, port: int, text: bytes) -> bytes:
    """Return what is answered to *text* in cleartext: nothing, where the connection is closed."""
    with socket.create_connection((address, port), timeout=10) as plain, contextlib.suppress(ConnectionError):
        plain.sendall(text)
        return plain.recv(1000)
    return b""


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_no_cleartext_port_answers(server, protocol):
    """From where the tests run, and on the host's own loopback."""
    port = CLEARTEXT[protocol]
    assert not answers(server.address, port), f"port {port} takes connections"


def test_nothing_on_the_host_listens_in_cleartext(host, server):
    """143 and 110 are open on no address, loopback neither."""
    listening = host.check_output("ss -Hltn | awk '{print $4}'").split()
    assert not [each for each in listening if int(each.rpartition(":")[2]) in CLEARTEXT.values()], listening


def test_cleartext_on_a_tls_port_gets_no_answer(server):
    """A client that forgets TLS gets neither greeting nor login."""
    for port in server.tls_ports.values():
        assert b"OK" not in answer_to(server.address, port, b"a LOGIN x y\r\nUSER x\r\n")


@pytest.mark.requirement("TLS-2")
def test_old_tls_is_refused(server):
    """TLS 1.0 and 1.1 are refused; 1.2 is where the profile has it; 1.3 always works."""
    for port in server.tls_ports.values():
        for old in ("-tls1", "-tls1_1"):
            # Level 0, or the client itself would refuse to speak it and prove nothing.
            assert server.refuses(port, old, "-cipher", "ALL:@SECLEVEL=0"), f"{old} is spoken on port {port}"
        assert server.refuses(port, "-tls1_2") == (server.declared["tls_profile"] == "modern")
        assert not server.refuses(port, "-tls1_3")


@pytest.mark.requirement("TLS-3")
@pytest.mark.parametrize("cipher", WEAK)
def test_weak_ciphers_are_refused(server, cipher):
    """No CBC, no CCM, no key exchange without forward secrecy."""
    for port in server.tls_ports.values():
        assert server.refuses(port, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0"), f"{cipher} is taken on port {port}"


@pytest.mark.requirement("TLS-5")
def test_no_compression_no_renegotiation(server):
    """TLS compression is off and a client can't ask for a new handshake."""
    for port in server.tls_ports.values():
        assert "Compression: NONE" in server.s_client(port).stdout
        if server.declared["tls_profile"] == "intermediate":
            # A line "R" asks s_client to renegotiate; the input stays open until it has.
            done = server.s_client(port, "-tls1_2", say="R\n", hold=2)
            assert "RENEGOTIATING" in done.stdout + done.stderr
            assert "no renegotiation" in done.stderr, done.stderr


@pytest.mark.requirement("TLS-5")
def test_starttls_is_not_offered(server):
    """There is no upgrade to strip: neither greeting names one."""
    for protocol, port in server.tls_ports.items():
        ask = "a CAPABILITY\r\nb LOGOUT\r\n" if protocol == "imap" else "CAPA\r\nQUIT\r\n"
        said = server.s_client(port, "-quiet", say=ask, hold=1).stdout.upper()
        assert ("CAPABILITY" if protocol == "imap" else "+OK") in said, said
        assert "STARTTLS" not in said
        assert not re.search(r"^STLS\s*$", said, re.MULTILINE), said


@pytest.mark.requirement("TLS-4")
def test_the_certificate_is_verified_by_each_name(server):
    """For each name and address that the inventory gives to clients, by the CA that they trust; for another name it is not."""
    for port in server.tls_ports.values():
        for name in server.names:
            kind = "-verify_ip" if re.fullmatch(r"[0-9.]+|[0-9a-f:]+", name) else "-verify_hostname"
            said = server.s_client(port, kind, name, "-verify_return_error")
            assert "Verify return code: 0 (ok)" in said.stdout, f"{name}: {said.stdout[-500:]}{said.stderr[-500:]}"
        other = server.s_client(port, "-verify_hostname", "other.invalid", "-verify_return_error")
        assert "Verify return code: 0 (ok)" not in other.stdout


@pytest.mark.requirement("TLS-4")
def test_the_certificate_lasts(server, figure):
    """It has days left, more than a pipeline that renews it every few days needs."""
    for protocol, port in server.tls_ports.items():
        shown = server.s_client(port, "-showcerts").stdout
        pem = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", shown, re.DOTALL)
        assert pem, shown[-500:]
        left = x509.load_pem_x509_certificate(pem.group().encode()).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        figure("Certificates, time left", protocol, left.days, "days", least=DAYS_LEFT)
        assert left.days >= DAYS_LEFT, f"the certificate on port {port} ends in {left.days} days"


@pytest.mark.requirement("TLS-6")
def test_lmtp_speaks_tls_to_named_networks_only(host, server):
    """A client that forgets TLS gets no greeting, and the host's own loopback, which is no named network, no answer."""
    server.insist_on("lmtp_port", "LMTP over TCP is off")
    port = server.declared["lmtp_port"]
    assert host.run(f"timeout 4 bash -c '</dev/tcp/127.0.0.1/{port}'").rc == 124
    if not speaks_tls(server.address, server.ports["lmtp"]):
        pytest.skip("not proven: LMTP gives no TLS session here, as it should for an address that is in none of the networks")
    assert b"220" not in answer_to(server.address, server.ports["lmtp"], b"LHLO client\r\n")
