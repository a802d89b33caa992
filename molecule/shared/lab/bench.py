#!/usr/bin/env python3
"""Measure what a deployment costs and what the deployed host serves; print a table, write .lab/bench.json.

Usage: bench.py [--runs N] [--seconds S]

All ratios are against something measured in the same run on the same machine:
a fresh deployment against the bare apt-get install of the same packages, a run
with nothing to do against `ansible -m setup`, served load against Debian's own
configuration with TLS. Medians of several runs, interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import bench_backup
import bench_retention
import bench_scan
import bench_seal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PROJECT = Path(__file__).resolve().parents[3]
LAB = PROJECT / "molecule" / "shared" / "lab"
INVENTORY = [f"--inventory={PROJECT}/inventories/lab", f"--inventory={PROJECT}/molecule/bench/inventory"]
# The lab's own hosts are named by its inventory and not started here.
HOSTS = [f"bench{number}" for number in range(1, 9)]
RELEASES = {"bookworm": ("bench1", "bench3"), "trixie": ("bench2", "bench4")}
PACKAGES = ["dovecot-core", "dovecot-imapd", "dovecot-lmtpd", "dovecot-pop3d", "nftables", "python3-cryptography"]
LOADS = {"login": "IMAP logins/s", "imap": "IMAP sessions/s", "pop3": "POP3 sessions/s", "lmtp": "LMTP acknowledged/s"}
PASSWORD = "bench"
# dovecot_performance -> what it should reach against Debian's own configuration.
AIMS = {"secure": "login >= 1.2", "balanced": "", "fast": "login >= 5"}
# What is measured, its name among the results, that of what it is compared with, and the aim.
AGAINST = {
    "retention": (
        ("retention, a tenth goes", "kit", "bare", "<= 1.3"),
        ("retention, nothing goes, the next run", "kit_nothing", "bare_nothing", "<= 1.1"),
        ("retention, nothing goes, a later run", "kit_quiet", "bare_nothing", "<= 1.1"),
    ),
    "backup": (
        ("backup, full", "full", "full_bare", "<= 1.15"),
        ("backup, 1 % new", "new", "new_bare", "<= 1.3"),
        ("restore", "restore", "restore_bare", "<= 1.2"),
        ("IMAP session during a backup, p95", "latency", "latency_quiet", "<= 1.5"),
    ),
    "scan": (
        ("delivery with a scan, p50", "p50", "p50_bare", ""),
        ("delivery with a scan, p95", "p95", "p95_bare", ""),
        ("login with nothing new", "login", "login_bare", "<= 1.1"),
        ("sweep / clamdscan", "sweep", "sweep_bare", "<= 1.2"),
        ("sweep again / letterlock's start", "again", "again_bare", ""),
    ),
    "seal": (
        ("encrypted, LMTP acknowledged/s", "deliver", "deliver_bare", ">= 0.85"),
        ("encrypted, fetch of 1,000", "fetch", "fetch_bare", "<= 1.25"),
        ("encrypted, login", "login", "login_bare", ""),
        ("encrypted, login but for the derivation", "underived", "underived_bare", "<= 1.2"),
        ("encrypted, open of 10,000, first", "first", "first_bare", "<= 2"),
        ("encrypted, open of 10,000, again", "again", "again_bare", "<= 1.2"),
        ("encrypted, open of 10,000, with 50 new", "news", "news_bare", ""),
        ("encrypted, open of 10,000, all anew", "anew", "anew_bare", ""),
    ),
}
WORKERS = 8
PARTS = ["fresh", "noop", "load", "retention", "backup", "scan", "seal"]
SSH_CONFIG = PROJECT / ".lab" / "ssh" / "config_bench"


def run(*command: str, check: bool = True) -> str:
    """Run *command* and return what it printed; end the program with it when it fails."""
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-3000:]}")
    return done.stdout


def timed(*command: str) -> float:
    """Return the seconds that *command* takes."""
    started = time.monotonic()
    run(*command)
    return time.monotonic() - started


def say(text: str) -> None:
    """Show what is under way."""
    print(f"  {text}", file=sys.stderr, flush=True)


def playbook(name: str, hosts: list[str], *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a playbook for *hosts*."""
    return ("ansible-playbook", *INVENTORY, f"--limit={','.join(['localhost', *hosts])}", *arguments, str(PROJECT / name))


def site(hosts: list[str], *arguments: str) -> tuple[str, ...]:
    """Return the command that deploys *hosts*."""
    return ("ansible-playbook", *INVENTORY, f"--limit={','.join(hosts)}", *arguments, "playbooks/site.yml")


def create(hosts: list[str]) -> None:
    """Start fresh hosts, and make their package lists fresh, which neither side of a comparison pays."""
    run(*playbook("molecule/shared/destroy.yml", HOSTS))
    run(*playbook("molecule/shared/create.yml", hosts))
    run("ansible", *INVENTORY, ",".join(hosts), "-m", "ansible.builtin.apt", "-a", "update_cache=true")


