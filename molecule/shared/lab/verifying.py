"""The verification of one host, and what finds its drift, run as its operator runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lane import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = PROJECT / "molecule" / "shared" / "verify"
# What no test can prove that only reads; the scenarios do.
ELSEWHERE = {"LOSS-2", "LOSS-4", "RET-6", "OPS-1", "OPS-2", "OPS-3", "OPS-5"}
# What has happened on a host that is in order.
RUNS = ("retention run", "hold record", "backup run", "backup check", "backup note-drill --ended=$(date +%s) --rto=10 --messages=3")


def run_tool(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run verify.py or drift.py, without what pytest tells its children."""
    return subprocess.run(
        [sys.executable, TOOLS / f"{name}.py", *arguments], cwd=PROJECT,
        env={**{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}, **environment},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class Verified:
    """What it came to: its exit code, and the report that it made."""

    code: int
    made: dict

    @property
    def requirements(self) -> list[dict]:
        """Return the requirements of the only host."""
        (host,) = self.made["hosts"]
        return host["requirements"]

    def why(self, state: str) -> dict[str, str]:
        """Return {requirement: why} of those that are in a *state*."""
        return {each["number"]: each["why"] for each in self.requirements if each["state"] == state}


@dataclass(frozen=True)
class Verifier:
    """Verifies a host that *chosen*, inventories and limit, lead to; `account` is a name and its password."""

    chosen: list[str]
    folder: Path
    account: tuple[str, str]

    def run(self, *arguments: str, account: bool = True) -> Verified:
        """Verify, with *arguments* of verify.py's and with or without the account."""
        probe = dict(zip(("PROBE_USER", "PROBE_PASSWORD"), self.account, strict=True)) if account else {}
        done = run_tool("verify", *self.chosen, f"--output={self.folder}", *arguments, **probe)
        assert done.returncode in (0, 2), done.stdout + done.stderr
        return Verified(done.returncode, json.loads((self.folder / "report.json").read_text()))
