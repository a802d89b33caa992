"""What a hold covers, and what the ledger says of its setting and lifting."""

from __future__ import annotations

from letterlock import holds

HOLD = {"name": "case-1", "accounts": ["ada@a.test"]}


def test_searches():
    """A hold without limits searches nothing: it holds all."""
    assert holds.hold_search(HOLD) == []
    found = holds.hold_search({**HOLD, "mailboxes": ["INBOX", "Sent"], "saved_since": "2026-01-01", "addresses": ["x@y.test"]})
    assert found[:7] == ["(", "mailbox", "INBOX", "or", "mailbox", "Sent", ")"]
    assert found[7:9] == ["savedsince", "2026-01-01"]
    assert found[9:] == ["(", "from", "x@y.test", "or", "to", "x@y.test", "or", "cc", "x@y.test", "or", "bcc", "x@y.test", ")"]
    assert holds.expunged_search({**HOLD, "mailboxes": ["INBOX"]}) == ["all"]


def test_faults():
    """Each is named."""
    assert holds.hold_faults(HOLD, ["ada@a.test"]) == []
    bad = {"name": "a b", "accounts": ["x@a.test"], "saved_since": "yesterday", "mailboxes": [""]}
    faults = holds.hold_faults(bad, ["ada@a.test"])
    assert len(faults) == 4, faults
    assert any("accounts: empty" in fault for fault in holds.hold_faults({**HOLD, "accounts": []}, []))


def test_changes():
    """Set, changed, lifted."""
    assert holds.changes([HOLD], [HOLD]) == []
    assert [entry["action"] for entry in holds.changes([], [HOLD])] == ["set"]
    assert [entry["action"] for entry in holds.changes([HOLD], [{**HOLD, "accounts": ["b@a.test"]}])] == ["changed"]
    assert [entry["action"] for entry in holds.changes([HOLD], [])] == ["lifted"]
