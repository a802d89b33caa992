"""Faults of scanning, above all a quarantine that nobody could open."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mail_tools" / "files"))

from letterlock import age, durations  # found on the path that the line above adds
from letterlock.signatures import SUFFIXES  # so is this

# What ends up in a line of a unit or of a configuration file.
LINES = (
    "mail_scan_memory_max", "mail_scan_rspamd_memory_max", "mail_scan_sweep_schedule", "mail_scan_freshclam_schedule",
    "mail_scan_freshclam_mirror", "mail_scan_signatures_directory",
    "mail_scan_notice_from", "mail_scan_notice_subject", "mail_scan_metrics_file",
)
PARSERS = {
    "mail_scan_timeout": durations.parse_patience, "mail_scan_gate_budget": durations.parse_patience,
    "mail_scan_gate_recent": durations.parse_duration, "mail_scan_size_max": durations.parse_size,
    "mail_scan_file_size_max": durations.parse_size, "mail_scan_signatures_age_max": durations.parse_duration,
    "mail_scan_quarantine_keep_for": durations.parse_duration,
}
# clamd's own limit: https://docs.clamav.net/manual/Usage/Configuration.html
LARGEST = 4 * 1024**3 - 1


def spam_faults(mailboxes: list[dict]) -> list[str]:
    """Return why Sieve could not sort spam into these *mailboxes*."""
    names = {mailbox["special_use"]: mailbox["name"] for mailbox in mailboxes if mailbox.get("special_use") in ("\\Junk", "\\Trash")}
    found = [
        f"dovecot_mailboxes: {name!r}: with mail_scan_spam: junk, no quotes and backslashes can stand in the name of {use}"
        for use, name in names.items() if re.search(r'["\\\x00-\x1f\x7f]', name)
    ]
    if "\\Junk" not in names:
        found.append("mail_scan_spam: junk needs a mailbox with the special use \\Junk in dovecot_mailboxes")
    return found


def freshclam_faults(variables: dict) -> list[str]:
    """Return why freshclam could not fetch what it is told to."""
    mirror, urls = variables["mail_scan_freshclam_mirror"], variables["mail_scan_freshclam_urls"]
    found = []
    if mirror and not re.fullmatch(r"(https?://)?[A-Za-z0-9.:/_-]+", mirror):
        found.append(f"mail_scan_freshclam_mirror: {mirror!r} is not the address of a mirror")
    for url in urls:
        if not re.fullmatch(r"(https?|ftps?|file)://[^\s\x00-\x1f\x7f]+", url):
            found.append(f"mail_scan_freshclam_urls: {url!r} is not the URL of a database")
        elif Path(url).suffix not in SUFFIXES:
            found.append(f"mail_scan_freshclam_urls: {url!r}: ClamAV knows no database with this ending")
    names = [Path(url).name for url in urls]
    found += [f"mail_scan_freshclam_urls: two databases are named {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if variables["mail_scan_freshclam"] and not variables["mail_scan_freshclam_official"] and not urls:
        found.append("mail_scan_freshclam_official: off, and mail_scan_freshclam_urls is empty: nothing to fetch")
    return found


def faults(variables: dict, _host: dict) -> list[str]:
    """Return the role's faults."""
    if not variables["mail_scan_enabled"]:
        return []
    found = age.recipient_faults("mail_scan_quarantine_recipients", variables["mail_scan_quarantine_recipients"])
    sizes = {}
    for name, parse in PARSERS.items():
        try:
            sizes[name] = parse(variables[name])
        except ValueError as error:
            found.append(f"{name}: {error}")
    found += [
        f"{name}: {variables[name]} is more than clamd can count, 4G" for name in ("mail_scan_size_max", "mail_scan_file_size_max")
        if sizes.get(name, 0) > LARGEST
    ]
    found += [
        f"{name}: control characters can't stand there" for name in LINES if re.search(r"[\x00-\x1f\x7f]", variables[name])
    ]
    for name in ("mail_scan_signatures_directory", "mail_scan_metrics_file"):
        if not variables[name].startswith("/") or re.search(r"\s", variables[name]):
            found.append(f"{name}: {variables[name]!r} is not an absolute path without blanks")
    if variables["mail_scan_rspamd"] and variables["mail_scan_spam"] == "junk":
        found += spam_faults(variables["dovecot_mailboxes"])
    if re.search(r'["\\\x00-\x1f\x7f]', variables["mail_scan_rspamd_password"]):
        found.append("mail_scan_rspamd_password: quotes, backslashes and control characters can't stand there")
    found += freshclam_faults(variables)
    if not re.search(r"[^@\s]+@[^@\s]+", variables["mail_scan_notice_from"]):
        found.append(f"mail_scan_notice_from: {variables['mail_scan_notice_from']!r} holds no address")
    return found
