"""When a certificate is issued, and when it is not."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from roles_loader import load

plan = load("mail_tls/action_plugins/mail_tls_plan.py")
preflight = load("mail_tls/preflight.py")
NOW = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
MONTH = datetime.timedelta(days=30)


def make(names: list[str], ends: datetime.datetime, issuer=None) -> tuple[bytes, tuple]:
    """Return a certificate as PEM and (certificate, key), signed by *issuer* or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    issuer_certificate, issuer_key = issuer or (None, key)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(issuer_certificate.subject if issuer_certificate else name)
        .public_key(key.public_key()).serial_number(1).not_valid_before(NOW - 2 * MONTH).not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns) for dns in names]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), (certificate, key)


CA, CA_PAIR = make(["ca"], NOW + 24 * MONTH)
GOOD = make(["mail.test"], NOW + 2 * MONTH, CA_PAIR)[0].decode()


@pytest.mark.parametrize(
    ("live", "names", "reason"),
    [
        (GOOD, ["mail.test"], ""),
        (None, ["mail.test"], "the host has none"),
        (GOOD, ["mail.test", "other.test"], "the live one is for DNS:mail.test"),
        (make(["mail.test"], NOW + MONTH, CA_PAIR)[0].decode(), ["mail.test"], "the live one ends 2026-12-23"),
        (make(["mail.test"], NOW + 2 * MONTH)[0].decode(), ["mail.test"], "another CA issued the live one"),
    ],
)
def test_reason_to_issue(live, names, reason):
    """Each reason, and none."""
    assert plan.reason_to_issue(live, CA, names, MONTH, NOW) == reason


def test_a_ca_is_renewed_before_it_cuts_a_certificate_short():
    """Made when there is none, and again when what it issues would outlive it."""
    assert plan.reason_to_make_ca(None, MONTH, NOW) == "there is no CA yet"
    assert plan.reason_to_make_ca(CA, MONTH, NOW) == ""
    assert plan.reason_to_make_ca(CA, 25 * MONTH, NOW).startswith("the CA ends 2028-")


@pytest.mark.parametrize(
    ("config", "path"),
    [("ssl_key = </a/key.pem\n", "/a/key.pem"), ("x\nssl_server_key_file = /b/key.pem\n", "/b/key.pem"), (None, None)],
)
def test_the_live_key_is_found_in_both_dialects(config, path):
    """2.3 and 2.4 name it differently."""
    assert plan.key_path_in(config) == path


@pytest.mark.parametrize(
    ("names", "asked", "holds"),
    [(["mail.test"], "mail.test", True), (["MAIL.test"], "mail.test", True), (["*.test"], "mail.test", True),
     (["*.test"], "a.mail.test", False), (["mail.test"], "test", False), (["mail.test"], "192.0.2.1", False)],
)
def test_names(names, asked, holds):
    """A wildcard stands for one label (RFC 6125)."""
    assert preflight.holds_for(make(names, NOW + MONTH)[1][0], asked) is holds
