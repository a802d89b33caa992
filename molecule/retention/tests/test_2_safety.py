"""What a typo, a clock, a second run, a kill, a broken mailbox or a full disk must not do."""

from __future__ import annotations

import re
import time

import pytest
from retention_store import LEDGER, settle

pytestmark = pytest.mark.requirement("RET-5")

ADA = "ada@letterlock.test"
MANY = "many@letterlock.test"


def fill(host, user: str, mailbox: str, count: int, days: int) -> None:
    """Save *count* messages as if *days* ago."""
    script = (
        f"for number in $(seq {count}); do "
        "printf 'Subject: m%s\\r\\nMessage-ID: <m%s@x>\\r\\n\\r\\nx\\r\\n' $number $number | "
        f"faketime -f -{days * 86400} doveadm save -u {user} -m {mailbox}; done"
    )
    host.check_output(script)


def test_too_much_at_once_is_refused(host, store):
    """More than half of a mailbox: nothing goes, the exit code says so, and the message how to go on."""
    fill(host, MANY, "Trash", 130, 31)
    refused = store.letterlock("retention run")
    assert refused.rc == 2, refused
    assert f"{MANY}, Trash: 130 of 130 messages would go, over mail_retention_ceiling_mailbox_percent (50%)" in refused.stderr
    assert "mail_retention_ceiling_host_percent" in refused.stderr
    assert len(store.subjects(MANY, "Trash")) == 130
    assert host.run("systemctl start letterlock-retention").rc != 0
    assert "nothing was deleted" in host.check_output("journalctl --unit letterlock-retention --no-pager --lines 30")
    assert len(store.subjects(MANY, "Trash")) == 130
    assert store.letterlock(f"retention run --acknowledge {store.word(refused.stderr)}").rc == 0
    assert store.subjects(MANY, "Trash") == set()


@pytest.mark.any_format
@pytest.mark.parametrize(("clock", "saying"), [("-3d", "the ledger's newest line is of"), ("+4000d", "after the ledger's newest line")])
def test_a_clock_that_jumped_empties_nothing(store, clock, saying):
    """Behind the ledger, or implausibly ahead of it."""
    before = store.subjects(ADA, "INBOX")
    assert before
    refused = store.letterlock("retention run", clock=clock)
    assert refused.rc == 2, refused
    assert saying in refused.stderr, refused.stderr
    assert store.letterlock("retention fetched", clock=clock).rc == 2
    assert store.subjects(ADA, "INBOX") == before


@pytest.mark.any_format
def test_a_second_run_waits(host, store):
    """Two at once would count each other's mail."""
    store.save(ADA, "Trash", 31, "waits")
    started = time.monotonic()
    both = host.run("flock /var/lib/letterlock/retention.lock sleep 3 & sleep 0.5; letterlock retention run; code=$?; wait; exit $code")
    assert both.rc == 0, both
    assert time.monotonic() - started >= 3
    assert "waits" not in store.subjects(ADA, "Trash")


def test_a_run_that_is_killed_goes_on(host, store):
    """What was deleted is recorded, what was not is still there, and the next run finishes."""
    fill(host, MANY, "Trash", 95, 31)
    guids = set(host.check_output(f"doveadm -f tab fetch -u {MANY} guid mailbox Trash ALL | tail -n +2").split())
    for moment in ("0.15", "0.25", "0.35"):
        host.run(f"(timeout --signal KILL {moment} letterlock retention run); :")
        left = set(host.run(f"doveadm -f tab fetch -u {MANY} guid mailbox Trash ALL | tail -n +2").stdout.split())
        recorded = {line["guid"] for line in store.ledger() if line["kind"] == "expunge"}
        assert guids - left <= recorded, "something went that is not recorded"
        assert store.letterlock("ledger verify").rc == 0
    store.run()
    assert store.subjects(MANY, "Trash") == set()
    assert store.letterlock("ledger verify").rc == 0


def test_a_broken_mailbox_stops_nobody_else(host, store, declared):
    """That account is reported by name, the others are done, and the exit code tells."""
    user = "broken@letterlock.test"
    store.save(user, "Trash", 31, "broken")
    store.save(ADA, "Trash", 31, "whole")
    home = f"{declared['mail_root']}/letterlock.test/broken"
    # What Dovecot can rebuild it rebuilds by itself; a directory in a file's place it can't.
    name = {"sdbox": "dovecot.index.log", "maildir": "dovecot-uidlist"}[declared["mail_format"]]
    index = host.check_output(f"find {home} -path '*Trash*' -name {name} | head -1")
    host.check_output(f"rm -f {index} && mkdir {index} && find {home} -path '*Trash*' -name 'dovecot.index' -delete")
    done = store.letterlock("retention run")
    assert done.rc == 1, done
    assert f"FAILED {user}" in done.stderr, done.stderr
    assert "whole" not in store.subjects(ADA, "Trash")
    assert "letterlock_retention_failures 1" in host.check_output("cat /var/lib/letterlock/metrics/retention.prom")
    host.check_output(f"rmdir {index} && doveadm force-resync -u {user} '*'")
    store.run()


