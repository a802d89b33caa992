"""Durations and sizes as people write them."""

from __future__ import annotations

import re

HOUR = 3600
DAY = 24 * HOUR
UNITS = {"h": HOUR, "d": DAY, "w": 7 * DAY, "y": 365 * DAY}
LONGEST = 100 * UNITS["y"]
SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_duration(text: object) -> int:
    """Return the seconds that *text* stands for, such as 24h, 30d, 12w or 1y (365 days).

    Raises ValueError, saying what is wrong, for anything else, for nothing and for more than 100 years.

    >>> parse_duration("30d"), parse_duration("24h") == parse_duration("1d")
    (2592000, True)
    """
    found = re.fullmatch(r"(\d{1,6})([hdwy])", text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f"{text!r} is not a duration such as 24h, 30d, 12w or 1y")
    seconds = int(found.group(1)) * UNITS[found.group(2)]
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"{text!r} is not between 1h and 100y")
    return seconds


def parse_patience(text: object) -> float:
    """Return the seconds that *text* stands for, such as 500ms, 2s or 5m: how long somebody waits, not how long something is kept.

    Raises ValueError for anything else, for nothing and for more than an hour.

    >>> parse_patience("500ms"), parse_patience("2m")
    (0.5, 120.0)
    """
    found = re.fullmatch(r"(\d{1,6})(ms|s|m)", text) if isinstance(text, str) else None
    seconds = int(found.group(1)) * {"ms": 0.001, "s": 1.0, "m": 60.0}[found.group(2)] if found else 0.0
    if not 0 < seconds <= HOUR:
        raise ValueError(f"{text!r} is not a time such as 500ms, 2s or 5m, up to an hour")
    return seconds


def show_duration(seconds: float) -> str:
    """Return *seconds* in the largest unit that loses nothing, or rounded down to hours.

    >>> show_duration(2592000), show_duration(1209600), show_duration(5400)
    ('30d', '2w', '1h')
    """
    for name, unit in (("y", UNITS["y"]), ("w", UNITS["w"]), ("d", DAY)):
        if seconds and seconds % unit == 0:
            return f"{int(seconds // unit)}{name}"
    return f"{int(seconds // DAY)}d" if seconds >= 2 * DAY else f"{int(seconds // HOUR)}h"


def parse_size(text: object) -> int:
    """Return the octets that *text* stands for, such as 500M or 5G.

    Raises ValueError for anything else and for nothing.

    >>> parse_size("2K")
    2048
    """
    found = re.fullmatch(r"(\d{1,9})([BKMGT]?)", text) if isinstance(text, str) else None
    if not found or not int(found.group(1)):
        raise ValueError(f"{text!r} is not a size such as 500M or 5G")
    return int(found.group(1)) * SIZES[found.group(2)]
