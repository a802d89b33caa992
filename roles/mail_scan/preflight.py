"""Faults of scanning, above all a quarantine that nobody could open."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mail_tools" / "files"))

from letterlock import durations  # found on the path that the line above adds

# What ends up in a line of a unit or of a configuration file.
LINES = (
    "mail_scan_memory_max", "mail_scan_rspamd_memory_max", "mail_scan_sweep_schedule", "mail_scan_freshclam_schedule",
    "mail_scan_freshclam_mirror",
    "mail_scan_signatures_directory",
    "mail_scan_notice_from", "mail_scan_notice_subject", "mail_scan_metrics_file",
)
# Bech32 (https://github.com/bitcoin/bips/blob/master/bip-0173.mediawiki), as https://age-encryption.org/v1 uses it.
LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
RECIPIENT = re.compile(rf"age1([{LETTERS}]{{58}})")
PARSERS = {
    "mail_scan_timeout": durations.parse_patience, "mail_scan_gate_budget": durations.parse_patience,
    "mail_scan_gate_recent": durations.parse_duration, "mail_scan_size_max": durations.parse_size,
    "mail_scan_file_size_max": durations.parse_size, "mail_scan_signatures_age_max": durations.parse_duration,
    "mail_scan_quarantine_keep_for": durations.parse_duration,
}
# clamd's own limit: https://docs.clamav.net/manual/Usage/Configuration.html
LARGEST = 4 * 1024**3 - 1


def is_recipient(text: str) -> bool:
    """Tell whether *text* is an age recipient, its checksum included: to a typo nothing could be encrypted.

    >>> is_recipient("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj")
    True
    """
    found = RECIPIENT.fullmatch(text)
    if not found:
        return False
    prefix = [ord(char) >> 5 for char in "age"] + [0] + [ord(char) & 31 for char in "age"]
    checksum = 1
    for value in [*prefix, *(LETTERS.index(char) for char in found.group(1))]:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for number, generator in enumerate(GENERATORS):
            checksum ^= generator if top >> number & 1 else 0
    return checksum == 1


def recipient_faults(recipients: list[str]) -> list[str]:
    """Return what is wrong with those who can open the quarantine."""
    if not recipients:
        return [
            "mail_scan_quarantine_recipients: empty; make a key with age-keygen, off this host, and name its public key (age1...) here"
        ]
    found = []
    for recipient in recipients:
        if recipient.upper().startswith("AGE-SECRET-KEY-"):
            found.append("mail_scan_quarantine_recipients: holds a secret key; it belongs off every host. Name the public key (age1...)")
        elif not is_recipient(recipient):
            found.append(f"mail_scan_quarantine_recipients: {recipient!r} is not an age recipient (age1 and 58 characters), or has a typo")
    return found


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


def faults(variables: dict, _host: dict) -> list[str]:
    """Return the role's faults."""
    if not variables["mail_scan_enabled"]:
        return []
    found = recipient_faults(variables["mail_scan_quarantine_recipients"])
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
    mirror = variables["mail_scan_freshclam_mirror"]
    if mirror and not re.fullmatch(r"(https?://)?[A-Za-z0-9.:/_-]+", mirror):
        found.append(f"mail_scan_freshclam_mirror: {mirror!r} is not the address of a mirror")
    if not re.search(r"[^@\s]+@[^@\s]+", variables["mail_scan_notice_from"]):
        found.append(f"mail_scan_notice_from: {variables['mail_scan_notice_from']!r} holds no address")
    return found
