"""What a deployment says of backups."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "mail_tools" / "files"))

from letterlock import durations, policies  # found on the path that the line above adds


def bound(raw: list[dict], mailboxes: list[dict], keep_for: str) -> str:
    """Return when mail under the policies *raw* is gone from the host and from all backups, in words.

    >>> bound([{"name": "trash", "mailboxes": ["Trash"], "keep_for": "30d"}], {}, "30d")
    'mail under a policy is gone from the host and from all backups 61d after it was saved (trash)'
    >>> bound([], {}, "30d")
    'no policy lets mail go: it is kept until a client deletes it, and in backups for 30d after that'
    """
    parsed, _ = policies.parse_policies(raw, policies.folders_of(mailboxes), [])
    found = policies.gone_everywhere_after(parsed, durations.parse_duration(keep_for))
    if found is None:
        return f"no policy lets mail go: it is kept until a client deletes it, and in backups for {keep_for} after that"
    after = durations.show_duration(found[0])
    return f"mail under a policy is gone from the host and from all backups {after} after it was saved ({found[1]})"


class FilterModule:
    """The role's filters."""

    def filters(self) -> dict:
        """Return them by name."""
        return {"mail_backup_bound": bound}