def on(host: str, command: str, *, given: str | None = None) -> str:
    """Run *command* on *host* by the connection that Ansible uses."""
    done = subprocess.run(
        ["ssh", "-F", str(SSH_CONFIG), host, command], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"failed on {host}: {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def write_ssh_config() -> None:
    """Write an ssh_config for the bench's hosts."""
    lines = []
    for number, host in enumerate(HOSTS, 1):
        lines += [
            f"Host {host}", f"  HostName 127.0.2.{number}", "  Port 2222", "  User root", f"  IdentityFile {PROJECT}/.lab/ssh/id_ed25519",
            f"  UserKnownHostsFile {PROJECT}/.lab/ssh/known_hosts_bench", "  StrictHostKeyChecking yes",
            "  ControlMaster auto", "  ControlPersist 60s", "  ControlPath /run/letterlock-lab/bench-%C",
        ]
    SSH_CONFIG.write_text("\n".join(lines) + "\n")


def bench_fresh(runs: int) -> dict:
    """Return seconds of a fresh deployment and of the bare package installation, by release."""
    results = {}
    for release, (kit, bare) in RELEASES.items():
        deploys, floors = [], []
        for number in range(runs):
            say(f"fresh, {release}, run {number + 1} of {runs}")
            create([kit, bare])
            install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends " + " ".join(PACKAGES)
            floors.append(timed("ssh", "-F", str(SSH_CONFIG), bare, install))
            deploys.append(timed(*site([kit])))
        results[release] = {
            "deploy_s": statistics.median(deploys), "floor_s": statistics.median(floors),
            "ratio": statistics.median(deploys) / statistics.median(floors),
        }
    return results


def bench_noop(runs: int) -> dict:
    """Return seconds of a run with nothing to do: against setup, over several hosts, and its round trips."""
    create(HOSTS)
    say("deploy eight hosts")
    run(*site(HOSTS))
    noop, setup, by_hosts = [], [], {count: [] for count in (1, 2, 4, 8)}
    for number in range(runs):
        say(f"nothing to do, run {number + 1} of {runs}")
        setup.append(timed("ansible", *INVENTORY, HOSTS[0], "-m", "ansible.builtin.setup"))
        noop.append(timed(*site(HOSTS[:1])))
        for count, times in by_hosts.items():
            times.append(timed(*site(HOSTS[:count])))
    verify, drift = (
        [sys.executable, str(LAB.parent / "verify" / f"{name}.py"), *INVENTORY, f"--output={PROJECT}/.lab/verification"]
        for name in ("verify", "drift")
    )
    asked = {count: [] for count in (1, 8)}
    drifted = []
    for number in range(runs):
        say(f"verification and drift, run {number + 1} of {runs}")
        for count, times in asked.items():
            times.append(timed(*verify, f"--limit={','.join(HOSTS[:count])}"))
        drifted.append(timed(*drift, f"--limit={HOSTS[0]}", "--no-verify"))
    output = run(*site(HOSTS[:1], "-vvv"))
    medians = {count: statistics.median(times) for count, times in by_hosts.items()}
    return {
        "noop_s": statistics.median(noop), "setup_s": statistics.median(setup),
        "ratio": statistics.median(noop) / statistics.median(setup), "by_hosts_s": medians,
        "each_added_host_of_first": (medians[8] - medians[1]) / 7 / medians[1],
        "verify_s": {count: statistics.median(times) for count, times in asked.items()}, "drift_s": statistics.median(drifted),
        "round_trips": len(re.findall(r"^<127\.0\.2\.1> SSH: EXEC", output, re.MULTILINE)),
    }


def load(host: str, kind: str, seconds: float) -> dict:
    """Return what *host* serves."""
    return json.loads(on(host, f"python3 - {kind} {seconds} {WORKERS} {PASSWORD}", given=(LAB / "load.py").read_text()))


def bench_load(runs: int, seconds: float) -> dict:
    """Return rates of Debian's own configuration and of the kit's own, by release."""
    results = {}
    account_file = PROJECT / "molecule/bench/inventory/group_vars/mail_hosts/mail_accounts.yml"
    password_hash = re.search(r'bench_hash: "(.*)"', account_file.read_text()).group(1)
    for release, (kit, stock) in RELEASES.items():
        create([kit, stock])
        on(stock, f"sh -s -- '{password_hash}'", given=(LAB / "stock.sh").read_text())
        variants: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in LOADS} for name in ("stock", *AIMS)}
        for number in range(runs):
            for variant, host in (("stock", stock), *((name, kit) for name in AIMS)):
                say(f"load, {release}, {variant}, run {number + 1} of {runs}")
                if host == kit:
                    run(*site([kit], "--extra-vars", f"dovecot_performance={variant}"))
                for kind in ("lmtp", "login", "imap", "pop3"):
                    variants[variant][kind].append(load(host, kind, seconds)["per_second"])
        results[release] = {
            variant: {kind: statistics.median(rates) for kind, rates in kinds.items()} for variant, kinds in variants.items()
        }
    return results


