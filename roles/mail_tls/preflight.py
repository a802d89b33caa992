"""Faults of a certificate that the operator gives."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

MINIMUM_RSA_BITS = 2048


def holds_for(certificate: x509.Certificate, name: str) -> bool:
    """Tell whether *certificate* holds for the DNS name or address *name* (RFC 6125: one leading wildcard label)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(name) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass
    wildcard = "*." + name.lower().split(".", 1)[-1]
    return {name.lower(), wildcard} & {dns.lower() for dns in names.get_values_for_type(x509.DNSName)} != set()


def read(variables: dict, name: str, faults: list[str]) -> bytes | None:
    """Return the PEM that variable *name*, or its *name*_file, gives."""
    text, file = variables.get(name), variables.get(f"{name}_file")
    if bool(text) == bool(file):
        faults.append(f"{name}: mail_tls_source is 'given', so set either {name} or {name}_file")
        return None
    if text:
        return text.encode()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        faults.append(f"{name}_file: {error.strerror}: {file}")
        return None


def load_certificate(pem: bytes | None, found: list[str]) -> x509.Certificate | None:
    """Return the host's certificate, the first of *pem*; add to *found* why there is none."""
    if pem is None:
        return None
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        found.append("mail_tls_certificate: not a certificate in PEM")
        return None


def load_key(pem: bytes | None, found: list[str]) -> PrivateKeyTypes | None:
    """Return the key; add to *found* why there is none, or why it is too weak."""
    if pem is None:
        return None
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        found.append("mail_tls_key: has a passphrase; give it without one, vaulted")
        return None
    except ValueError:
        found.append("mail_tls_key: not a private key in PEM")
        return None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < MINIMUM_RSA_BITS:
        found.append(f"mail_tls_key: RSA with {key.key_size} bits; {MINIMUM_RSA_BITS} are the least")
    return key


def given_faults(variables: dict, now: datetime.datetime) -> list[str]:
    """Return what is wrong with the given certificate and key."""
    found: list[str] = []
    certificate = load_certificate(read(variables, "mail_tls_certificate", found), found)
    key = load_key(read(variables, "mail_tls_key", found), found)
    if certificate is None:
        return found
    if certificate.not_valid_after_utc <= now:
        found.append(f"mail_tls_certificate: expired {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")
    if certificate.not_valid_before_utc > now:
        found.append(f"mail_tls_certificate: holds only from {certificate.not_valid_before_utc:%Y-%m-%d}")
    missing = [name for name in variables.get("mail_tls_names", []) if not holds_for(certificate, name)]
    if missing:
        found.append(f"mail_tls_certificate: does not hold for {', '.join(missing)} (mail_tls_names)")
    if key is not None and key.public_key() != certificate.public_key():
        found.append("mail_tls_key: is not the key of mail_tls_certificate")
    return found


def faults(variables: dict, host: dict) -> list[str]:
    """Return the role's faults; *host* is what mail_host read."""
    found = []
    if not variables.get("mail_tls_names"):
        found.append("mail_tls_names: empty; name what clients connect to")
    if variables.get("mail_tls_source") == "given":
        found += given_faults(variables, datetime.datetime.fromtimestamp(host["time"], datetime.UTC))
    else:
        if variables["mail_tls_renew_before_days"] >= variables["mail_tls_days"]:
            found.append("mail_tls_renew_before_days: must be less than mail_tls_days, or every run renews")
        if variables["mail_tls_days"] >= variables["mail_tls_ca_days"]:
            found.append("mail_tls_ca_days: must be more than mail_tls_days, or every run renews the CA")
    return found
