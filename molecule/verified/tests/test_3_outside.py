"""What others see of a host: who may examine it as they like, from another machine, with tools that know nothing of the kit."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from xml.etree import ElementTree

import lane
import pytest
import testinfra
from conftest import wait_for

ADA = "ada@letterlock.test"
# Where testssl.sh gives grades.
GRADER = "deb13"
GRADES = {"A+", "A"}
UDP = "53,67,68,69,111,123,137,138,161,177,500,514,520,546,631,1194,1434,1900,4500,5353,5355,11211"
# From which address, to which, as whom.
LOGIN = """
import socket, ssl, sys
source, address, user, password = sys.argv[1:]
context = ssl._create_unverified_context()
with context.wrap_socket(socket.create_connection((address, 993), 30, (source, 0))) as stream:
    lines = stream.makefile("rb")
    lines.readline()
    stream.sendall(f'a LOGIN "{user}" "{password}"\\r\\nb LOGOUT\\r\\n'.encode())
    print(lines.read().decode())
"""


def other(host, mail):
    """Return the host that looks at the one under test."""
    (name,) = set(mail.side_by_side) - {mail.host["name"]}
    return testinfra.get_host(f"ssh://{name}", ssh_config=lane.SSH_CONFIG)


def address_of(host) -> str:
    """Return the address that *host* has in the network of the hosts."""
    return host.check_output("hostname --all-ip-addresses").split()[0]


def ask_xml(host, command: str) -> ElementTree.Element:
    """Return what *command* says in XML on *host*."""
    return ElementTree.fromstring(host.check_output(command))  # noqa: S314  # Debian's own tools wrote it just now


def log_in(host, *arguments: str):
    """Try to log in from *host*: from which of its addresses, to which, as whom, with which password."""
    words = " ".join(shlex.quote(argument) for argument in arguments)
    return host.run(f"timeout 60 python3 -c {shlex.quote(LOGIN)} {words}")


@pytest.mark.requirement("SURF-1", "SURF-2", "TLS-1")
def test_every_port_from_another_host(host, mail, declared):
    """All 65,535 of TCP: exactly what is declared. The usual ones of UDP: none."""
    outside, address = other(host, mail), address_of(host)
    seen = ask_xml(outside, f"nmap -n -Pn -sS -p- --min-rate 2000 -oX - {address}")
    ports = {int(port.get("portid")) for port in seen.iter("port") if port.find("state").get("state") != "closed"}
    # LMTP lets the lab's network in, where the other host is.
    assert ports == {22, 993, 995, declared["lmtp_port"]}
    seen = ask_xml(outside, f"nmap -n -Pn -sU -p {UDP} --max-retries 2 -oX - {address}")
    assert {int(port.get("portid")) for port in seen.iter("port") if port.find("state").get("state") == "open"} == set()


@pytest.mark.requirement("TLS-2", "TLS-3", "TLS-5")
@pytest.mark.parametrize("port", [993, 995])
def test_sslscan(host, mail, port):
    """Only TLS 1.2 and 1.3, each cipher with forward secrecy and authentication, no compression, no renegotiation, no Heartbleed."""
    outside, address = other(host, mail), address_of(host)
    found = ask_xml(outside, f"sslscan --no-colour --xml=- {address}:{port}").find("ssltest")
    spoken = {f"{each.get('type')} {each.get('version')}" for each in found.iter("protocol") if each.get("enabled") == "1"}
    assert spoken == {"tls 1.2", "tls 1.3"}
    ciphers = {each.get("cipher") for each in found.iter("cipher")}
    assert ciphers
    assert not [name for name in ciphers if not re.match(r"TLS_|ECDHE-\w+-(AES\d+-GCM|CHACHA20)", name)], ciphers
    # Not every sslscan can look for it; testssl.sh can.
    assert not [each for each in found.iter("compression") if each.get("supported") == "1"]
    assert not [each for each in found.iter("renegotiation") if each.get("supported") == "1" and each.get("secure") != "1"]
    assert not [each for each in found.iter("heartbleed") if each.get("vulnerable") == "1"]


@pytest.mark.requirement("TLS-2", "TLS-3", "TLS-4", "TLS-5")
def test_testssl(host, mail):
    """Graded A or better, with the kit's own CA among those that are trusted, and no finding above `low`."""
    outside, name = testinfra.get_host(f"ssh://{GRADER}", ssh_config=lane.SSH_CONFIG), mail.host["name"]
    outside.check_output(f"cat >/root/ca-{name}.pem <<'E'\n{Path(mail.ca_file).read_text()}E")
    outside.run(
        f"rm -f /root/{name}.json; testssl --quiet --color 0 --warnings off --add-ca /root/ca-{name}.pem --ip {address_of(host)} "
        f"--jsonfile /root/{name}.json {name}.letterlock.test:993"
    )
    findings = {each["id"]: each for each in json.loads(outside.check_output(f"cat /root/{name}.json"))}
    bad = {name for name, each in findings.items() if each["severity"] in ("MEDIUM", "HIGH", "CRITICAL", "FATAL")}
    # A private CA, whose certificates live for days, publishes no list of those that it took back.
    assert bad <= {"cert_revocation"}
    assert findings["overall_grade"]["finding"] in GRADES


@pytest.mark.requirement("AUTH-2", "AUTH-6")
def test_a_guesser_is_shut_out_and_a_user_beside_it_is_not(host, mail):
    """Even one who chooses names that look like somebody else's address."""
    outside, address = other(host, mail), address_of(host)
    guesser = address_of(outside)
    beside = re.sub(r"\d+$", lambda last: str(int(last.group()) + 100), guesser)
    outside.check_output(f"ip address add {beside}/24 dev eth0")
    names = [f"x>, method=PLAIN, rip={beside}, lip={address}, TLS, session=<x", ADA, "nobody@letterlock.test"]
    try:
        for name in names:
            assert "a NO" in log_in(outside, guesser, address, name, "guess").stdout
        wait_for(lambda: guesser in host.check_output("fail2ban-client get letterlock banip").split())
        assert host.check_output("fail2ban-client get letterlock banip").split() == [guesser]
        assert log_in(outside, guesser, address, ADA, mail.accounts[ADA]).rc != 0
        begun = time.monotonic()
        said = log_in(outside, beside, address, ADA, mail.accounts[ADA]).stdout
        assert re.search(r"^a OK.*Logged in", said, re.MULTILINE), said
        # Dovecot's penalty is for the guesser's address as well.
        assert time.monotonic() - begun < 2
    finally:
        outside.check_output(f"ip address delete {beside}/24 dev eth0")
        host.check_output("fail2ban-client unban --all")


@pytest.mark.requirement("HARD-1")
def test_lynis_has_its_say(host, record_property):
    """For information: its index, and its warnings, in the results."""
    host.run("lynis audit system --quick --quiet --no-colors --report-file /root/lynis.dat --logfile /root/lynis.log")
    said = dict(line.split("=", 1) for line in host.check_output("grep -a = /root/lynis.dat").splitlines())
    record_property("lynis_hardening_index", said["hardening_index"])
    for warning in host.run("grep -a '^warning\\[\\]=' /root/lynis.dat").stdout.splitlines():
        record_property("lynis_warning", warning)
    assert int(said["hardening_index"]) > 0
