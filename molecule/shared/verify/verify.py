#!/usr/bin/env python3
"""Ask hosts whether they meet the requirements that they claim, and report; nothing on them is changed.

Usage: verify.py --inventory INVENTORY [--limit PATTERN] [--output FOLDER]

The tests are those of molecule/shared/verify/tests, over SSH and from here. An account to
log in with comes from the environment (PROBE_USER, PROBE_PASSWORD); without one, what needs
a login is reported as not proven. Exit code: 0 nothing that is claimed is violated, 2
something is, 1 the verification itself failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
# They wait for most of their time. More than one a host, because what proves that guessing is slow is slow.
WORKERS_PER_HOST, WORKERS_MAX = 4, 8
VIOLATED = 2


class Unusable(Exception):
    """The verification could not be made."""


def say(text: str) -> None:
    """Show what is under way."""
    print(text, file=sys.stderr, flush=True)


def read_declared(inventory: list[str], limit: str, folder: Path) -> list[dict]:
    """Return what the inventory declares of its hosts, as the roles' variables come to; raise Unusable."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    command = [
        "ansible-playbook", *(f"--inventory={each}" for each in inventory), "--tags=declared", f"--extra-vars=declared_directory={folder}",
        *([f"--limit={limit}"] if limit else []), str(PROJECT / "playbooks" / "site.yml"),
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    if done.returncode or not found:
        raise Unusable(f"the inventory can not be read:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return found


def write_ssh_config(hosts: list[dict], file: Path, sockets: Path) -> None:
    """Write how the hosts are reached, as the inventory says."""
    lines = []
    for each in hosts:
        ssh = each["ssh"]
        lines += [f"Host {each['name']}", f"  HostName {ssh['host']}", f"  Port {ssh['port']}"]
        lines += [f"  User {ssh['user']}"] if ssh["user"] else []
        lines += [f"  IdentityFile {ssh['key_file']}"] if ssh["key_file"] else []
        given = [word for flag, word in itertools.pairwise(ssh["arguments"].split()) if flag == "-o"]
        lines += [f"  {word.replace('=', ' ', 1)}" for word in given if not word.startswith("ControlPath")]
        lines += ["  ControlMaster auto", "  ControlPersist 60s", f"  ControlPath {sockets}/%C"]
    file.write_text("\n".join(lines) + "\n")


def run_tests(hosts: list[dict], folder: Path, sockets: Path, limits: list[str]) -> list[dict]:
    """Run the tests, hosts side by side; return what each came to; raise Unusable. ssh keeps its *sockets* in a folder."""
    ssh_config = folder / "ssh_config"
    write_ssh_config(hosts, ssh_config, sockets)
    workers = min(len(hosts) * WORKERS_PER_HOST, WORKERS_MAX)
    environment = {
        **os.environ, "LETTERLOCK_VERIFY": str(folder), "PYTHONPATH": f"{HERE}:{PROJECT / 'roles' / 'mail_tools' / 'files'}",
        "LETTERLOCK_PROBE_USER": os.environ.get("PROBE_USER", ""), "LETTERLOCK_PROBE_PASSWORD": os.environ.get("PROBE_PASSWORD", ""),
    }
    command = [
        sys.executable, "-m", "pytest", "--quiet", "--no-header", "--tb=no", "--durations=0", "-p", "results",
        f"-n{workers}", "--maxschedchunk=1",
        # What the scenarios' tests share is about hosts that may be changed.
        f"--confcutdir={HERE}",
        "--hosts=" + ",".join(f"ssh://{each['name']}" for each in hosts), f"--ssh-config={ssh_config}",
        *([] if all(each["ssh"]["user"] == "root" for each in hosts) else ["--sudo"]),
        f"--junitxml={folder / 'junit.xml'}", *limits, str(HERE / "tests"),
    ]
    found = folder / "tests.json"
    found.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    # 1 means that tests failed, which is what they are for.
    if done.returncode not in (0, 1) or not found.exists():
        raise Unusable(f"the tests did not run:\n{done.stdout[-4000:]}")
    return json.loads(found.read_text())


def kit_version() -> str:
    """Return the version of the kit, as far as it is known."""
    done = subprocess.run(["git", "-C", PROJECT, "describe", "--always", "--dirty", "--tags"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def inventory_version(inventory: list[str]) -> str:
    """Return the version of the inventory, as far as it is known."""
    place = Path(inventory[-1])
    where = place if place.is_dir() else place.parent
    done = subprocess.run(["git", "-C", where, "describe", "--always", "--dirty", "--tags"], capture_output=True, text=True, check=False)
    return f"{place} {done.stdout.strip() or '(not under version control)'}"


def verify(inventory: list[str], limit: str, output: Path, only: str = "") -> int:
    """Verify, write the reports to *output* and return the exit code."""
    folder = output.resolve()
    begun = time.time()
    try:
        say("reads what the inventory declares")
        hosts = read_declared(inventory, limit, folder / "declared")
        say(f"asks {', '.join(each['name'] for each in hosts)}")
        # A socket's path may have 108 characters: https://man7.org/linux/man-pages/man7/unix.7.html
        with tempfile.TemporaryDirectory(prefix="letterlock-") as sockets:
            tests = run_tests(hosts, folder, Path(sockets), ["-k", only] if only else [])
    except Unusable as fault:
        print(f"verify: {fault}", file=sys.stderr)
        return 1
    made = report.make(hosts, tests, {
        "begun": begun, "seconds": time.time() - begun, "kit": kit_version(), "inventory": inventory_version(inventory),
    })
    report.write(made, folder)
    for line in report.summary(made):
        print(line)
    print(f"{folder / 'report.html'}, {time.time() - begun:.0f} s")
    return VIOLATED if report.violations(made) else 0


def main() -> int:
    """Verify as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inventory", action="append", required=True, help="as Ansible's own; may be given several times")
    parser.add_argument("--limit", default="", help="as Ansible's own")
    parser.add_argument("--output", type=Path, default=Path.cwd() / "verification", help="where reports and their history go")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="pytest's -k, for those who change the tests")
    arguments = parser.parse_args()
    return verify(arguments.inventory, arguments.limit, arguments.output, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
