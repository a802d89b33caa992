"""restic, the engine of the backups: its commands, its answers, and what its faults mean.

Where the repository is and what opens it never stands on a command line: both
are given by files that root alone reads. https://restic.readthedocs.io/
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    Result = TypeVar("Result")

PASSWORD_FILE = Path("/etc/letterlock/backup/password")
PRUNER_PASSWORD_FILE = Path("/etc/letterlock/backup/pruner_password")
# Which of the repository's keys is this host's: without it restic derives one key after another, half a second each.
KEY_HINT_FILE = Path("/var/lib/letterlock/backup/key")
ENVIRONMENT_FILE = Path("/etc/letterlock/backup/environment")
CACHE = "/var/cache/letterlock/restic"
TAG = "letterlock"
# What a network fault is given: tries, and seconds between them.
TRIES, PAUSE_SECONDS = 3, 20
# What the first command of a run is given to reach the repository.
REACH_SECONDS = 30
# restic backup: a snapshot was made, but some files could not be read.
INCOMPLETE = 3
LOCKED = "another restic holds the repository's lock"
# What restic says -> what it means, and what to do. 0.14 has no exit codes for them.
MEANINGS = {
    "certificate signed by unknown authority": "mail_backup_ca_file does not know the CA of the repository's server",
    "401 Unauthorized": "the repository's server does not know the user and password in mail_backup_repository",
    # First, because a repository that is out of reach is "not there" to restic, too.
    "connection refused": "the repository can't be reached",
    "connection reset": "the repository can't be reached",
    "no such host": "the repository can't be reached",
    "no route to host": "the repository can't be reached",
    "i/o timeout": "the repository can't be reached",
    "wrong password or no key found": "mail_backup_password does not open this repository",
    "Is there a repository at the following location": "there is no repository at mail_backup_repository",
    "repository is already locked": LOCKED,
    "repository contains errors": "the repository is damaged",
    # Of a restore: a pack was changed, or holds something else than its index says.
    "ciphertext verification failed": "the repository is damaged",
    "no space left on device": "a disk is full: the repository's, or on a restore this host's",
    "Not enough Storage": "the repository's disk is full",
}
DAMAGE_SHOWN = 5
DAMAGE_SECONDS = 10
# Faults that another try does not mend.
FINAL = ("mail_backup_password", "there is no repository", "the repository is damaged")


class Fault(Exception):
    """restic could not do what it was asked."""


def is_damage(line: str) -> bool:
    """Tell whether a line of `restic check` names something that is damaged; what an interrupted prune left double is not.

    >>> is_damage("pack 57fb: blob size does not match"), is_damage("pack 57fb contained in several indexes: {2b 35}")
    (True, False)
    """
    found = line.strip().lower().startswith(("pack ", "error ", "decrypting ")) or "ciphertext verification failed" in line
    return found and "contained in several indexes" not in line


def meaning(said: str, code: int) -> str:
    """Return what restic's standard error means, in words that name what to change."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
    found = next((text for sign, text in MEANINGS.items() if sign.lower() in said.lower()), None)
    # Of a damaged repository, what is damaged.
    damage = [line for line in lines if is_damage(line)][:DAMAGE_SHOWN]
    last = "; ".join([*damage, lines[-1]])
    return f"{found} (restic: {last})" if found else f"restic: exit code {code}: {last}"


def parsed(line: str) -> dict:
    """Return the JSON message in *line*, or an empty one.

    >>> parsed('{"message_type": "summary"}'), parsed("repository opened")
    ({'message_type': 'summary'}, {})
    """
    with contextlib.suppress(ValueError):
        return json.loads(line)
    return {}


