"""What a run remembers of the mail that stays."""

from __future__ import annotations

from letterlock.tally import MAILBOXES_SHOWN, Tally


def test_the_oldest_of_many_mailboxes():
    """However many there are, those with the oldest mail are known, and no more than that is kept."""
    tally = Tally()
    for number in range(2_000):
        tally.note_oldest(["trash"], 1_000_000 + number * 7919 % 2_000, (f"user{number}", "Trash"))
    assert len(tally.mailboxes["trash"]) <= 10 * MAILBOXES_SHOWN
    assert list(tally.nearest("trash").values()) == list(range(1_000_000, 1_000_000 + MAILBOXES_SHOWN))
    assert tally.oldest["trash"] == 1_000_000


def test_what_stays_after_all_counts():
    """A mailbox that is noted twice has the older of both dates."""
    tally = Tally()
    for saved in (300, 200, 250):
        tally.note_oldest(["trash"], saved, ("ada", "Trash"))
    assert tally.nearest("trash") == {("ada", "Trash"): 200}
    assert tally.nearest("another") == {}