@pytest.mark.requirement("RET-4", "RET-5")
def test_a_full_disk_deletes_nothing_that_is_not_recorded(host, store):
    """The ledger's disk is full: the run fails and the mail is there."""
    # More lines than fit into what is left of the ledger's last block.
    names = {f"unrecorded-{number}" for number in range(30)}
    store.save(ADA, "Trash", 31, *names)
    small = f"mount -t tmpfs -o size=1m,mode=0700 tmpfs {LEDGER}"
    host.check_output(f"cp -a {LEDGER} /root/ledger && {small} && cp -a /root/ledger/. {LEDGER}/")
    try:
        host.run(f"head -c 2M /dev/zero > {LEDGER}/filler")
        failed = store.letterlock("retention run")
        assert failed.rc == 1, failed
        assert "No space left" in failed.stderr
        assert names <= store.subjects(ADA, "Trash")
        host.check_output(f"rm {LEDGER}/filler")
        assert store.letterlock("ledger verify").rc == 0
    finally:
        host.check_output(f"umount {LEDGER}; rm -rf /root/ledger")
    store.run()
    assert not names & store.subjects(ADA, "Trash")


@pytest.mark.any_format
@pytest.mark.requirement("RET-4")
@pytest.mark.parametrize("command", ["sed -i 3d", "sed -i '3s/\"kind\"/\"kinD\"/'", "sed -i '$d'", "truncate --size 0"])
def test_a_ledger_that_was_touched_is_found(host, store, command):
    """A line gone, a line changed, the end cut off, everything gone."""
    host.check_output(f"cp -a {LEDGER} /root/ledger")
    try:
        host.check_output(f"{command} {LEDGER}/ledger-*.jsonl")
        assert store.letterlock("ledger verify").rc == 1
    finally:
        host.check_output(f"rm -rf {LEDGER} && mv /root/ledger {LEDGER}")
    assert store.letterlock("ledger verify").rc == 0


@pytest.mark.any_format
@pytest.mark.requirement("RET-4")
def test_the_ledger_forgets_its_oldest_segments(host, store):
    """It begins a segment anew every eighth of mail_retention_ledger_keep_for, drops what is older, and stays whole."""
    host.check_output("cp -a /var/lib/letterlock /root/letterlock")
    try:
        first = host.check_output(f"ls {LEDGER}/ledger-*.jsonl").splitlines()[0]
        lines = len(store.ledger())
        # An entry every 200 days, for four years.
        for days in range(200, 1600, 200):
            assert store.letterlock("erase ghost@letterlock.test --confirm ghost@letterlock.test", clock=f"+{days}d").rc == 0
            assert store.letterlock("ledger verify").rc == 0
        assert not host.file(first).exists
        assert len(host.check_output(f"ls {LEDGER}/ledger-*.jsonl").splitlines()) > 1
        assert len(store.ledger()) < lines
        assert store.letterlock("ledger verify").rc == 0
    finally:
        host.check_output("rm -rf /var/lib/letterlock && mv /root/letterlock /var/lib/letterlock")


@pytest.mark.any_format
@pytest.mark.requirement("RET-4")
def test_metrics(host, store):
    """What monitoring sees."""
    store.run()
    metrics = host.check_output("cat /var/lib/letterlock/metrics/retention.prom")
    for name in ("examined", "expunged", "expunged_bytes"):
        assert f'letterlock_retention_{name}{{policy="trash"}}' in metrics
    assert 'letterlock_retention_expunged_total{policy="trash"}' in metrics
    assert 'letterlock_retention_oldest_remaining_seconds{policy="inbox"}' in metrics
    assert "letterlock_retention_last_success_timestamp_seconds" in metrics
    assert host.file("/var/lib/letterlock/metrics/retention.prom").mode == 0o644


@pytest.mark.any_format
@pytest.mark.requirement("HARD-1", "OPS-4")
def test_the_units_are_sandboxed_and_the_timer_waits(host):
    """By systemd's own score, and by what the process may do."""
    for unit in ("letterlock-retention", "letterlock-fetched"):
        score = float(re.search(r"service: ([\d.]+)", host.check_output(f"systemd-analyze security {unit} | tail -1")).group(1))
        assert score <= 2.5, (unit, score)
    units = "letterlock-retention.timer letterlock-fetched.path letterlock-fetched.timer"
    assert host.check_output(f"systemctl is-enabled {units}").split() == ["enabled"] * 3
    assert "letterlock-retention.timer" in host.check_output("systemctl list-timers --no-pager")
    assert settle(lambda: host.check_output("systemctl is-active letterlock-fetched.path") == "active")