class Restic:
    """One repository."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        """Read how it is reached; *say* gets a line when a try failed. A unit of a backup server's gives it as its environment."""
        given = {name: value for name, value in os.environ.items() if name.startswith("RESTIC_")}
        if "RESTIC_PASSWORD" not in given:
            lines = ENVIRONMENT_FILE.read_text(encoding="utf-8").splitlines()
            given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
            given["RESTIC_PASSWORD_FILE"] = str(PASSWORD_FILE)
            with contextlib.suppress(FileNotFoundError):
                given["RESTIC_KEY_HINT"] = KEY_HINT_FILE.read_text(encoding="ascii")
        base = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
        self.environment = {**base, **given, "RESTIC_CACHE_DIR": CACHE}
        self.say = say

    def version(self) -> tuple[int, ...]:
        """Return the version of the restic that is installed."""
        found = re.search(r"(\d+)\.(\d+)", self.run_once("version", seconds=REACH_SECONDS))
        return tuple(map(int, found.groups())) if found else (0,)

    def lines(self, *arguments: str, accept: tuple[int, ...] = (0,)) -> Iterator[str]:
        """Yield the lines of one command, which are JSON, as they come; raise Fault when its exit code is none to *accept*."""
        with tempfile.TemporaryFile() as errors, subprocess.Popen(
            ["restic", "--json", *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            encoding="utf-8", errors="replace",
        ) as process:
            yield from process.stdout
            code = process.wait()
            if code not in accept:
                errors.seek(0)
                raise Fault(meaning(errors.read().decode(errors="replace"), code))

    def patiently(self, work: Callable[[], Result]) -> Result:
        """Return what *work* does; let it try again after a fault that may pass, then raise Fault."""
        for left in reversed(range(TRIES)):
            try:
                return work()
            except Fault as fault:
                if not left or str(fault).startswith(FINAL):
                    raise
                self.say(f"tries again in {PAUSE_SECONDS} s: {fault}")
                if str(fault).startswith(LOCKED):
                    self.unlock()
                time.sleep(PAUSE_SECONDS)
        raise AssertionError

    def run(self, *arguments: str, seconds: float | None = None) -> str:
        """Return the standard output of one command; try again after a fault that may pass, then raise Fault.

        After so many *seconds* a try has failed: by itself restic tries to reach a repository for a quarter of an hour.
        """
        return self.patiently(lambda: self.run_once(*arguments, seconds=seconds))

    def run_once(self, *arguments: str, seconds: float | None) -> str:
        """Return the standard output of one command, tried once; raise Fault."""
        with subprocess.Popen(
            ["restic", *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                # Asked to end, it says what it waited for.
                process.terminate()
                out, errors = process.communicate()
                errors += "\nno answer: i/o timeout"
        if process.returncode:
            raise Fault(meaning(f"{out}\n{errors}", process.returncode))
        return out

    def unlock(self) -> None:
        """Remove the locks of processes that are dead, and no others; raise Fault."""
        self.run_once("unlock", seconds=REACH_SECONDS)

    def check(self, *arguments: str) -> None:
        """Check the repository; raise Fault."""
        try:
            self.check_once(*arguments)
        except Fault as fault:
            if not str(fault).startswith(LOCKED):
                raise
            self.unlock()
            self.check_once(*arguments)

    def check_once(self, *arguments: str) -> None:
        """Check the repository, tried once; raise Fault. When something is known to be damaged, restic need not come to an end.

        It tries for a quarter of an hour to read what is not there.
        """
        command = ["restic", "check", *arguments]
        with subprocess.Popen(
            command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        ) as process:
            enough = threading.Timer(DAMAGE_SECONDS, process.kill)
            lines: list[str] = []
            for line in process.stdout:
                if is_damage(line) and not any(map(is_damage, lines)):
                    enough.start()
                lines.append(line)
            code = process.wait()
            enough.cancel()
        if code:
            said = "".join(lines)
            raise Fault(meaning(said if code > 0 else f"{said}\nrepository contains errors", code))

    def identity(self) -> str | None:
        """Return the repository's identity, or None when there is none yet."""
        try:
            return json.loads(self.run("cat", "config", seconds=REACH_SECONDS))["id"]
        except Fault as fault:
            if str(fault).startswith("there is no repository"):
                return None
            raise

    def snapshots(self) -> list[dict]:
        """Return the kit's snapshots of all hosts, the oldest first."""
        found = json.loads(self.run("snapshots", "--json", "--tag", TAG) or "[]")
        return sorted(found, key=lambda snapshot: snapshot["time"])
