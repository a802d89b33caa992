#!/usr/bin/env python3
"""Find what was changed by hand: check mode against the real hosts, and then their verification.

Usage: drift.py --inventory INVENTORY [--limit PATTERN] [--output FOLDER] [--no-verify]

Exit code: 0 the hosts are what the inventory declares, 2 they are not, 1 it could not be
found out. What drifted is named with its diff, in which secrets are masked, and written
to drift.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import verify
from evidence import without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIFTED = 2
SHOWN_LINES = 40


def check(inventory: list[str], limit: str) -> dict:
    """Return what check mode says, as Ansible's JSON; raise Unusable."""
    command = [
        "ansible-playbook", *(f"--inventory={each}" for each in inventory), *([f"--limit={limit}"] if limit else []), "--check", "--diff",
        str(verify.PROJECT / "playbooks" / "site.yml"),
    ]
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(verify.PROJECT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0",
    }
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        # What other callbacks print comes after it.
        return json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{"))[0]
    except ValueError as error:
        raise verify.Unusable(f"check mode did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}") from error


def text_of(diff: dict) -> str:
    """Return one of Ansible's diffs for people: what there is, and what is declared."""
    if "prepared" in diff:
        return diff["prepared"]
    lines = [f"--- {diff.get('before_header', 'on the host')}", f"+++ {diff.get('after_header', 'declared')}"]
    before, after = (str(diff.get(side) or "").splitlines() for side in ("before", "after"))
    lines += [f"-{line}" for line in before if line not in after] + [f"+{line}" for line in after if line not in before]
    return "\n".join(lines[:SHOWN_LINES])


def drifts(said: dict) -> Iterator[dict]:
    """Yield {host, task, diff} of each task that would change a host, from Ansible's JSON."""
    for play in said["plays"]:
        for task in play["tasks"]:
            for host, result in task["hosts"].items():
                if not result.get("changed"):
                    continue
                found = result.get("diff") or []
                texts = [text_of(each) for each in (found if isinstance(found, list) else [found])]
                yield {"host": host, "task": task["task"]["name"], "diff": without_secrets("\n".join(texts), [])}


def faults(said: dict) -> Iterator[str]:
    """Yield why a host could not be looked at, from Ansible's JSON; none at all is a fault, too."""
    if not said.get("stats"):
        yield "no host was looked at"
    for play in said["plays"]:
        for task in play["tasks"]:
            for host, result in task["hosts"].items():
                if result.get("failed") or result.get("unreachable"):
                    yield f"{host}: {task['task']['name']}: {without_secrets(str(result.get('msg', '')), [])}"


def main() -> int:
    """Look, tell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inventory", action="append", required=True, help="as Ansible's own; may be given several times")
    parser.add_argument("--limit", default="", help="as Ansible's own")
    parser.add_argument("--output", type=Path, default=Path.cwd() / "verification", help="where drift.json and the reports go")
    parser.add_argument("--no-verify", action="store_true", help="look at what the kit owns only, and not at what it promises")
    arguments = parser.parse_args()
    begun = time.time()
    try:
        said = check(arguments.inventory, arguments.limit)
    except verify.Unusable as fault:
        print(f"drift: {fault}", file=sys.stderr)
        return 1
    found, wrong = list(drifts(said)), list(faults(said))
    arguments.output.mkdir(mode=0o750, parents=True, exist_ok=True)
    made = {"begun": begun, "seconds": time.time() - begun, "kit": verify.kit_version(), "drifts": found, "faults": wrong}
    (arguments.output / "drift.json").write_text(json.dumps(made, indent=2))
    for each in found:
        print(f"DRIFTED {each['host']}: {each['task']}\n{each['diff']}")
    for fault in wrong:
        print(f"drift: {fault}", file=sys.stderr)
    print(f"{len(found)} changes on {len({each['host'] for each in found})} hosts, {len(wrong)} faults, {time.time() - begun:.0f} s")
    if wrong:
        return 1
    if arguments.no_verify:
        return DRIFTED if found else 0
    code = verify.verify(arguments.inventory, arguments.limit, arguments.output)
    return 1 if code == 1 else DRIFTED if found or code else 0


if __name__ == "__main__":
    sys.exit(main())
