"""What mail_scan hands to the programs on the host: one JSON file in the live release."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from letterlock.clamd import Clamd
from letterlock.durations import parse_duration, parse_patience
from letterlock.settings import Unusable

FILE = Path("/etc/letterlock/dovecot/current/scan.json")
STATE = Path("/var/lib/letterlock/scan")
QUARANTINE = Path("/var/lib/letterlock/quarantine")
# Beside the quarantine, with which it is backed up.
RELEASED = Path("/var/lib/letterlock/released.sqlite")


@dataclass(frozen=True)
class GateSettings:
    """What happens before a session. Times are seconds."""

    enabled: bool
    budget: float
    # Whether a session waits for all that has to be judged, however long that takes.
    waits: bool
    # Whether a session begins with mail that was never judged when the scanner gives no verdict.
    serves_unjudged: bool
    recent_seconds: int
    # {protocol: socket of what else stands before its sessions}
    others: dict[str, str]


@dataclass(frozen=True)
class ScanSettings:
    """What mail_scan has to do. Times are seconds, sizes octets."""

    raw: dict
    # What becomes of a message by the kind of its verdict.
    policy: dict[str, str]
    deliver_unscanned: bool
    timeout: float
    clamd_socket: str
    # Where Dovecot's own LMTP listens behind the front.
    lmtp_socket: str
    message_size_max: int
    recipients: list[str]
    keep_seconds: int
    # Directories whose databases are in force, the distributor's first.
    sources: list[Path]
    age_max_seconds: int
    metrics_file: Path
    mail_root: Path
    gate: GateSettings

    def clamd(self) -> Clamd:
        """Return the scanner."""
        return Clamd(self.clamd_socket, self.timeout)


def read(file: Path = FILE) -> ScanSettings:
    """Return the settings in *file*; raise Unusable."""
    try:
        raw = json.loads(file.read_text())
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror}; mail_scan is not deployed on this host") from error
    gate = raw["gate"]
    return ScanSettings(
        gate=GateSettings(
            gate["enabled"], parse_patience(gate["budget"]), gate["over_budget"] == "wait", gate["unavailable"] == "continue",
            parse_duration(gate["recent"]), gate["others"],
        ),
        raw=raw, policy=raw["policy"], deliver_unscanned=raw["unavailable"] == "deliver_unscanned",
        timeout=parse_patience(raw["timeout"]), clamd_socket=raw["clamd_socket"], lmtp_socket=raw["lmtp_socket"],
        message_size_max=raw["message_size_max"], recipients=raw["recipients"],
        keep_seconds=parse_duration(raw["keep_for"]), sources=[Path(source) for source in raw["sources"]],
        age_max_seconds=parse_duration(raw["age_max"]), metrics_file=Path(raw["metrics_file"]), mail_root=Path(raw["mail_root"]),
    )
