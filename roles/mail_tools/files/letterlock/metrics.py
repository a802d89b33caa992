"""A textfile for Prometheus' node exporter: what each run came to.

https://github.com/prometheus/node_exporter#textfile-collector
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from letterlock.ledger import write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

METRICS = {
    "examined": ("gauge", "Messages in the mailboxes that the policy covers"),
    "expunged": ("gauge", "Messages that the last run expunged"),
    "expunged_bytes": ("gauge", "Octets that the last run expunged"),
    "oldest_remaining_seconds": ("gauge", "Age of the oldest message that stays, since it was saved"),
}


def quoted(text: str) -> str:
    """Return *text* as a label's value."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write(file: Path, by_policy: Mapping[str, Mapping[str, float]], host: Mapping[str, float]) -> None:
    """Write {metric: {policy: value}} and {metric: value} of the whole host to *file*, in one step."""
    lines = []
    for name, values in by_policy.items():
        kind, text = METRICS[name]
        lines += [f"# HELP letterlock_retention_{name} {text}.", f"# TYPE letterlock_retention_{name} {kind}"]
        lines += [f'letterlock_retention_{name}{{policy="{quoted(policy)}"}} {value}' for policy, value in sorted(values.items())]
    for name, value in host.items():
        lines += [f"# TYPE letterlock_retention_{name} gauge", f"letterlock_retention_{name} {value}"]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, ("\n".join(lines) + "\n").encode(), 0o644)
