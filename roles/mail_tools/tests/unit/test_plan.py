"""What the first pass asks for, and what it passes over."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letterlock import plan
from letterlock.durations import DAY
from letterlock.marks import Marks
from letterlock.plan import Mailbox, Planner
from letterlock.policies import Message, Policy

NOW = 2_000_000_000
MONTH = Policy(name="month", mailboxes=("INBOX",), keep_for=30 * DAY)


def mailbox(*policies: Policy, next_uid: int = 10, modseq: int = 5, messages: int = 3) -> Mailbox:
    """Return a mailbox with some mail."""
    return Mailbox(
        account="a@b", name="INBOX", guid="g1", messages=messages, first_saved=None, next_uid=next_uid, modseq=modseq, policies=policies
    )


@pytest.fixture
def planner(tmp_path) -> Planner:
    """Return a planner without a host."""
    settings = SimpleNamespace(raw={"policies": [], "folders": {}, "holds": []})
    return Planner(SimpleNamespace(settings=settings, now=NOW, marks=Marks(tmp_path / "marks.sqlite")))


@given(st.sets(st.integers(1, 30), max_size=12), st.sets(st.integers(1, 30), max_size=12), st.integers(1, 31))
def test_nothing_below_a_mark_is_missed(there, found, known):
    """may_lack says no only if every message with a UID below the mark was found."""
    numbered = dict(enumerate(sorted(there), 1))
    rows = [(sequence, uid) for sequence, uid in numbered.items() if uid in found]
    if not plan.may_lack(rows, len(there), known):
        assert all(uid in found for uid in there if uid < known)


def test_a_mailbox_is_quiet_until_the_first_of_its_mail_is_due(planner):
    """And no longer than was looked ahead; what a policy spares is not waited for."""
    box = mailbox(MONTH)
    due_soon = Message(uid=1, saved=NOW - 29 * DAY)
    assert planner.quiet_until(box, [], 7 * DAY) == NOW + 7 * DAY
    assert planner.quiet_until(box, [due_soon, Message(uid=2, saved=NOW)], 7 * DAY) == NOW + DAY
    assert planner.quiet_until(box, [], 0) == NOW
    spares = Policy(name="month", mailboxes=("INBOX",), keep_for=30 * DAY, spare=frozenset({"flagged"}))
    flagged = Message(uid=1, saved=0, flags=frozenset({"\\Flagged"}))
    assert planner.quiet_until(mailbox(spares), [flagged], 7 * DAY) == NOW + 7 * DAY


def test_what_changed_is_not_quiet(planner):
    """A message more, another policy, or a clock that went back; a flag, and a message less, where they count."""
    marks = planner.run.marks
    marks.note_quiet("a@b:g1", planner.state(mailbox(MONTH)), NOW - DAY, NOW + DAY)
    marks.save(NOW, 0)
    memory = marks.of(["a@b:g1"])
    assert planner.is_quiet(mailbox(MONTH), memory)
    assert not planner.is_quiet(mailbox(MONTH, next_uid=11), memory)
    assert planner.is_quiet(mailbox(MONTH, modseq=6, messages=2), memory)
    for policy in (replace(MONTH, spare=frozenset({"flagged"})), replace(MONTH, keep_newest=3)):
        assert planner.state(mailbox(policy, modseq=6)) != planner.state(mailbox(policy, modseq=5))
    for now in (NOW - 2 * DAY, NOW + DAY):
        planner.run.now = now
        assert not planner.is_quiet(mailbox(MONTH), memory)
    planner.run.now = NOW
    planner.digest = "of other policies"
    assert not planner.is_quiet(mailbox(MONTH), memory)


def test_a_plan_that_names_much_is_parted_and_put_together_again():
    """What the ceilings count is the mailbox's whole."""
    going = [[uid, "month" if uid % 2 else "week", "why", None] for uid in range(1, 1202)]
    line = {"account": "a", "guid": "g", "messages": 2000, "going": going}
    parted = list(plan.parts([line, {**line, "guid": "h", "going": going[:1]}]))
    assert [len(part["going"]) for part in parted] == [500, 500, 201, 1]
    whole, small = plan.undivided(parted)
    assert sum(len(uids) for uids in whole["going"].values()) == 1201
    assert small["going"] == {"month": [1]}


def test_a_guid_of_two_accounts_is_known():
    """As those of an account that was copied on the disk are."""
    owners = plan.Owners()
    for guid, account in (("g1", "a"), ("g2", "a"), ("g1", "a"), ("g2", "b")):
        owners.see(guid, account)
    assert (owners.share("g1"), owners.share("g2"), owners.share("g3")) == (False, True, False)


def test_a_search_knows_up_to_when_it_saw_all():
    """By saved date; by other dates it knows nothing, and of a whole mailbox everything."""
    assert mailbox(MONTH).seen_to(NOW) == NOW - 30 * DAY
    assert mailbox(MONTH, replace(MONTH, keep_for=7 * DAY)).seen_to(NOW) == NOW - 7 * DAY
    assert mailbox(replace(MONTH, since="received")).seen_to(NOW) == 0
    assert mailbox(replace(MONTH, keep_newest=3)).seen_to(NOW) > NOW
