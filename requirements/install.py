#!/usr/bin/env python3
"""Install what the controller lacks, each part from a locked list.

Runs on a bare Debian 12 with nothing but python3, so it uses the standard
library only. Two lists, both written by `make lock`:

  debian.txt  packages that apt is about to fetch: name, version, SHA-256
  python.txt  wheels that pip is about to fetch: name, version, SHA-256s

apt itself verifies each package against the archive's signed index. What the
lock adds is that the plan is known before anything is installed. Debian removes
a version from its mirrors as soon as a security update replaces it, so a newer
version of a locked package from that same signed archive is named and accepted,
unless LETTERLOCK_STRICT_LOCK=1, which refuses it. A package that the lock does
not know, or a locked version with another hash, is always refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv"
APT_ENV = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


class Refused(Exception):
    """What is about to be installed is not what was locked."""


@contextlib.contextmanager
def step(what: str):
    """Print *what* while it runs and the seconds it took when it ends."""
    print(f"  {what} ...", end=" ", flush=True)
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)


def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    """Run *command*; on failure show what it printed and raise SystemExit."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(command[:6])}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done


def names(file: Path) -> list[str]:
    """Return the package names in *file*, comments and blank lines left out."""
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def missing(packages: list[str]) -> list[str]:
    """Return those *packages* that dpkg does not report as installed."""
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages],
        capture_output=True, text=True, check=False, env=APT_ENV,
    )
    installed = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def plan(packages: list[str]) -> dict[str, tuple[str, str, str]]:
    """Return what apt would fetch for *packages*: {name: (version, SHA-256, version it replaces or '')}."""
    simulated = run(
        ["apt-get", "install", "--simulate", "--yes", "--no-install-recommends", *packages], env=APT_ENV
    ).stdout
    wanted = re.findall(r"^Inst (\S+) (?:\[(\S+)\] )?\((\S+)", simulated, re.MULTILINE)
    shown = run(["apt-cache", "show", *(f"{name}={version}" for name, _old, version in wanted)], env=APT_ENV).stdout
    hashes = {}
    for record in shown.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (.+)$", record, re.MULTILINE))
        if fields:
            hashes[fields["Package"], fields["Version"]] = fields["SHA256"]
    return {name: (version, hashes[name.split(":")[0], version], old) for name, old, version in wanted}


def read_lock(file: Path) -> dict[str, tuple[str, str]]:
    """Return the lock in *file*: {name: (version, SHA-256)}."""
    rows = (line.split() for line in names(file))
    return {name: (version, sha256) for name, version, sha256 in rows}


def is_newer(version: str, than: str) -> bool:
    """Compare two Debian versions as dpkg does."""
    return subprocess.run(["dpkg", "--compare-versions", version, "gt", than], check=False).returncode == 0


def compare(
    planned: dict[str, tuple[str, str, str]], locked: dict[str, tuple[str, str]], *, strict: bool
) -> list[str]:
    """Return the updates in *planned* that *locked* does not name yet.

    Raises Refused with every fault when something is unknown or altered.
    """
    faults, updates = [], []
    for name, (version, sha256, replaces) in sorted(planned.items()):
        if name not in locked and replaces and not strict:
            updates.append(f"{name} {replaces} -> {version} (was installed before)")
        elif name not in locked:
            faults.append(f"{name} {version} is not in the lock")
        elif locked[name] == (version, sha256):
            pass
        elif locked[name][0] == version:
            faults.append(f"{name} {version} has another SHA-256 than the lock says")
        elif strict or not is_newer(version, locked[name][0]):
            faults.append(f"{name} {version} is offered, the lock says {locked[name][0]}")
        else:
            updates.append(f"{name} {locked[name][0]} -> {version}")
    if faults:
        raise Refused("\n    ".join([*faults, "Look into it, then run `make lock`."]))
    return updates


def install_debian() -> None:
    """Install the packages of debian.in that are missing."""
    lacking = missing(names(HERE / "debian.in"))
    if not lacking:
        return
    if os.geteuid():
        sys.exit(f"run as root, or install these first: {' '.join(lacking)}")
    with step("apt: read the package lists"):
        run(["apt-get", "update", "--quiet"], env=APT_ENV)
    with step(f"apt: install {len(lacking)} missing packages"):
        try:
            updates = compare(
                plan(lacking), read_lock(HERE / "debian.txt"), strict=os.environ.get("LETTERLOCK_STRICT_LOCK") == "1"
            )
        except Refused as refused:
            sys.exit(f"requirements/debian.txt refuses:\n    {refused}")
        run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *lacking], env=APT_ENV)
    for update in updates:
        print(f"    updated by Debian since the lock: {update}")


def install_python() -> None:
    """Make .venv hold exactly what python.txt says."""
    lock = HERE / "python.txt"
    stamp = VENV / "letterlock-lock.sha256"
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    with step("pip: build .venv"):
        run([sys.executable, "-m", "venv", "--clear", str(VENV)])
        run([str(VENV / "bin/pip"), "install", "--quiet", "--require-hashes", "--requirement", str(lock)])
        stamp.write_text(digest)


def lock_debian() -> None:
    """Write debian.txt: the closure of debian.in over a minimal Debian 12."""
    if missing(["mmdebstrap"]):
        sys.exit("make lock needs mmdebstrap: run `make up` once, or install it")
    wanted = names(HERE / "debian.in")
    root = HERE.parent / ".lab" / "lock-root"
    root.parent.mkdir(exist_ok=True)
    with step("apt: resolve in a minimal Debian 12"):
        # Essential and priority packages are on every Debian; the rest is locked.
        simulate = (
            'chroot "$1" apt-get install --simulate --yes --no-install-recommends '
            + " ".join(wanted)
            + ' | sed -n "s/^Inst \\([^ ]*\\) (\\([^ ]*\\).*/\\1=\\2/p" | xargs chroot "$1" apt-cache show'
        )
        shown = run(
            ["mmdebstrap", "--quiet", "--variant=apt", "--format=null", f"--customize-hook={simulate} >&2", "bookworm", "-"],
            env=APT_ENV,
        ).stderr
    rows = []
    for record in shown.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (.+)$", record, re.MULTILINE))
        if {"Package", "Version", "SHA256"} <= fields.keys():
            rows.append(f"{fields['Package']} {fields['Version']} {fields['SHA256']}")
    if not rows:
        sys.exit(f"nothing was resolved:\n{shown[-2000:]}")
    header = "# Written by `make lock` from debian.in (amd64): package, version, SHA-256.\n"
    (HERE / "debian.txt").write_text(header + "\n".join(sorted(set(rows))) + "\n")


def lock_python() -> None:
    """Write python.txt from python.in with uv, which is fetched for the purpose."""
    with step("uv: resolve python.in"):
        tools = HERE.parent / ".lab" / "lock-venv"
        run([sys.executable, "-m", "venv", "--clear", str(tools)])
        run([str(tools / "bin/pip"), "install", "--quiet", "uv"])
        run([
            str(tools / "bin/uv"), "pip", "compile", "--quiet", "--upgrade", "--no-header", "--generate-hashes",
            "--python-version", "3.11", str(HERE / "python.in"), "--output-file", str(HERE / "python.txt"),
        ])


if __name__ == "__main__":
    if sys.argv[1:] == ["--lock"]:
        lock_python()
        lock_debian()
    elif sys.argv[1:] == []:
        install_debian()
        install_python()
    else:
        sys.exit(f"usage: {sys.argv[0]} [--lock]")
