"""What a run came to."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field

MAILBOXES_SHOWN = 20
# Where the last run wrote them down, in the state directory.
OLDEST = "oldest.json"


@dataclass
class Tally:
    """Counts by policy's name, octets, and `oldest` in seconds since the epoch; `mailboxes` has it for those that are nearest to going."""

    examined: Counter = field(default_factory=Counter)
    expunged: Counter = field(default_factory=Counter)
    octets: Counter = field(default_factory=Counter)
    oldest: dict[str, int] = field(default_factory=dict)
    mailboxes: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)
    messages_on_host: int = 0
    accounts: int = 0
    held: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)

    def note_oldest(self, policies: list[str], saved: int, place: tuple[str, str]) -> None:
        """Remember the oldest saved date that stays under *policies* in *place*, a mailbox of an account."""
        for policy in policies:
            self.oldest[policy] = min(saved, self.oldest.get(policy, saved))
            known = self.mailboxes.setdefault(policy, {})
            known[place] = min(saved, known.get(place, saved))
            # A host may have millions of them.
            if len(known) > 10 * MAILBOXES_SHOWN:
                self.mailboxes[policy] = self.nearest(policy)

    def nearest(self, policy: str) -> dict[tuple[str, str], int]:
        """Return {(account, mailbox): saved date of the oldest message that stays} of those with the oldest mail under *policy*."""
        return dict(sorted(self.mailboxes.get(policy, {}).items(), key=operator.itemgetter(1))[:MAILBOXES_SHOWN])
