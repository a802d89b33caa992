"""Mail crosses the network only under modern TLS, and nothing else listens."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess

import clients
import pytest

PORTS = {"imap": "imaps_port", "pop3": "pop3s_port"}
INSIDE = {"imap": 993, "pop3": 995}
PACKAGES = {"imap": "dovecot-imapd", "pop3": "dovecot-pop3d"}


def s_client(mail, port: int, *options: str, say: str = "") -> subprocess.CompletedProcess:
    """Run OpenSSL's own client against the host."""
    command = ["openssl", "s_client", "-connect", f"{mail.host['address']}:{port}", "-CAfile", mail.ca_file, *options]
    return subprocess.run(command, input=say, capture_output=True, text=True, check=False, timeout=60)


def ports_of(mail, declared: dict) -> list[int]:
    """Return the published TLS ports of the chosen protocols."""
    return [mail.host[PORTS[protocol]] for protocol in declared["protocols"]]


def test_only_declared_ports_listen(host, declared):
    """Cleartext ports are not open, on loopback neither."""
    listening = {int(port) for port in re.findall(r":(\d+)\s", host.check_output("ss -Hltn | awk '{print $4\" \"}'"))}
    wanted = {22} | {INSIDE[protocol] for protocol in declared["protocols"]}
    if declared["lmtp_port"]:
        wanted.add(declared["lmtp_port"])
    assert listening == wanted


@pytest.mark.parametrize("port", [110, 143])
def test_cleartext_ports_are_closed(host, port):
    """A connection is refused on every address that the host has."""
    addresses = ["127.0.0.1", "::1", *host.interface("eth0").addresses]
    for address in addresses:
        result = host.run(f"timeout 5 bash -c '</dev/tcp/{address.split('%')[0]}/{port}'")
        assert result.rc == 1, f"{address}:{port}: {result}"


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_what_is_not_chosen_is_not_installed(host, declared, protocol):
    """A protocol's program is there exactly when the protocol is chosen."""
    assert host.package(PACKAGES[protocol]).is_installed == (protocol in declared["protocols"])
    assert host.file(f"/usr/lib/dovecot/{protocol}-login").exists == (protocol in declared["protocols"])


def test_old_tls_is_refused(host, mail, declared):
    """TLS 1.0 and 1.1 are refused; 1.2 is where the profile has it; 1.3 always works."""
    for port in ports_of(mail, declared):
        for old in ("-tls1", "-tls1_1"):
            # Level 0, or the client itself would refuse to speak it and prove nothing.
            result = s_client(mail, port, old, "-cipher", "ALL:@SECLEVEL=0")
            assert result.returncode != 0, result.stdout
            assert "Cipher is (NONE)" in result.stdout, result.stdout
        assert (s_client(mail, port, "-tls1_2").returncode == 0) == (declared["tls_profile"] == "intermediate")
        assert "Verify return code: 0 (ok)" in s_client(mail, port, "-tls1_3").stdout
    # It was the host that refused, for the version.
    assert "unsupported protocol" in host.check_output("journalctl --unit dovecot --no-pager --since -1min")


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-CCM"])
def test_weak_ciphers_are_refused(mail, declared, cipher):
    """No CBC, no CCM, no key exchange without forward secrecy."""
    for port in ports_of(mail, declared):
        result = s_client(mail, port, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
        assert result.returncode != 0, result.stdout


def test_no_compression_no_renegotiation(mail, declared):
    """TLS compression is off and a client can't ask for a new handshake."""
    for port in ports_of(mail, declared):
        assert "Compression: NONE" in s_client(mail, port).stdout
        if declared["tls_profile"] == "intermediate":
            # A line "R" asks s_client to renegotiate; the input stays open until it has.
            result = subprocess.run(
                f"(sleep 1; echo R; sleep 2) | openssl s_client -connect {mail.host['address']}:{port} -tls1_2 -CAfile {mail.ca_file}",
                shell=True, capture_output=True, text=True, check=False, timeout=60,
            )
            assert "RENEGOTIATING" in result.stdout + result.stderr
            assert "no renegotiation" in result.stderr, result.stderr


def test_cleartext_on_a_tls_port_gets_no_answer(mail, declared):
    """A client that forgets TLS gets neither greeting nor login."""
    for port in ports_of(mail, declared):
        with socket.create_connection((mail.host["address"], port), timeout=10) as plain:
            plain.sendall(b"a LOGIN x y\r\nUSER x\r\n")
            answer = plain.recv(1000)
        assert b"OK" not in answer, answer


def test_starttls_is_not_offered(mail, declared):
    """There is no upgrade to strip."""
    context = clients.tls_context(mail.ca_file)
    if "imap" in declared["protocols"]:
        with clients.imap(*mail.login()) as client:
            assert "STARTTLS" not in client.capabilities
    if "pop3" in declared["protocols"]:
        with socket.create_connection((mail.host["address"], mail.host["pop3s_port"]), timeout=20) as plain, context.wrap_socket(
            plain, server_hostname=mail.host["address"]
        ) as stream, stream.makefile("rwb") as lines:
            assert lines.readline().startswith(b"+OK")
            lines.write(b"CAPA\r\nSTLS\r\nQUIT\r\n")
            lines.flush()
            said = lines.read().upper()
        assert b"STLS\r\n" not in said
        assert b"-ERR" in said, said


def test_the_certificate_is_verified_by_name_and_address(mail, declared):
    """A client that trusts the CA and asks for the name, or the address, is content; for another name it is not."""
    context = clients.tls_context(mail.ca_file)
    for port in ports_of(mail, declared):
        for name in (mail.host["address"], f"{mail.host['name']}.letterlock.test"):
            with socket.create_connection((mail.host["address"], port), timeout=10) as plain:
                context.wrap_socket(plain, server_hostname=name).close()
        with socket.create_connection((mail.host["address"], port), timeout=10) as plain, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(plain, server_hostname="other.letterlock.test")
