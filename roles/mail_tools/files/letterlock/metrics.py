"""Textfiles for Prometheus' node exporter: what each run and each backup came to.

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
    "expunged_total": ("counter", "Messages expunged so far, because POP3 fetched them or by runs"),
    "expunged_bytes_total": ("counter", "Octets expunged so far"),
    "oldest_remaining_seconds": ("gauge", "Age of the oldest message that stays, since it was saved"),
    "seconds": ("gauge", "How long the last run took, over all policies"),
    "last_success_timestamp_seconds": ("gauge", "When a run last went through without a failure"),
    "failures": ("gauge", "Accounts that the last run could not look at"),
    "held_accounts": ("gauge", "Accounts that a hold keeps as a whole"),
}
BACKUP_METRICS = {
    "last_success_timestamp_seconds": ("gauge", "When a backup last held all it should"),
    "seconds": ("gauge", "How long the last backup took"),
    "messages": ("gauge", "Messages in the last backup's manifests"),
    "added_bytes": ("gauge", "Octets that the last backup added to the repository"),
    "snapshots": ("gauge", "Snapshots in the repository"),
    "oldest_snapshot_timestamp_seconds": ("gauge", "When the oldest snapshot was made"),
    "failures": ("gauge", "Accounts of which the last backup has no manifest or no indexes"),
    "last_check_timestamp_seconds": ("gauge", "When the repository was last found whole"),
    "last_drill_timestamp_seconds": ("gauge", "When a drill last proved a restore"),
    "drill_rto_seconds": ("gauge", "How long that drill took until all mail was back"),
    "drill_messages": ("gauge", "Messages that it read back"),
}

SCAN_METRICS = {
    "signatures_timestamp_seconds": ("gauge", "When the newest signatures in force were made"),
    "signature_faults": ("gauge", "Databases that are broken, or signatures that are old or not in force"),
    "quarantined": ("gauge", "Messages in quarantine"),
    "last_sweep_timestamp_seconds": ("gauge", "When a sweep last went through without a failure"),
    "sweep_judged": ("gauge", "Messages that the last sweep judged"),
    "sweep_taken": ("gauge", "Messages that the last sweep put into quarantine"),
    "sweep_failures": ("gauge", "What the last sweep could not look at or take away"),
    "sweep_seconds": ("gauge", "How long the last sweep took"),
}


def quoted(text: str) -> str:
    """Return *text* as a label's value."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def add_totals(totals: dict[str, dict[str, int]], expunged: Mapping[str, int], octets: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return *totals*, {metric: {policy: value}}, with what a run *expunged* added.

    >>> add_totals({}, {"trash": 2}, {"trash": 50})
    {'expunged_total': {'trash': 2}, 'expunged_bytes_total': {'trash': 50}}
    """
    added = {}
    for name, more in (("expunged_total", expunged), ("expunged_bytes_total", octets)):
        before = totals.get(name, {})
        added[name] = {policy: before.get(policy, 0) + more.get(policy, 0) for policy in sorted({*before, *more})}
    return added


def write(
    file: Path, figures: Mapping[str, Mapping[str, float] | float], known: Mapping[str, tuple[str, str]] = METRICS, area: str = "retention",
) -> None:
    """Write {metric: {policy: value}}, or {metric: value} for the whole host, to *file*, in one step."""
    lines = []
    for name, values in figures.items():
        kind, text = known[name]
        full = f"letterlock_{area}_{name}"
        lines += [f"# HELP {full} {text}.", f"# TYPE {full} {kind}"]
        if isinstance(values, dict):
            lines += [f'{full}{{policy="{quoted(policy)}"}} {value}' for policy, value in sorted(values.items())]
        else:
            lines.append(f"{full} {values}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, ("\n".join(lines) + "\n").encode(), 0o644)
