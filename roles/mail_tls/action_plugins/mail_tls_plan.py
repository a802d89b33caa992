"""Decide, on the controller and without a round trip, which certificate a host needs."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
from pathlib import Path

from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature


def key_path_in(config: str | None) -> str | None:
    """Return the key that a live dovecot.conf names, in either dialect, or the settings of a backup server."""
    found = re.search(r"^(?:ssl_(?:server_)?key(?:_file)? = <?|TLS_KEY=)(\S+)$", config or "", re.MULTILINE)
    return found.group(1) if found else None


def subject_alt_names(names: list[str]) -> list[str]:
    """Return *names* as OpenSSL writes them.

    >>> subject_alt_names(["mail.example.org", "192.0.2.1"])
    ['DNS:mail.example.org', 'IP:192.0.2.1']
    """
    marked = []
    for name in names:
        try:
            marked.append(f"IP:{ipaddress.ip_address(name)}")
        except ValueError:
            marked.append(f"DNS:{name}")
    return marked


def names_of(certificate: x509.Certificate) -> set[str]:
    """Return the certificate's alternative names as OpenSSL writes them."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    dns = {f"DNS:{name}" for name in extension.get_values_for_type(x509.DNSName)}
    return dns | {f"IP:{address}" for address in extension.get_values_for_type(x509.IPAddress)}


def reason_to_make_ca(certificate: bytes | None, lifetime: datetime.timedelta, now: datetime.datetime) -> str:
    """Return why the CA has to be made, or an empty string.

    A CA is renewed, with its key, while a certificate of *lifetime* that it issues now would outlive it.
    """
    if certificate is None:
        return "there is no CA yet"
    ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return f"the CA ends {ends:%Y-%m-%d}" if ends <= now + lifetime else ""


def reason_to_issue(
    live: str | None, ca: bytes | None, names: list[str], renew_before: datetime.timedelta, now: datetime.datetime
) -> str:
    """Return why the host needs another certificate than *live*, or an empty string."""
    if not live:
        return "the host has none"
    if ca is None:
        return "there is no CA yet"
    certificate = x509.load_pem_x509_certificate(live.encode())
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    except (ValueError, InvalidSignature):
        return "another CA issued the live one"
    if names_of(certificate) != set(subject_alt_names(names)):
        return f"the live one is for {', '.join(sorted(names_of(certificate)))}"
    if certificate.not_valid_after_utc - renew_before <= now:
        return f"the live one ends {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


class ActionModule(ActionBase):
    """`mail_tls_plan`: reads the CA and the live certificate; changes nothing itself."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        """Return certificate, key_path, issue, make_ca and reason."""
        result = super().run(tmp, task_vars)
        args = self._task.args
        now = datetime.datetime.now(datetime.UTC)
        if args["source"] == "given":
            text = args["certificate"] or Path(args["certificate_file"]).read_text()
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            result.update(
                certificate=text.strip(), key_path=f"{args['directory']}/{digest}/key.pem", issue=False, make_ca=False
            )
            return result
        ca_file = Path(args["ca_directory"]) / "ca.crt"
        ca = ca_file.read_bytes() if ca_file.is_file() else None
        why_ca = reason_to_make_ca(ca, datetime.timedelta(days=int(args["days"])), now)
        renew_before = datetime.timedelta(days=int(args["renew_before_days"]))
        why = why_ca or reason_to_issue(args["live_certificate"], ca, args["names"], renew_before, now)
        key_path = key_path_in(args["live_config"])
        if not why and key_path not in args["keys"]:
            why = "the live one's key is gone"
        if why:
            key_path = f"{args['directory']}/{now:%Y%m%dT%H%M%SZ}/key.pem"
        result.update(
            certificate=(args["live_certificate"] or "").strip(), key_path=key_path, issue=bool(why), make_ca=bool(why_ca),
            reason=why, subject_alt_names=subject_alt_names(args["names"]), changed=bool(why) and self._task.check_mode,
        )
        return result
