"""What check mode says is told by host and task, with its diff and without its secrets."""

from __future__ import annotations

import drift


def said(**results: dict) -> dict:
    """Return Ansible's JSON for one task."""
    return {"plays": [{"tasks": [{"task": {"name": "commit"}, "hosts": results}]}], "stats": {host: {} for host in results}}


def test_what_would_change_has_drifted():
    """And what would not has not."""
    diff = [{"before_header": "/etc/x", "after_header": "/etc/x", "before": "a\nb\n", "after": "a\nc $argon2id$v=19$x\n"}]
    found = list(drift.drifts(said(mail1={"changed": True, "diff": diff}, mail2={"changed": False})))
    assert [(each["host"], each["task"]) for each in found] == [("mail1", "commit")]
    assert found[0]["diff"] == "--- /etc/x\n+++ /etc/x\n-b\n+c (masked)"


def test_a_change_without_a_diff_is_told():
    """Such as a package that lacks."""
    assert [each["diff"] for each in drift.drifts(said(mail1={"changed": True}))] == [""]


def test_a_host_that_can_not_be_looked_at_is_a_fault():
    """It is neither in line nor drifted."""
    assert list(drift.faults(said(mail1={"unreachable": True, "msg": "no route"}, mail2={"changed": True}))) == ["mail1: commit: no route"]
    assert list(drift.faults({"plays": [], "stats": {}})) == ["no host was looked at"]
