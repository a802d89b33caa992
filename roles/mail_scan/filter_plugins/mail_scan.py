"""What clamd's configuration needs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "mail_tools" / "files"))

from letterlock import durations  # found on the path that the line above adds


def milliseconds(text: str) -> int:
    """Return the milliseconds that *text* stands for.

    >>> milliseconds("2s")
    2000
    """
    return round(durations.parse_patience(text) * 1000)


class FilterModule:
    """The role's filters."""

    def filters(self) -> dict:
        """Return them by name."""
        return {"mail_scan_milliseconds": milliseconds}
