"""What is still there and should not be, and whether the record of what went holds."""

from __future__ import annotations

import json
import re

import pytest
from letterlock.durations import parse_duration
from letterlock.tally import OLDEST

pytestmark = pytest.mark.requirement("RET-1")

# A run a day, and two hours for it.
LATE = "26h"
DAY = 86400
STATE = "/var/lib/letterlock"
METRICS = f"{STATE}/metrics/retention.prom"


@pytest.fixture(autouse=True)
def _in_use(server) -> None:
    """Skip all of this where there is no policy."""
    server.insist_on("retention", "mail_retention_policies is empty")


def test_nothing_stays_past_its_policy(host, server):
    """No message that should have gone a day ago is in any mailbox, those of accounts that nobody uses among them."""
    said = host.check_output(f"letterlock retention run --dry-run --late {LATE}").splitlines()
    total = next(line for line in said if "messages would go" in line)
    assert total.startswith("0 messages"), "\n".join(said[-10:])


def test_runs_go_through(host, server, figure):
    """The last one could look at every account."""
    shown = host.check_output(f"cat {METRICS}")
    limits = {name: parse_duration(text) / DAY for name, text in server.declared["retention_keep_for"].items()}
    known = host.run(f"cat {STATE}/{OLDEST}")
    for each in json.loads(known.stdout)["mailboxes"] if not known.rc else []:
        what = f"{each['account']}, {each['mailbox']} ({each['policy']})"
        figure("Oldest mail that remains, by mailbox", what, each["seconds"] / DAY, "days", most=limits.get(each["policy"]))
    assert re.search(r"letterlock_retention_failures 0\b", shown), shown[:500]


@pytest.mark.requirement("RET-2")
def test_what_pop3_fetches_goes(host, server):
    """The relay that knows what was fetched stands before POP3's sessions."""
    server.insist_on("fetched", "no policy speaks of POP3")
    assert "pop3" in server.declared["protocols"]
    assert "letterlock" in host.check_output("doveconf service/pop3/executable")


@pytest.mark.requirement("RET-3")
def test_holds_are_in_force(host, server):
    """Those that the inventory declares, and no others."""
    listed = host.check_output("letterlock hold list").splitlines()
    for name in server.declared["holds"]:
        assert any(name in line for line in listed), f"the hold {name} is not in force"
    if not server.declared["holds"]:
        pytest.skip("not claimed: no hold is declared")


@pytest.mark.requirement("RET-4")
def test_the_record_is_whole(host, server):
    """No line of the ledger was removed, changed or moved, and its end is there."""
    done = host.run("letterlock ledger verify")
    assert done.rc == 0, done.stdout + done.stderr


@pytest.mark.requirement("RET-5")
def test_the_last_run_refused_nothing(host, server):
    """Nothing waits for somebody to look: a refusal for the ceiling, or a clock."""
    said = host.check_output("systemctl show letterlock-retention.service --property Result --property ExecMainStatus")
    assert "Result=success" in said, said
