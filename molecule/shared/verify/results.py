"""A pytest plugin that keeps what each test came to, with its requirements and its evidence, in one JSON file."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

HOST = re.compile(r"ssh://[\w.-]+?(?=[]-])")


class Keeper:
    """Collects on the controller what workers report."""

    def __init__(self, file: Path, hosts: list[str]) -> None:
        """Write to *file* what is found of *hosts* when the session ends."""
        self.file, self.hosts, self.found = file, hosts, {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test came to; the worst of its phases counts."""
        properties = {}
        for name, value in report.user_properties:
            properties.setdefault(name, []).append(value)
        found = self.found.setdefault(report.nodeid, {
            "test": HOST.sub("", report.nodeid.split("::")[-1]).replace("[]", "").replace("[-", "["), "file": report.nodeid.split("::")[0],
            "host": host_in(report.nodeid, self.hosts), "outcome": "passed", "why": "", "seconds": 0.0,
        })
        found["seconds"] += report.duration
        found["requirements"] = json.loads(properties.get("requirements", ["[]"])[0])
        found["says"] = properties.get("says", [""])[0]
        found["figures"] = properties.get("figure", [])
        found["evidence"] = json.loads(properties.get("evidence", ["[]"])[0])
        if report.outcome != "passed":
            found["outcome"], found["why"] = report.outcome, reason(report)
        if report.when == "teardown":
            mark = {"passed": "ok", "skipped": "--", "failed": "NO"}[found["outcome"]]
            print(f"  {mark} {found['host']}: {', '.join(found['requirements'])}: {found['says']}", file=sys.stderr, flush=True)

    def pytest_sessionfinish(self) -> None:
        """Write all of it."""
        self.file.write_text(json.dumps(list(self.found.values()), indent=2))


def host_in(nodeid: str, hosts: list[str]) -> str:
    """Return which of *hosts* a test is about; what else it is parametrized by stands behind a dash, which names may hold, too.

    >>> host_in("test_x.py::test_a[ssh://mail-1-AES128]", ["mail", "mail-1"])
    'mail-1'
    """
    return next(name for name in sorted(hosts, key=len, reverse=True) if f"ssh://{name}]" in nodeid or f"ssh://{name}-" in nodeid)


def reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped, or what its assertion said."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).strip()[:2000]


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest, record_property) -> None:
    """Say which requirements a test proves, and what it is about."""
    mark = request.node.get_closest_marker("requirement")
    record_property("requirements", json.dumps(list(mark.args)))
    record_property("says", (request.node.function.__doc__ or "").strip().splitlines()[0])


def pytest_configure(config: pytest.Config) -> None:
    """Collect on the controller only."""
    if not hasattr(config, "workerinput"):
        folder = Path(os.environ["LETTERLOCK_VERIFY"])
        config.pluginmanager.register(Keeper(folder / "tests.json", [file.stem for file in (folder / "declared").glob("*.json")]))


