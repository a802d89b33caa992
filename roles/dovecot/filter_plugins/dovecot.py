"""Filters that the dovecot role's templates use: pure functions of their arguments."""

from __future__ import annotations

import ipaddress
import re


def dovecot_quote(text: str) -> str:
    r"""Return *text* as one word of a Dovecot configuration, quoted where it must be.

    >>> dovecot_quote("Sent"), dovecot_quote('My "own" mail')
    ('Sent', '"My \\"own\\" mail"')
    """
    if re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def dovecot_settings_lines(settings: list[dict], series: str) -> list[str]:
    """Return the lines of dovecot_settings for the Dovecot *series* ("2.3" or "2.4").

    Each setting stands in sections of its own; Dovecot merges sections of one name.

    >>> dovecot_settings_lines([{"name": "a", "value": "1", "section": "protocol imap"}], "2.4")
    ['protocol imap {', '  a = 1', '}']
    """
    lines = []
    for setting in settings:
        if setting.get("dovecot") not in (None, "", series):
            continue
        sections = [part.strip() for part in (setting.get("section") or "").split("/") if part.strip()]
        for depth, section in enumerate(sections):
            lines.append(f"{'  ' * depth}{section} {{")
        lines.append(f"{'  ' * len(sections)}{setting['name']} = {setting['value']}")
        lines.extend("  " * depth + "}" for depth in reversed(range(len(sections))))
    return lines


def dovecot_networks_by_family(networks: list[str]) -> dict[str, list[str]]:
    """Return *networks* (CIDR) sorted by nftables' name of their family.

    >>> dovecot_networks_by_family(["10.0.0.0/8", "fd00::/8"])
    {'ip': ['10.0.0.0/8'], 'ip6': ['fd00::/8']}
    """
    parsed = [ipaddress.ip_network(network, strict=False) for network in networks]
    # nftables refuses a set in which one network holds another.
    return {
        family: [str(network) for network in ipaddress.collapse_addresses(n for n in parsed if n.version == version)]
        for family, version in (("ip", 4), ("ip6", 6))
    }


def dovecot_probe(protocol: str, address: str) -> dict:
    """Return what the transaction's probe connects to for *protocol*.

    >>> dovecot_probe("imap", "127.0.0.1")
    {'protocol': 'imap', 'address': '127.0.0.1', 'port': 993}
    """
    return {"protocol": protocol, "address": address, "port": {"imap": 993, "pop3": 995}[protocol]}


class FilterModule:
    """The filters by the names that templates use."""

    def filters(self) -> dict:
        """Return them."""
        return {
            "dovecot_quote": dovecot_quote,
            "dovecot_settings_lines": dovecot_settings_lines,
            "dovecot_probe": dovecot_probe,
            "dovecot_networks_by_family": dovecot_networks_by_family,
        }
