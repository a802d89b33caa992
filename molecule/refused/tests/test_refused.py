"""What cannot hold is refused by name, with the fix, before anything changes; the old service serves on."""

from __future__ import annotations

import datetime

import clients
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

pytestmark = pytest.mark.requirement("OPS-1")

SNAPSHOT = (
    "find /etc /usr/lib/systemd /var/lib/dpkg/status -type f -o -type l | sort | xargs sha256sum 2>/dev/null | sha256sum; "
    "systemctl show dovecot --property=ExecMainStartTimestamp,MainPID"
)
WEAK = "{SHA512-CRYPT}$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g."
CHEAP = "{ARGON2ID}$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$tKNS5y1qGmJqZrOGHsZzmA"


def user(**fields: object) -> list[dict]:
    """Return a list of one account."""
    return [{"name": "ada@letterlock.test", "password": "x", **fields}]


CASES = {
    "a protocol that doesn't exist": ({"dovecot_protocols": ["imap", "smtp"]}, ["dovecot_protocols", "imap, pop3", "smtp"]),
    "no protocol": ({"dovecot_protocols": []}, ["dovecot_protocols: empty", "choose imap, pop3 or both"]),
    "a typo in a variable": ({"dovecot_protocls": ["imap"]}, ["dovecot_protocls", "did you mean 'dovecot_protocols'?"]),
    "a typo in a prefix": ({"dovecto_protocols": ["imap"]}, ["dovecto_protocols", "did you mean 'dovecot_protocols'?"]),
    "a path in a user's name": ({"mail_accounts_users": user(name="../root@letterlock.test")}, ["'../root@letterlock.test'", "a-z, 0-9"]),
    "a control character in a name": ({"mail_accounts_users": user(name="a\nb@letterlock.test")}, ["a\\nb@letterlock.test"]),
    "a separator in a name": ({"mail_accounts_users": user(name="a:b@letterlock.test")}, ["'a:b@letterlock.test'"]),
    "a path in a domain": ({"mail_accounts_domains": ["../etc"]}, ["mail_accounts_domains: '../etc'"]),
    "a control character in a domain": ({"mail_accounts_domains": ["a\tb.test"]}, ["mail_accounts_domains"]),
    "a domain that isn't served": ({"mail_accounts_users": user(name="ada@other.test")}, ["other.test is not in mail_accounts_domains"]),
    "a weak scheme": ({"mail_accounts_users": user(password=None, password_hash=WEAK)}, ["{SHA512-CRYPT}", "only {ARGON2ID}"]),
    "a cheap hash": ({"mail_accounts_users": user(password=None, password_hash=CHEAP)}, ["64 KiB", "argon2id_memory_minimum"]),
    "an unknown setting": (
        {"dovecot_settings": [{"name": "mail_max_userip_conections", "value": "7"}, {"name": "no_such_thing", "value": "1"}]},
        ["dovecot_settings", "Unknown setting: mail_max_userip_conections", "did you mean mail_max_userip_connections?", "no_such_thing"],
    ),
    "a promise broken by the hatch": ({"dovecot_settings": [{"name": "mail_fsync", "value": "never"}]}, ["mail_fsync may not be set here"]),
    "an unknown plugin": (
        {"dovecot_settings": [{"name": "mail_plugins", "value": "quota nonsense", "dovecot": "2.3"},
                              {"name": "nonsense", "value": "yes", "section": "mail_plugins", "dovecot": "2.4"}]},
        ["no plugin 'nonsense' is installed"],
    ),
    "LMTP open to the world": ({"dovecot_lmtp_port": 24, "dovecot_lmtp_networks": []}, ["dovecot_lmtp_networks: empty"]),
    "several faults at once": (
        {"dovecot_protocols": [], "dovecot_quota": "lots", "mail_accounts_domains": ["/"], "dovecot_listn": ["*"]},
        ["dovecot_protocols: empty", "dovecot_quota: 'lots'", "mail_accounts_domains: '/'", "did you mean 'dovecot_listen'?"],
    ),
}


def issue(names: list[str], days: int, key=None) -> tuple[str, str]:
    """Return a self-signed certificate and its key as PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    ends = now + datetime.timedelta(days=days)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(min(now, ends) - datetime.timedelta(days=2)).not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()


def given(names: list[str], days: int, *, other_key: bool = False) -> dict:
    """Return the variables that give such a certificate to a host named mail.test."""
    certificate, key = issue(names, days)
    if other_key:
        key = issue(names, days)[1]
    return {"mail_tls_source": "given", "mail_tls_certificate": certificate, "mail_tls_key": key, "mail_tls_names": ["mail.test"]}


CERTIFICATES = {
    "expired": (given(["mail.test"], -1), ["mail_tls_certificate: expired"]),
    "for another name": (given(["other.test"], 30), ["does not hold for mail.test"]),
    "not matching its key": (given(["mail.test"], 30, other_key=True), ["mail_tls_key: is not the key of mail_tls_certificate"]),
    "no certificate at all": ({**given(["mail.test"], 30), "mail_tls_certificate": "nonsense"}, ["not a certificate in PEM"]),
    "everything wrong": (given(["other.test"], -1, other_key=True), ["expired", "does not hold for", "is not the key"]),
}


@pytest.mark.parametrize("case", [*CASES, *CERTIFICATES])
def test_refused(host, mail, site, case):
    """The run fails, says what and how to mend it, and has changed nothing."""
    variables, sayings = {**CASES, **CERTIFICATES}[case]
    before = host.check_output(SNAPSHOT)
    run = site.run(**variables)
    assert run.code != 0, run.output
    for saying in sayings:
        assert saying in run.output, run.output
    assert run.changed(mail.host["name"]) == 0, run.output
    assert "PRIVATE KEY" not in run.output
    assert host.check_output(SNAPSHOT) == before
    with clients.imap(*mail.login()) as client:
        assert client.select()[0] == "OK"


def test_an_unsupported_release_is_refused(host, mail, site):
    """The kit says which releases it serves."""
    host.check_output("cp --dereference /etc/os-release /root/os-release.true && mv /etc/os-release /root/os-release.link")
    try:
        host.check_output("sed 's/^VERSION_ID=.*/VERSION_ID=\"11\"/' /root/os-release.true > /etc/os-release")
        run = site.run()
    finally:
        host.check_output("mv /root/os-release.link /etc/os-release")
    assert run.code != 0
    assert "the host runs debian 11: the kit serves Debian 12 (Dovecot 2.3), Debian 13 (Dovecot 2.4)" in run.output, run.output
    assert run.changed(mail.host["name"]) == 0

