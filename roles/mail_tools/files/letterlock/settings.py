"""What the kit's roles hand to the programs on the host: one JSON file in the live release."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from letterlock import policies as rules
from letterlock.durations import parse_duration
from letterlock.holds import hold_search

FILE = Path("/etc/letterlock/dovecot/current/retention.json")


class Unusable(Exception):
    """The settings can't be used; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What retention has to do. Shares are fractions, times seconds."""

    raw: dict
    folders: dict[str, str]
    policies: list[rules.Policy]
    holds: list[dict]
    mailbox_share: float
    host_share: float
    always_allowed: int
    clock_ahead_seconds: int
    ledger_keep_seconds: int
    held_mailbox: str
    mail_root: Path
    spool: Path
    metrics_file: Path
    state_directory: Path


def read(file: Path = FILE) -> Settings:
    """Return the settings in *file*; raise Unusable."""
    try:
        raw = json.loads(file.read_text())
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror}; mail_retention is not deployed on this host") from error
    folders = rules.folders_of(raw["folders"])
    policies, faults = rules.parse_policies(raw["policies"], folders, [])
    if faults:
        raise Unusable("\n".join(faults))
    return Settings(
        raw=raw, folders=folders, policies=policies, holds=[{**hold, "search": hold_search(hold)} for hold in raw["holds"]],
        mailbox_share=raw["ceiling"]["mailbox_percent"] / 100, host_share=raw["ceiling"]["host_percent"] / 100,
        always_allowed=raw["ceiling"]["always_allowed"], clock_ahead_seconds=parse_duration(raw["clock_ahead_max"]),
        ledger_keep_seconds=parse_duration(raw["ledger_keep_for"]), spool=Path(raw["spool"]),
        held_mailbox=raw["held_mailbox"], mail_root=Path(raw["mail_root"]),
        metrics_file=Path(raw["metrics_file"]), state_directory=Path(raw["state_directory"]),
    )
