"""Which policy holds, and what it lets go: first what must not happen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letterlock import policies
from letterlock.durations import DAY, parse_duration, show_duration
from letterlock.policies import Message

FOLDERS = {"Sent": "\\Sent", "Trash": "\\Trash", "Junk": "\\Junk", "Archive": ""}
ACCOUNTS = ["ada@a.test", "grace@a.test", "charles@b.test"]
NOW = 1_800_000_000.0


def parse(*raw: dict) -> tuple[list[policies.Policy], list[str]]:
    """Parse against the folders and accounts above."""
    return policies.parse_policies(list(raw), FOLDERS, ACCOUNTS)


def policy(**raw: object) -> policies.Policy:
    """Return one policy that must be without fault."""
    (found,), faults = parse({"name": "p", "mailboxes": ["INBOX"], **raw})
    assert faults == []
    return found


def message(uid: int, days: float, **about: object) -> Message:
    """Return a message that was saved and received *days* ago."""
    at = int(NOW - days * DAY)
    return Message(**{"uid": uid, "saved": at, "received": at, "size": 1000, "flags": frozenset(), **about})


BAD = {
    "no limit": ({"mailboxes": ["INBOX"]}, "limits nothing"),
    "no mailbox": ({"keep_for": "30d"}, "mailboxes: empty"),
    "a negative duration": ({"mailboxes": ["INBOX"], "keep_for": "-3d"}, "keep_for: '-3d' is not a duration"),
    "an absurd duration": ({"mailboxes": ["INBOX"], "keep_for": "900y"}, "not between 1h and 100y"),
    "no time at all": ({"mailboxes": ["INBOX"], "keep_for": "0d"}, "not between 1h and 100y"),
    "a number": ({"mailboxes": ["INBOX"], "keep_for": 30}, "30 is not a duration"),
    "a special use that is none": ({"mailboxes": ["\\Trsh"], "keep_for": "1d"}, "did you mean \\Trash?"),
    "a special use that no folder has": ({"mailboxes": ["\\Flagged"], "keep_for": "1d"}, "no folder in dovecot_mailboxes has it"),
    "a misspelt folder": ({"mailboxes": ["Trassh"], "keep_for": "1d"}, "did you mean Trash?"),
    "a glob of another kind": ({"mailboxes": ["Lists/[ab]"], "keep_for": "1d"}, "globs know * and ?"),
    "a control character": ({"mailboxes": ["a\x00b"], "keep_for": "1d"}, "is not a mailbox's name"),
    "an unknown key": ({"mailboxes": ["INBOX"], "keepfor": "1d"}, "keepfor: no such key"),
    "a count that is none": ({"mailboxes": ["INBOX"], "keep_newest": 0}, "not a whole number"),
    "a size that is none": ({"mailboxes": ["INBOX"], "max_size": "big"}, "not a size"),
    "an unknown spare": ({"mailboxes": ["INBOX"], "keep_for": "1d", "spare": ["starred"]}, "choose from flagged, unseen"),
    "newer than its own grace": ({"mailboxes": ["INBOX"], "keep_for": "1d", "pop3": {"expunge_after": "2d"}}, "before its grace"),
    "two answers for POP3": ({"pop3": {"after_fetch": "keep", "expunge_after": "2d"}}, "either after_fetch"),
    "an unknown answer for POP3": ({"pop3": {"after_fetch": "burn"}}, "either after_fetch"),
    "a name that is none": ({"name": "a b", "mailboxes": ["INBOX"], "keep_for": "1d"}, "a name has letters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_policies_are_refused(case):
    """Each fault is named; nothing of the policy is used."""
    raw, saying = BAD[case]
    _, faults = parse({"name": "p", **raw})
    assert any(saying in fault for fault in faults), faults
    assert all(fault.startswith("mail_retention_policies: ") for fault in faults)


def test_contradictions_are_refused():
    """Where the strictest is no answer, one must say override."""
    keep, burn = ({"name": name, "pop3": {"after_fetch": name}} for name in ("keep", "expunge"))
    assert any("contradict each other on POP3" in fault for fault in parse(keep, burn)[1])
    assert parse(keep, {**burn, "override": True})[1] == []
    assert parse({**keep, "domains": ["a.test"]}, {**burn, "domains": ["b.test"]})[1] == []
    assert parse({**keep, "accounts": ["ada@a.test"]}, {**burn, "domains": ["a.test"]})[1] != []
    both = [{"name": name, "mailboxes": ["Archive"], "keep_for": "9d", "override": True} for name in ("a", "b")]
    assert any("both say override for Archive" in fault for fault in parse(*both)[1])
    twice = {"name": "a", "mailboxes": ["Archive"], "keep_for": "9d"}
    assert any("the same name twice" in fault for fault in parse(twice, twice)[1])


def test_unknown_accounts_are_named_with_what_was_meant():
    """A policy for nobody is a typo."""
    parsed, _ = parse({"name": "p", "mailboxes": ["INBOX"], "keep_for": "1d", "accounts": ["adda@a.test"], "domains": ["c.test"]})
    faults = policies.unknown_accounts(parsed, ACCOUNTS, ["a.test", "b.test"])
    assert any("did you mean ada@a.test?" in fault for fault in faults)
    assert any("there is no domain c.test" in fault for fault in faults)


@pytest.mark.parametrize(
    ("mailbox", "covered", "spared"),
    [
        ("INBOX", ["INBOX", "inbox"], ["INBOX/x", "Inbox2"]),
        ("\\Trash", ["Trash"], ["trash", "Junk"]),
        ("Lists/*", ["Lists/a", "Lists/a/b"], ["Lists", "Liste/a"]),
        ("?x", ["ax"], ["x", "aax"]),
        ("a\\*b", ["a*b"], ["axb", "ab"]),
        ('-Entwürfe "x"', ['-Entwürfe "x"'], ["Entwürfe x"]),
    ],
)
def test_mailboxes(mailbox, covered, spared):
    """Names, globs and special uses; UTF-8, quotes, spaces, an asterisk and a leading dash in names."""
    found = policy(mailboxes=[mailbox], keep_for="1d")
    assert [name for name in covered + spared if found.covers_mailbox(name)] == covered


def test_limits():
    """What each limit lets go, and what it spares."""
    messages = [message(1, 40), message(2, 31, flags=frozenset(["\\Flagged"])), message(3, 29, flags=frozenset(["\\Seen"])), message(4, 0)]
    assert set(policies.let_go(policy(keep_for="30d"), messages, NOW)) == {1, 2}
    assert set(policies.let_go(policy(keep_for="30d", spare=["flagged"]), messages, NOW)) == {1}
    assert set(policies.let_go(policy(keep_for="1d", spare=["unseen"]), messages, NOW)) == {3}
    assert set(policies.let_go(policy(keep_newest=2), messages, NOW)) == {1, 2}
    assert set(policies.let_go(policy(keep_newest=2, spare=["flagged"]), messages, NOW)) == {1}
    assert set(policies.let_go(policy(max_size="3000"), messages, NOW)) == {1}
    assert set(policies.let_go(policy(max_size="1K", spare=["flagged"]), messages, NOW)) == {1, 3, 4}
    assert policies.let_go(policy(keep_for="30d"), [message(1, 30)], NOW) == {}


def test_the_strictest_wins_unless_one_overrides():
    """Several policies on one mailbox."""
    raw = [{"name": "long", "mailboxes": ["*"], "keep_for": "1y"}, {"name": "short", "mailboxes": ["\\Trash"], "keep_for": "30d"}]
    parsed, _ = parse(*raw)
    trash = policies.effective(parsed, "ada@a.test", "Trash")
    assert policies.decide(trash, [message(1, 40)], NOW)[1][0] == "short"
    parsed, _ = parse({**raw[0], "override": True}, raw[1])
    assert [found.name for found in policies.effective(parsed, "ada@a.test", "Trash")] == ["long"]
    parsed, _ = parse({**raw[1], "except_accounts": ["ada@a.test"]})
    assert policies.effective(parsed, "ada@a.test", "Trash") == []


DURATIONS = st.integers(1, 400).map(lambda days: f"{days}d")
MAILBOXES = st.lists(st.sampled_from(["INBOX", "*", "\\Trash", "Lists/*"]), min_size=1, max_size=2)
RAW = st.fixed_dictionaries(
    {"name": st.sampled_from("abcdef"), "mailboxes": MAILBOXES},
    optional={
        "keep_for": DURATIONS, "keep_newest": st.integers(1, 6), "max_size": st.integers(1, 9).map(lambda kilo: f"{kilo}K"),
        "since": st.sampled_from(["saved", "received"]), "spare": st.lists(st.sampled_from(["flagged", "unseen"]), unique=True),
        "override": st.booleans(), "domains": st.lists(st.sampled_from(["a.test", "b.test"]), max_size=1),
    },
)
MESSAGES = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 4000), st.sets(st.sampled_from(["\\Seen", "\\Flagged"]))), max_size=8
).map(lambda rows: [
    Message(number, int(NOW - saved * DAY), int(NOW - received * DAY), size, frozenset(flags))
    for number, (saved, received, size, flags) in enumerate(rows, 1)
])


def usable(raw: list[dict]) -> list[policies.Policy]:
    """Return those of *raw* that are policies."""
    found = {}
    for item in raw:
        parsed, faults = policies.parse_policy(item, FOLDERS)
        if parsed and not faults:
            found[parsed.name] = parsed
    return list(found.values())


@given(st.lists(RAW, max_size=4), MESSAGES, st.sampled_from(["INBOX", "Trash", "Lists/a"]))
def test_nothing_goes_that_no_policy_names(raw, messages, mailbox):
    """Whatever goes, an effective policy alone would let it go, too, and doesn't spare it."""
    parsed = {found.name: found for found in usable(raw)}
    effective = policies.effective(list(parsed.values()), "ada@a.test", mailbox)
    for uid, (name, why) in policies.decide(effective, messages, NOW).items():
        assert parsed[name] in effective
        assert why
        assert uid in policies.let_go(parsed[name], messages, NOW)
        (gone,) = [found for found in messages if found.uid == uid]
        assert not policies.is_spared(parsed[name], gone)


