"""How old backups and drills are, and who can destroy them."""

from __future__ import annotations

import re
import time

import pytest
from letterlock.durations import parse_duration

pytestmark = pytest.mark.requirement("LOSS-3")

METRICS = "/var/lib/letterlock/metrics/backup.prom"
BACKUP_HOURS, CHECK_DAYS, DRILL_DAYS = 36, 15, 35
HOUR, DAY = 3600, 86400
LATE = 2 * DAY
CHART = "Age of backups and drills"


@pytest.fixture
def figures(host, server) -> dict[str, float]:
    """Return what the host says of its backups."""
    server.insist_on("backup", "mail_backup_repository is empty")
    shown = host.check_output(f"cat {METRICS}")
    return {name: float(value) for name, value in re.findall(r"^letterlock_backup_(\w+) ([0-9.e+]+)$", shown, re.MULTILINE)}


def age(figures: dict[str, float], name: str) -> float:
    """Return the seconds since a figure's moment; fail when there was none."""
    assert name in figures, f"there never was one: {name}"
    return time.time() - figures[name]


def test_the_last_backup_is_young(figures, figure):
    """No older than a day and a half, and of all accounts."""
    hours = age(figures, "last_success_timestamp_seconds") / HOUR
    figure(CHART, "the last backup", hours / 24, "days", most=BACKUP_HOURS / 24)
    assert hours <= BACKUP_HOURS, f"the last backup is {hours:.0f} h old"
    assert figures["failures"] == 0


def test_the_repository_was_found_whole(figures):
    """By restic's own check, within two weeks."""
    assert age(figures, "last_check_timestamp_seconds") <= CHECK_DAYS * DAY


@pytest.mark.requirement("LOSS-5")
def test_a_drill_has_read_it_back(figures, figure):
    """Within five weeks."""
    days = age(figures, "last_drill_timestamp_seconds") / DAY
    figure(CHART, "the last drill", days, "days", most=DRILL_DAYS)
    assert days <= DRILL_DAYS, f"the last drill is {days:.0f} days old"


@pytest.mark.requirement("LOSS-6")
def test_this_host_can_not_prune(host, server):
    """Another host prunes, with a password that is not here."""
    server.insist_on("backup", "mail_backup_repository is empty")
    server.insist_on("backup_pruned_by", "this host prunes its repository itself (mail_backup_pruned_by)")
    assert not host.file("/etc/letterlock/backup/pruner_password").exists or host.run("letterlock backup forget").rc != 0


@pytest.mark.requirement("LOSS-7")
def test_backups_forget(figures, server, figure):
    """The oldest snapshot is no older than mail_backup_keep_for, and the day until the next run."""
    seconds, most = age(figures, "oldest_snapshot_timestamp_seconds"), parse_duration(server.declared["backup_keep_for"]) + LATE
    figure(CHART, "the oldest snapshot", seconds / DAY, "days", most=most / DAY)
    assert seconds <= most, f"the oldest snapshot is {seconds / DAY:.0f} days old"


@pytest.mark.requirement("LOSS-1")
def test_what_is_acknowledged_is_on_the_disk(host, server):
    """Dovecot syncs before it says so."""
    assert "mail_fsync = optimized" in host.check_output("doveconf mail_fsync")
