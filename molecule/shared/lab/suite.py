#!/usr/bin/env python3
"""Run everything: linters, unit tests and every scenario, and end with one plain line over all.

Usage: suite.py [--only lint|unit|SCENARIO ...] [--lanes N]

A scenario waits for most of its time: for SSH, for timers, for clients. So several run side by side, each in a lane with
hosts of its own, and what measures speed runs by itself at the end.

Each linter and each step of a scenario counts as one; pytest's tests count
one by one, as its JUnit files say. A scenario whose verifier found no test
has failed, although molecule calls it a success.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import queue
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
# Two quick ones first, so that a plain mistake is known early; then the longest, so that the lanes end together.
SCENARIOS = [
    "refused", "default", "verified", "backup_restore", "sealed", "scan", "backup_restore_maildir", "rollback", "changes", "retention",
    "retention_maildir", "flipped", "imap_only", "pop3_only", "durability", "drill",
]
ALONE = {"drill"}
LANES = 2
LINTERS = {
    "yamllint": ["yamllint", "--strict", "."],
    "ruff": ["ruff", "check", "."],
    "shellcheck": ["shellcheck", *SHELL_SCRIPTS],
    "reference of variables": [sys.executable, "docs/reference.py", "--check"],
    "catalogue of requirements": [sys.executable, "molecule/shared/verify/catalogue.py", "--check"],
    "ansible-lint": ["ansible-lint", "--offline", "--strict"],
}
UNIT_TESTS = [
    sys.executable, "-m", "pytest", "--quiet", "--import-mode=importlib", "--doctest-modules", "roles", "requirements",
    "molecule/shared/verify/unit",
]
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
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, passed: int, failed: int) -> None:
        """Count."""
        with self.lock:
            self.passed += passed
            self.failed += failed


def run(name: str, command: list[str], tally: Tally, lane: int = 1) -> tuple[int, str]:
    """Run *command*, show the end of its output when it fails, and time it."""
    print(f"==> {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **PLAIN, "LAB_LANE": str(lane)}, text=True, errors="replace", check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    tally.seconds[name] = time.monotonic() - started
    said = "".join(done.stdout.splitlines(keepends=True)[-TAIL_LINES:]) if done.returncode else ""
    # In one piece: another lane prints, too.
    print(f"{said}    {name}: {'FAILED' if done.returncode else 'ok'} in {tally.seconds[name]:.0f} s", flush=True)
    return done.returncode, done.stdout


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
        code, _ = run(name, command, tally)
        tally.add(int(code == 0), int(code != 0))


def unit(tally: Tally) -> None:
    """Run the unit tests and the examples in docstrings."""
    file = RESULTS / "unit.xml"
    file.unlink(missing_ok=True)
    code, _ = run("unit tests", [*UNIT_TESTS, f"--junit-xml={file}"], tally)
    passed, failed = read_junit(file) if file.is_file() else (0, 0)
    tally.add(passed, failed if failed or not code else 1)


def scenario(name: str, tally: Tally, lane: int) -> None:
    """Run one scenario from nothing to nothing; its steps and its tests count."""
    file = RESULTS / f"{name}.xml"
    file.unlink(missing_ok=True)
    code, output = run(name, ["molecule", "test", "--scenario-name", name, "--destroy", "always"], tally, lane)
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


def part(name: str, tally: Tally, lane: int) -> None:
    """Run the linters, the unit tests or a scenario."""
    if name == "lint":
        lint(tally)
    elif name == "unit":
        unit(tally)
    else:
        scenario(name, tally, lane)


def run_side_by_side(names: list[str], tally: Tally, lanes: int) -> None:
    """Run all of *names*, in as many *lanes*; each lane takes the next when it is through with one."""
    waiting = queue.SimpleQueue()
    for name in names:
        waiting.put(name)

    def work(lane: int) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                part(waiting.get_nowait(), tally, lane)

    with ThreadPoolExecutor(lanes) as pool:
        for worker in [pool.submit(work, lane) for lane in range(1, lanes + 1)]:
            worker.result()


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
    parser.add_argument("--lanes", type=int, default=LANES, metavar="N", help="how many scenarios run at once (default: %(default)s)")
    arguments = parser.parse_args()
    chosen = arguments.only or ["lint", "unit", *SCENARIOS]
    RESULTS.mkdir(parents=True, exist_ok=True)
    RESULTS.parent.chmod(0o700)
    tally = Tally()
    with contextlib.nullcontext() if set(chosen) <= {"lint", "unit"} else alone():
        run_side_by_side([name for name in chosen if name not in ALONE], tally, arguments.lanes)
        run_side_by_side([name for name in chosen if name in ALONE], tally, 1)
    print("\nSeconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in tally.seconds.items()))
    print(f"\n{tally.passed} passed, {tally.failed} failed")
    return int(tally.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