@given(st.lists(RAW, max_size=4), MESSAGES, st.sampled_from(["INBOX", "Trash", "Lists/a"]))
def test_the_strictest_wins(raw, messages, mailbox):
    """A message stays only if each effective policy lets it stay: the order of policies says nothing."""
    effective = policies.effective(usable(raw), "ada@a.test", mailbox)
    going = set(policies.decide(effective, messages, NOW))
    assert going == {uid for found in effective for uid in policies.let_go(found, messages, NOW)}
    assert set(policies.decide(list(reversed(effective)), messages, NOW)) == going


@given(RAW, DURATIONS, MESSAGES)
def test_a_longer_limit_never_lets_more_go(raw, longer, messages):
    """And is_no_stricter says so only when it is true."""
    raw = {**raw, "keep_for": "100d"}
    old, new = usable([raw]), usable([{**raw, "keep_for": longer}])
    if old and new and policies.is_no_stricter(old, new):
        assert set(policies.let_go(new[0], messages, NOW)) <= set(policies.let_go(old[0], messages, NOW))
        assert parse_duration(longer) >= 100 * DAY


@given(st.lists(RAW, max_size=3), st.lists(RAW, max_size=3), MESSAGES, st.sampled_from(["INBOX", "Trash", "Lists/a"]))
def test_what_is_no_stricter_lets_nothing_more_go(before, after, messages, mailbox):
    """The promise behind "the first run after a policy became stricter needs an acknowledgement"."""
    old, new = usable(before), usable(after)
    if policies.is_no_stricter(old, new):
        was, now = (set(policies.decide(policies.effective(one, "ada@a.test", mailbox), messages, NOW)) for one in (old, new))
        assert now <= was


@given(st.integers(1, 10**6))
def test_durations_are_shown_as_they_are_written(hours):
    """What is shown is never longer than what is meant."""
    seconds = hours * 3600
    if seconds <= 99 * 365 * DAY:
        assert parse_duration(show_duration(seconds)) <= seconds
