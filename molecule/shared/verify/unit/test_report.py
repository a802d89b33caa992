"""A requirement is proven only by tests that ran, and what is told of it holds no secret."""

from __future__ import annotations

import json

import pytest
import report
from evidence import masked

HOST = {"name": "mail1", "claims": [], "profile": "standard"}
FIGURE = json.dumps({"chart": "Certificates", "what": "left", "value": 12, "unit": "days", "most": None, "least": 7})
ABOUT = {"begun": 1_795_000_000.0, "seconds": 3.0, "kit": "1", "inventory": "here"}


def came_to(outcome: str, why: str = "", number: str = "TLS-1") -> dict:
    """Return what a test came to."""
    return {
        "test": "test_x", "file": "test_x.py", "host": "mail1", "outcome": outcome, "why": why, "seconds": 0.1, "requirements": [number],
        "says": "It holds.", "figures": [FIGURE], "evidence": [{"command": "look", "code": 0, "answer": "<b>seen</b>"}],
    }


@pytest.mark.parametrize(("tests", "state"), [
    ([came_to("passed")], "proven"),
    ([came_to("passed"), came_to("failed", "no")], "violated"),
    ([came_to("passed"), came_to("skipped", "not proven: no account")], "not proven"),
    ([came_to("passed"), came_to("skipped", "not claimed: off")], "proven"),
    ([came_to("skipped", "not claimed: off")], "not claimed"),
    ([came_to("failed", "no"), came_to("skipped", "not proven: no account")], "violated"),
    ([], "not proven"),
])
def test_the_worst_counts(tests, state):
    """And what was not looked at is never proven."""
    assert report.state_of(tests, claimed=True)[0] == state


def test_what_is_not_claimed_is_not_violated():
    """The host does not promise it."""
    assert report.state_of([came_to("failed", "no")], claimed=False)[0] == "not claimed"
    made = report.make([{**HOST, "claims": ["TLS-2"]}], [came_to("failed", "no")], ABOUT)
    assert report.violations(made) == []


def test_a_report_in_all_its_forms(tmp_path):
    """The page escapes what hosts answer and needs no network; the second one tells what changed."""
    report.write(report.make([HOST], [came_to("passed")], ABOUT), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;seen&lt;/b&gt;" in page
    assert "src=" not in page
    assert "http" not in page
    report.write(report.make([HOST], [came_to("failed", "port 143 is open")], {**ABOUT, "begun": ABOUT["begun"] + 60}), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["changes"] == [{"what": "mail1 TLS-1", "was": "proven", "is": "violated"}]
    assert report.violations(found) == [("mail1", "TLS-1", "port 143 is open")]
    (result,) = [each for each in json.loads((tmp_path / "report.sarif").read_text())["runs"][0]["results"] if each["kind"] == "fail"]
    assert result["ruleId"] == "TLS-1"
    assert "since the last run: mail1 TLS-1 was proven and is violated" in list(report.summary(found))
    assert len(list((tmp_path / "history").glob("*.json"))) == 2


@pytest.mark.parametrize("secret", [
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXRoaW5n$3QX2", "-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----",
    "AGE-SECRET-KEY-1ABC", "-----BEGIN ENCRYPTED PRIVATE KEY-----\ncut off", "hunter2", "rest:https://mail1:hunter3@store/",
])
def test_no_secret_is_told(secret):
    """Neither one that is known nor what looks like one."""
    entry = masked({"command": f"look for {secret}", "code": 1, "answer": secret}, ["hunter2"])
    for part in ("MIG", "3QX2", "KEY-1ABC", "cut off", "hunter"):
        assert part not in entry["command"] + entry["answer"]
