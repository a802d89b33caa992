"""Faults of policies and holds: the same rules that the host applies."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mail_tools" / "files"))

from letterlock import durations, holds, policies  # found on the path that the line above adds

# What the kit can find a message by again; see mail_tools' fetched.py.
UIDL_FORMATS = ("%08Xu%08Xv", "%{uid|hex(8)}%{uidvalidity|hex(8)}", "%{uid | hex(8)}%{uidvalidity | hex(8)}", "%g", "%{guid}")


def uidl_faults(variables: dict) -> list[str]:
    """Return unique ids of POP3 by which a fetched message could not be found again."""
    return [
        f"dovecot_settings: pop3_uidl_format: {setting['value']!r}: a policy expunges what POP3 fetched, and finds it again "
        f"by one of these only: {', '.join(sorted(set(UIDL_FORMATS)))}"
        for setting in variables.get("dovecot_settings", [])
        if setting["name"] == "pop3_uidl_format" and setting["value"].strip('"') not in UIDL_FORMATS
    ]


def faults(variables: dict, _host: dict) -> list[str]:
    """Return the role's faults."""
    folders = policies.folders_of(variables["dovecot_mailboxes"])
    domains = variables.get("mail_accounts_domains", [])
    accounts = [user["name"] for user in variables.get("mail_accounts_users", []) if user.get("state") != "absent"]
    parsed, found = policies.parse_policies(variables["mail_retention_policies"], folders, accounts)
    found += policies.unknown_accounts(parsed, accounts, domains)
    found += [
        f"mail_retention_policies: {policy.name!r}: pop3: dovecot_protocols has no pop3"
        for policy in parsed if policy.after_fetch not in (None, policies.KEEP) and "pop3" not in variables["dovecot_protocols"]
    ]
    if any(policy.after_fetch not in (None, policies.KEEP) for policy in parsed):
        found += uidl_faults(variables)
    for hold in variables["mail_retention_holds"]:
        found += holds.hold_faults(hold, accounts)
    names = [hold["name"] for hold in variables["mail_retention_holds"]]
    found += [f"mail_retention_holds: {name!r} stands there twice" for name in sorted({name for name in names if names.count(name) > 1})]
    for name in ("mail_retention_clock_ahead_max", "mail_retention_ledger_keep_for"):
        try:
            durations.parse_duration(variables[name])
        except ValueError as error:
            found.append(f"{name}: {error}")
    found += [
        f"{name}: {variables[name]} is not a share in percent, 1 to 100"
        for name in ("mail_retention_ceiling_mailbox_percent", "mail_retention_ceiling_host_percent")
        if not 1 <= variables[name] <= 100
    ]
    if variables["mail_retention_ceiling_always_allowed"] < 0:
        found.append("mail_retention_ceiling_always_allowed: must be at least 0")
    found += [
        f"{name}: control characters can't stand there"
        for name in ("mail_retention_schedule", "mail_retention_randomized_delay") if re.search(r"[\x00-\x1f\x7f]", variables[name])
    ]
    return found
