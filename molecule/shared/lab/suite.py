#!/usr/bin/env python3
"""Run everything: linters, unit tests and every scenario, and end with one plain line over all.

Usage: suite.py [--only lint|unit|SCENARIO ...]

Each linter and each step of a scenario counts as one; pytest's tests count
one by one, as its JUnit files say. A scenario whose verifier found no test
has failed, although molecule calls it a success.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[3]
RESULTS = PROJECT / ".lab" / "results"
# The machine's, whichever clone runs: all use the same hosts.
LOCK = Path("/run/lock/letterlock-suite")
SHELL_SCRIPTS = [
    ".ci/run", "molecule/shared/lab/podman", "molecule/shared/lab/image", "molecule/shared/lab/package-cache",
    "molecule/shared/lab/s3.sh", "molecule/shared/lab/stock.sh",
]
# The quick ones first, so that a plain mistake is known early.
SCENARIOS = [
    "refused", "default", "imap_only", "pop3_only", "flipped", "changes", "rollback", "durability", "retention", "retention_maildir",
    "scan", "sealed", "backup_restore", "backup_restore_maildir", "drill",
]
LINTERS = {
    "yamllint": ["yamllint", "--strict", "."],
    "ruff": ["ruff", "check", "."],
    "shellcheck": ["shellcheck", *SHELL_SCRIPTS],
    "reference of variables": [sys.executable, "docs/reference.py", "--check"],
    "ansible-lint": ["ansible-lint", "--offline", "--strict"],
}
UNIT_TESTS = [sys.executable, "-m", "pytest", "--quiet", "--import-mode=importlib", "--doctest-modules", "roles", "requirements"]
TAIL_LINES = 150
# What is read here must read the same on a terminal and in a pipeline: molecule writes its steps in another form when it
# colours them, which it does wherever TERM knows colour.
PLAIN = {"NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0"}


@dataclass
class Tally:
    """What passed and what failed."""

    passed: int = 0
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, passed: int, failed: int) -> None:
        """Count."""
        self.passed += passed
        self.failed += failed


def run(name: str, command: list[str], tally: Tally, *, quiet: bool) -> tuple[int, str]:
    """Run *command* under a heading, show its output (the end of it, on failure, when *quiet*) and time it."""
    print(f"==> {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    with subprocess.Popen(
        command, cwd=PROJECT, env={**os.environ, **PLAIN}, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                print(line, end="", flush=True)
    tally.seconds[name] = time.monotonic() - started
    if process.returncode and quiet:
        print("".join(lines[-TAIL_LINES:]), flush=True)
    print(f"    {'ok' if not process.returncode else 'FAILED'} in {tally.seconds[name]:.0f} s", flush=True)
    return process.returncode, "".join(lines)


def read_junit(file: Path) -> tuple[int, int]:
    """Return (passed, failed) of a JUnit file; skipped tests count as neither."""
    suites = ElementTree.parse(file).getroot().iter("testsuite")  # noqa: S314  # pytest wrote it just now
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - failed - skipped, failed


def lint(tally: Tally) -> None:
    """Run every linter; each counts one."""
    for name, command in LINTERS.items():
        code, _ = run(name, command, tally, quiet=True)
        tally.add(int(code == 0), int(code != 0))


def unit(tally: Tally) -> None:
    """Run the unit tests and the examples in docstrings."""
    file = RESULTS / "unit.xml"
    file.unlink(missing_ok=True)
    code, _ = run("unit tests", [*UNIT_TESTS, f"--junit-xml={file}"], tally, quiet=True)
    passed, failed = read_junit(file) if file.is_file() else (0, 0)
    tally.add(passed, failed if failed or not code else 1)


def scenario(name: str, tally: Tally) -> None:
    """Run one scenario from nothing to nothing; its steps and its tests count."""
    file = RESULTS / f"{name}.xml"
    file.unlink(missing_ok=True)
    code, output = run(name, ["molecule", "test", "--scenario-name", name, "--destroy", "always"], tally, quiet=True)
    steps = set(re.findall(rf"\[{name} > (\w+)\] Executed: Successful", output))
    if not file.is_file():
        print(f"    the verifier of {name} did not run", flush=True)
        tally.add(len(steps), 1)
        return
    passed, failed = read_junit(file)
    if passed + failed == 0:
        print(f"    the verifier of {name} found no test", flush=True)
        failed = 1
    tally.add(len(steps) + passed, failed if failed or not code else 1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other suite uses this machine's test hosts, and keep others waiting."""
    with LOCK.open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another suite uses this machine's test hosts (it holds {LOCK}); waiting for its end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run what was asked for and print the closing line; return 1 when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["lint", "unit", *SCENARIOS], help="run these only")
    chosen = parser.parse_args().only or ["lint", "unit", *SCENARIOS]
    RESULTS.mkdir(parents=True, exist_ok=True)
    RESULTS.parent.chmod(0o700)
    tally = Tally()
    with contextlib.nullcontext() if set(chosen) <= {"lint", "unit"} else alone():
        for part in chosen:
            if part == "lint":
                lint(tally)
            elif part == "unit":
                unit(tally)
            else:
                scenario(part, tally)
    print("\nSeconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in tally.seconds.items()))
    print(f"\n{tally.passed} passed, {tally.failed} failed")
    return int(tally.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
