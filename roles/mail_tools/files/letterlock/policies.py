"""Retention policies: what they say, which of them holds for a mailbox, and which messages it lets go.

Pure functions of their arguments. The controller's preflight and the host's
runs use this one module, so that what was accepted is what is done.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from letterlock.durations import DAY, parse_duration, parse_size, show_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

# RFC 6154, 2.
SPECIAL_USES = ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")
SPARED_FLAGS = {"flagged": "\\Flagged", "unseen": "\\Seen"}
KEYS = {
    "name", "accounts", "domains", "except_accounts", "mailboxes", "keep_for", "since", "keep_newest", "max_size", "spare",
    "override", "pop3",
}
WILDCARDS = {"*": ".*", "?": "."}
KEEP, EXPUNGE = "keep", "expunge"


@dataclass(frozen=True)
class Message:
    """What of a message a policy may look at: never its content.

    Times are seconds since the epoch, size is in octets.
    """

    uid: int
    saved: int
    received: int = 0
    size: int = 0
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Policy:
    """One policy, with durations in seconds and sizes in octets."""

    name: str
    accounts: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    except_accounts: tuple[str, ...] = ()
    mailboxes: tuple[str, ...] = ()
    keep_for: int | None = None
    since: str = "saved"
    keep_newest: int | None = None
    max_size: int | None = None
    spare: frozenset[str] = frozenset()
    override: bool = False
    # None says nothing of POP3; otherwise "keep" or the seconds from the fetch to the expunge.
    after_fetch: str | int | None = None
    patterns: tuple[re.Pattern[str], ...] = field(default=(), compare=False, repr=False)

    @property
    def limits(self) -> bool:
        """Whether the policy limits a mailbox, and not only what POP3 leaves."""
        return self.keep_for is not None or self.keep_newest is not None or self.max_size is not None

    def covers_account(self, account: str) -> bool:
        """Tell whether *account* is in the policy's scope."""
        if account in self.except_accounts:
            return False
        if not self.accounts and not self.domains:
            return True
        return account in self.accounts or account.rpartition("@")[2] in self.domains

    def covers_mailbox(self, mailbox: str) -> bool:
        """Tell whether *mailbox* is one of those that the policy names."""
        return any(pattern.fullmatch(mailbox) for pattern in self.patterns)

    def describe(self) -> str:
        """Return the limits in words."""
        parts = []
        if self.keep_for is not None:
            parts.append(f"keeps for {show_duration(self.keep_for)} since {self.since}")
        if self.keep_newest is not None:
            parts.append(f"keeps the newest {self.keep_newest}")
        if self.max_size is not None:
            parts.append(f"keeps {self.max_size} octets, the newest first")
        if self.spare:
            parts.append("spares " + " and ".join(sorted(self.spare)))
        if self.after_fetch == KEEP:
            parts.append("keeps what POP3 fetched")
        elif self.after_fetch is not None:
            when = f"after {show_duration(self.after_fetch)}" if self.after_fetch else "at once"
            parts.append(f"expunges what POP3 fetched {when}")
        return ", ".join(parts)


def folders_of(mailboxes: list[dict]) -> dict[str, str]:
    """Return {name: special use or ""} of dovecot_mailboxes."""
    return {mailbox["name"]: mailbox.get("special_use") or "" for mailbox in mailboxes}


