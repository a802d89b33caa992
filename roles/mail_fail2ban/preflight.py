"""Faults of a jail that would shut out nobody, or everybody."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mail_tools" / "files"))

from letterlock import durations  # found on the path that the line above adds

TIMES = ("mail_fail2ban_find_time", "mail_fail2ban_ban_time", "mail_fail2ban_ban_time_max")


def seconds(text: object) -> float:
    """Return the seconds that *text* stands for, such as 90s, 10m, 1h or 7d; fail2ban reads it the same way. Raises ValueError."""
    short = isinstance(text, str) and text.endswith(("s", "m"))
    value = durations.parse_patience(text) if short else durations.parse_duration(text)
    if value < 1:
        raise ValueError(f"{text!r} is less than a second")
    return value


def network_faults(networks: list[str]) -> list[str]:
    """Return what is wrong with the *networks* that are never shut out."""
    found = []
    for network in networks:
        try:
            known = ipaddress.ip_network(network)
        except ValueError as error:
            found.append(f"mail_fail2ban_ignore_networks: {network!r}: {error}")
        else:
            if not known.prefixlen:
                found.append(f"mail_fail2ban_ignore_networks: {network} is everybody; mail_fail2ban_enabled: false says so")
    return found


def faults(variables: dict, _host: dict) -> list[str]:
    """Return the role's faults."""
    if not variables["mail_fail2ban_enabled"]:
        return []
    found = network_faults(variables["mail_fail2ban_ignore_networks"])
    if variables["mail_fail2ban_max_retry"] < 1:
        found.append(f"mail_fail2ban_max_retry: {variables['mail_fail2ban_max_retry']} is no number of failures; it needs 1 or more")
    times = {}
    for name in TIMES:
        try:
            times[name] = seconds(variables[name])
        except ValueError as error:
            found.append(f"{name}: {error}")
    if len(times) == len(TIMES) and times["mail_fail2ban_ban_time"] > times["mail_fail2ban_ban_time_max"]:
        found.append("mail_fail2ban_ban_time: longer than mail_fail2ban_ban_time_max")
    return found