def bench_module(module: ModuleType, runs: int) -> dict:
    """Return what *module* measures on a fresh host of each release, or on two, deployed with its variables."""
    results = {}
    for release, (kit, other) in RELEASES.items():
        against = getattr(module, "OTHER_VARIABLES", None)
        hosts = [kit] if against is None else [kit, other]
        create(hosts)

        def deploy(host: str = kit, **variables: object) -> None:
            run(*site([host], "--extra-vars", json.dumps({**module.VARIABLES, **variables})))

        deploy()
        if against is not None:
            deploy(other, **against)
        results[release] = module.measure(on, say, deploy, kit if against is None else (kit, other), runs)
    return results


def compared(results: dict) -> Iterator[tuple[str, float, float, float, str]]:
    """Yield (what, value, against, ratio, aim) of what is measured against something bare."""
    for part, rows in AGAINST.items():
        for release, found in results.get(part, {}).items():
            for what, kit, bare, aim in rows:
                unit = "" if what.endswith("/s") else ", s"
                yield f"{release}, {what}{unit}", found[kit], found[bare], found[f"ratio_{kit}"], aim


def of_nothing(noop: dict | None) -> Iterator[tuple[str, float, float | None, float | None, str]]:
    """Yield (what, value, against, ratio, aim) of runs that have nothing to do, as they stand in the file."""
    if noop is None:
        return
    yield "nothing to do, s / setup", noop["noop_s"], noop["setup_s"], noop["ratio"], "<= 4"
    for count, seconds in noop["by_hosts_s"].items():
        yield f"nothing to do, {count} hosts, s", seconds, noop["by_hosts_s"]["1"], seconds / noop["by_hosts_s"]["1"], ""
    yield "each added host / the first", noop["each_added_host_of_first"], None, noop["each_added_host_of_first"], "<= 0.33"
    for count, aim in (("1", "<= 20 s"), ("8", "<= 60 s")):
        yield f"verification, {count} hosts, s", noop["verify_s"][count], None, None, aim
    yield "drift, one host, s / nothing to do", noop["drift_s"], noop["noop_s"], noop["drift_s"] / noop["noop_s"], "<= 1.5"
    yield "round trips a host", noop["round_trips"], 12, noop["round_trips"] / 12, "<= 12"


def table(results: dict) -> str:
    """Return the results for people."""
    lines = ["", f"{'what':44} {'value':>9} {'against':>9} {'ratio':>7}   aim"]

    def row(what: str, value: float, against: float | None, ratio: float | None, aim: str) -> None:
        shown = f"{against:9.2f}" if against is not None else " " * 9
        lines.append(f"{what:44} {value:9.2f} {shown} {ratio if ratio is not None else float('nan'):7.2f}   {aim}")

    for release, fresh in results.get("fresh", {}).items():
        row(f"fresh deployment, {release}, s / apt-get", fresh["deploy_s"], fresh["floor_s"], fresh["ratio"], "<= 1.3")
    for columns in of_nothing(results.get("noop")):
        row(*columns)
    for release, variants in results.get("load", {}).items():
        for variant, aim in AIMS.items():
            for kind, what in LOADS.items():
                value, against = variants[variant][kind], variants["stock"][kind]
                row(f"{release}, {variant}, {what}", value, against, value / against, aim if kind == "login" else "")
    for what, value, against, ratio, aim in compared(results):
        row(what, value, against, ratio, aim)
    for release, found in results.get("retention", {}).items():
        row(f"{release}, retention, memory at the peak, MiB", found["kit_mib"], None, None, "")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement (3)")
    parser.add_argument("--seconds", type=float, default=6, help="seconds of each load (6)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    os.environ["ANSIBLE_NOCOLOR"] = "1"
    (PROJECT / ".lab" / "ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
    write_ssh_config()
    file = PROJECT / ".lab" / "bench.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    try:
        for part, measure in (
            ("fresh", lambda: bench_fresh(arguments.runs)),
            ("noop", lambda: bench_noop(arguments.runs)),
            ("load", lambda: bench_load(arguments.runs, arguments.seconds)),
            ("retention", lambda: bench_module(bench_retention, arguments.runs)),
            ("backup", lambda: bench_module(bench_backup, arguments.runs)),
            ("scan", lambda: bench_module(bench_scan, arguments.runs)),
            ("seal", lambda: bench_module(bench_seal, arguments.runs)),
        ):
            if part in arguments.only:
                results[part] = measure()
                file.write_text(json.dumps(results, indent=2) + "\n")
    finally:
        run(*playbook("molecule/shared/destroy.yml", HOSTS), check=False)
    print(table(json.loads(file.read_text())))
    print(f"\nWritten to {file}")


if __name__ == "__main__":
    main()