def pattern_of(mailbox: str, folders: dict[str, str]) -> list[re.Pattern[str]]:
    r"""Return what *mailbox*, a name, glob or special use, stands for.

    *folders* is {name: special use or ""}. In a name `*` stands for anything,
    `?` for one character, and a backslash before `*`, `?` or itself for that character.
    Raises ValueError with the reason, and where there is one with the name that was meant.
    """
    if re.fullmatch(r"\\[A-Za-z]+", mailbox):
        named = [name for name, use in folders.items() if use.lower() == mailbox.lower()]
        if named:
            return [re.compile(re.escape(name)) for name in named]
        close = difflib.get_close_matches(mailbox, {use for use in folders.values() if use}, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        why = "no folder in dovecot_mailboxes has it" if mailbox in SPECIAL_USES else "there is no such special use"
        raise ValueError(f"{mailbox}: {why}{hint}")
    if not mailbox or re.search(r"[\x00-\x1f\x7f]", mailbox):
        raise ValueError(f"{mailbox!r} is not a mailbox's name")
    parts, literal = [], True
    for part in re.findall(r"\\[*?\\]|.", mailbox):
        if part in WILDCARDS:
            literal = False
            parts.append(WILDCARDS[part])
        elif len(part) == 1 and part in "[]{}":
            raise ValueError(f"{mailbox}: globs know * and ?, not {part}")
        else:
            parts.append(re.escape(part[-1]))
    if literal and mailbox not in folders and mailbox.upper() != "INBOX":
        close = difflib.get_close_matches(mailbox, folders, n=1, cutoff=0.8)
        if close:
            raise ValueError(f"{mailbox}: no such folder; did you mean {close[0]}?")
    # RFC 9051, 5.1: INBOX in any case.
    flags = re.IGNORECASE if mailbox.upper() == "INBOX" else 0
    return [re.compile("".join(parts), flags | re.DOTALL)]


def parse_pop3(raw: object) -> str | int | None:
    """Return what *raw*, a policy's `pop3`, asks for; raise ValueError with the reason when it is not understood."""
    if raw is None:
        return None
    if not isinstance(raw, dict) or len(raw) != 1:
        raise ValueError("pop3: give either after_fetch (expunge or keep) or expunge_after (such as 24h)")
    (name, value), = raw.items()
    if name == "expunge_after":
        return parse_duration(value)
    if name == "after_fetch" and value in (KEEP, EXPUNGE):
        return KEEP if value == KEEP else 0
    raise ValueError(f"pop3: {name}: {value!r}; give either after_fetch (expunge or keep) or expunge_after (such as 24h)")


def parse_limits(raw: dict, faults: list[str]) -> dict:
    """Return the values of *raw*'s limits; add what is wrong with them to *faults*."""
    values: dict = {}
    for key, parse in (("keep_for", parse_duration), ("max_size", parse_size), ("keep_newest", parse_count)):
        if raw.get(key) is not None:
            try:
                values[key] = parse(raw[key])
            except ValueError as error:
                faults.append(f"{key}: {error}")
    try:
        values["after_fetch"] = parse_pop3(raw.get("pop3"))
    except ValueError as error:
        faults.append(str(error))
    values["since"] = raw.get("since") or "saved"
    if values["since"] not in ("saved", "received"):
        faults.append(f"since: {values['since']!r}; choose saved or received")
    values["spare"] = frozenset(raw.get("spare") or ())
    faults += [f"spare: {flag!r}; choose from {', '.join(SPARED_FLAGS)}" for flag in sorted(values["spare"] - set(SPARED_FLAGS))]
    return values


def parse_count(value: object) -> int:
    """Return *value*; raise ValueError unless it is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return value


def parse_mailboxes(mailboxes: tuple[str, ...], folders: dict[str, str], faults: list[str]) -> tuple[re.Pattern[str], ...]:
    """Return the patterns of *mailboxes*; add what is wrong with them to *faults*."""
    patterns = []
    for mailbox in mailboxes:
        try:
            patterns += pattern_of(mailbox, folders)
        except ValueError as error:
            faults.append(f"mailboxes: {error}")
    return tuple(patterns)


def policy_faults(policy: Policy) -> list[str]:
    """Return why *policy*, whose parts are well formed, makes no sense as a whole."""
    faults = []
    if not policy.limits and policy.after_fetch is None:
        faults.append("limits nothing; give keep_for, keep_newest, max_size or pop3")
    if policy.limits and not policy.mailboxes:
        faults.append("mailboxes: empty; name what keep_for, keep_newest or max_size limit")
    if policy.keep_for is not None and isinstance(policy.after_fetch, int) and policy.keep_for < policy.after_fetch:
        faults.append(
            "keep_for is shorter than pop3's expunge_after, so mail would go before its grace has passed; make keep_for at least as long"
        )
    return faults


def parse_policy(raw: dict, folders: dict[str, str]) -> tuple[Policy | None, list[str]]:
    """Return the policy that *raw* declares, and why there is none."""
    faults: list[str] = []
    if not isinstance(raw.get("name"), str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", raw["name"]):
        faults.append("a name has letters, digits and . _ - and begins with a letter or digit")
    faults += [f"{key}: no such key; a policy has {', '.join(sorted(KEYS))}" for key in sorted(set(raw) - KEYS)]
    values = {"name": raw.get("name"), "override": bool(raw.get("override")), **parse_limits(raw, faults)}
    for key in ("accounts", "domains", "except_accounts", "mailboxes"):
        values[key] = tuple(raw.get(key) or ())
    values["patterns"] = parse_mailboxes(values["mailboxes"], folders, faults)
    policy = None if faults else Policy(**values)
    if policy:
        faults = policy_faults(policy)
    return policy, [f"mail_retention_policies: {raw.get('name')!r}: {fault}" for fault in faults]


def scopes_meet(one: Policy, other: Policy, accounts: Iterable[str]) -> bool:
    """Tell whether an account may be in both scopes: one of *accounts*, or one that may come."""
    if not (one.accounts or other.accounts) and (not one.domains or not other.domains or set(one.domains) & set(other.domains)):
        return True
    return any(one.covers_account(account) and other.covers_account(account) for account in {*accounts, *one.accounts, *other.accounts})


def contradictions(policies: list[Policy], folders: dict[str, str], accounts: list[str]) -> list[str]:
    """Return the pairs of policies that can't both hold, where "the strictest wins" is no answer."""
    faults = []
    names = {*folders, "INBOX", *(mailbox for policy in policies for mailbox in policy.mailboxes)}
    for number, one in enumerate(policies):
        for other in policies[number + 1 :]:
            label = f"mail_retention_policies: {one.name!r} and {other.name!r}"
            if one.name == other.name:
                faults.append(f"{label}: the same name twice")
            if not scopes_meet(one, other, accounts):
                continue
            told = (one.after_fetch, other.after_fetch)
            if None not in told and told[0] != told[1] and one.override == other.override:
                faults.append(f"{label}: contradict each other on POP3 for the same accounts; let one say override, or part their scopes")
            shared = sorted(name for name in names if one.covers_mailbox(name) and other.covers_mailbox(name))
            if one.override and other.override and shared and one.limits and other.limits:
                faults.append(f"{label}: both say override for {', '.join(shared)}; only one can")
    return faults


def parse_policies(raw: list[dict], folders: dict[str, str], accounts: list[str]) -> tuple[list[Policy], list[str]]:
    """Return the policies that *raw* declares, and every fault of each and between them.

    *accounts* are those that are known, for whom two policies may meet.
    """
    policies, faults = [], []
    for item in raw:
        policy, found = parse_policy(item, folders)
        faults += found
        if policy is not None:
            policies.append(policy)
    return policies, faults + contradictions(policies, folders, accounts)


def unknown_accounts(policies: list[Policy], accounts: list[str], domains: list[str]) -> list[str]:
    """Return a fault for each account and domain that a policy names and that does not exist."""
    faults = []
    known = {"accounts": (accounts, "account"), "except_accounts": (accounts, "account"), "domains": (domains, "domain")}
    for policy in policies:
        for key, (names, what) in known.items():
            for name in getattr(policy, key):
                if name not in names:
                    close = difflib.get_close_matches(name, names, n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    faults.append(f"mail_retention_policies: {policy.name!r}: {key}: there is no {what} {name}{hint}")
    return faults


def effective(policies: list[Policy], account: str, mailbox: str) -> list[Policy]:
    """Return the policies that limit *mailbox* of *account*: those that override, if any, else all that cover it."""
    return strictest([policy for policy in policies if policy.limits and policy.covers_account(account)], mailbox)


def strictest(policies: list[Policy], mailbox: str) -> list[Policy]:
    """Return those of an account's *policies* that limit *mailbox*: those that override, if any, else all that cover it."""
    covering = [policy for policy in policies if policy.covers_mailbox(mailbox)]
    return [policy for policy in covering if policy.override] or covering


def effective_after_fetch(policies: list[Policy], account: str) -> tuple[str | int, Policy | None]:
    """Return what becomes of mail that POP3 fetched from *account*, "keep" or seconds, and which policy says so."""
    covering = [policy for policy in policies if policy.after_fetch is not None and policy.covers_account(account)]
    chosen = [policy for policy in covering if policy.override] or covering
    if not chosen:
        return KEEP, None
    return chosen[0].after_fetch, chosen[0]


def is_spared(policy: Policy, message: Message) -> bool:
    r"""Tell whether *policy* spares *message*: `flagged` with \Flagged, `unseen` without \Seen."""
    return ("flagged" in policy.spare and "\\Flagged" in message.flags) or ("unseen" in policy.spare and "\\Seen" not in message.flags)


def let_go(policy: Policy, messages: list[Message], now: float) -> dict[int, str]:
    """Return {uid: why} of the *messages* of one mailbox that *policy* alone lets go.

    For keep_newest and max_size *messages* must be the whole mailbox; what is
    spared counts, and stays.
    """
    going: dict[int, str] = {}
    may_go = {message.uid for message in messages if not is_spared(policy, message)}
    newest_first = sorted(messages, key=lambda message: (getattr(message, policy.since), message.uid), reverse=True)
    if policy.keep_for is not None:
        why = f"{policy.since} over {show_duration(policy.keep_for)} ago"
        going = {message.uid: why for message in messages if getattr(message, policy.since) < now - policy.keep_for}
    if policy.keep_newest is not None:
        for message in newest_first[policy.keep_newest :]:
            going.setdefault(message.uid, f"not among the newest {policy.keep_newest}")
    going = {uid: why for uid, why in going.items() if uid in may_go}
    if policy.max_size is not None:
        staying = [message for message in newest_first if message.uid not in going]
        over = sum(message.size for message in staying) - policy.max_size
        for message in reversed([message for message in staying if message.uid in may_go]):
            if over <= 0:
                break
            going[message.uid] = f"the mailbox is over {policy.max_size} octets"
            over -= message.size
    return going


def decide(policies: list[Policy], messages: list[Message], now: float) -> dict[int, tuple[str, str]]:
    """Return {uid: (policy's name, why)} of what any of the effective *policies* lets go: the strictest wins."""
    going: dict[int, tuple[str, str]] = {}
    for policy in policies:
        for uid, why in let_go(policy, messages, now).items():
            going.setdefault(uid, (policy.name, why))
    return going


def is_no_stricter(old: list[Policy], new: list[Policy]) -> bool:
    """Tell whether *new* provably lets nothing go that *old* would not have let go, whatever is in the mailboxes."""
    before = {policy.name: policy for policy in old}
    after = {policy.name for policy in new}
    # What held others back must still be there.
    if any((policy.override or policy.after_fetch == KEEP) and policy.name not in after for policy in old):
        return False
    return all(policy.name in before and loosens(before[policy.name], policy) for policy in new)


def loosens(old: Policy, new: Policy) -> bool:
    """Tell whether *new* is *old* with limits that are no narrower."""
    same = ("accounts", "domains", "mailboxes", "since", "override")
    if any(getattr(old, name) != getattr(new, name) for name in same) or not set(old.except_accounts) <= set(new.except_accounts):
        return False
    for name in ("keep_for", "keep_newest", "max_size"):
        was, now = getattr(old, name), getattr(new, name)
        if now is not None and (was is None or now < was):
            return False
    if not old.spare <= new.spare:
        return False
    if new.after_fetch in (None, KEEP) or old.after_fetch == new.after_fetch:
        return new.after_fetch is not None or old.after_fetch != KEEP
    return isinstance(old.after_fetch, int) and new.after_fetch >= old.after_fetch


def gone_everywhere_after(policies: list[Policy], backups_kept: int) -> tuple[int, str] | None:
    """Return (seconds, the policy's name) after which mail is on no host and in no backup; None if no policy sets a time.

    *backups_kept* is how long snapshots stay, in seconds. A run a day, and a backup that was made just before it.
    """
    longest = max(((policy.keep_for, policy.name) for policy in policies if policy.keep_for is not None), default=None)
    return longest and (longest[0] + backups_kept + DAY, longest[1])
