"""What a run came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts by policy's name, octets, and `oldest` in seconds since the epoch."""

    examined: Counter = field(default_factory=Counter)
    expunged: Counter = field(default_factory=Counter)
    octets: Counter = field(default_factory=Counter)
    oldest: dict[str, int] = field(default_factory=dict)
    messages_on_host: int = 0
    accounts: int = 0
    held: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)

    def note_oldest(self, policies: list[str], saved: int) -> None:
        """Remember the oldest saved date that stays under *policies*."""
        for policy in policies:
            self.oldest[policy] = min(saved, self.oldest.get(policy, saved))
