"""restic, the engine of the backups: its commands, its answers, and what its faults mean.

Where the repository is and what opens it never stands on a command line: both
are given by files that root alone reads. https://restic.readthedocs.io/
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO, TypeVar

    Result = TypeVar("Result")

PASSWORD_FILE = Path("/etc/letterlock/backup/password")
PRUNER_PASSWORD_FILE = Path("/etc/letterlock/backup/pruner_password")
# Which of the repository's keys is this host's: without it restic derives one key after another, half a second each.
KEY_HINT_FILE = Path("/var/lib/letterlock/backup/key")
ENVIRONMENT_FILE = Path("/etc/letterlock/backup/environment")
CACHE = "/var/cache/letterlock/restic"
TAG = "letterlock"
# How many times a second restic tells how far it is.
PROGRESS_FPS = "0.033"
# What a network fault is given: tries, and seconds between them.
TRIES, PAUSE_SECONDS = 3, 20
# What the first command of a run is given to reach the repository, and how often it is looked at what it says.
REACH_SECONDS, LOOK_SECONDS = 30, 1
# How much is read of its output at once, and how often.
READ_BYTES, TAIL_SECONDS = 1 << 20, 0.05
# restic backup: a snapshot was made, but some files could not be read.
INCOMPLETE = 3
UNKNOWN_CREDENTIALS = "the repository's server does not know the credentials in mail_backup_environment"
NOT_WANTED = "it is not wanted any more"
NO_REPOSITORY = "there is no repository at mail_backup_repository"
NO_PARENT = "the repository lacks the snapshot that this host made last"
DISK_FULL = "a disk is full: the repository's, or on a restore this host's"
REPOSITORY_FULL = "the repository's disk is full"
# restic 0.14 removes its lock when it is interrupted, but not while it starts, and dies of SIGTERM with the lock in place.
END = signal.SIGINT
LOCKED = "another restic holds the repository's lock"
# What restic says -> what it means, and what to do. 0.14 has no exit codes for them.
MEANINGS = {
    NOT_WANTED: NOT_WANTED,
    "certificate signed by unknown authority": "mail_backup_ca_file does not know the CA of the repository's server",
    "401 Unauthorized": "the repository's server does not know the user and password in mail_backup_repository",
    "request signature we calculated does not match": UNKNOWN_CREDENTIALS,
    "Access Key Id you provided does not exist": UNKNOWN_CREDENTIALS,
    "$AWS_ACCESS_KEY_ID": UNKNOWN_CREDENTIALS,
    "Access Denied": UNKNOWN_CREDENTIALS,
    # S3; restic 0.18 waits for the bucket until it is asked to end.
    "The specified bucket does not exist": NO_REPOSITORY,
    # First, because a repository that is out of reach is "not there" to restic, too.
    "connection refused": "the repository can't be reached",
    "connection reset": "the repository can't be reached",
    "no such host": "the repository can't be reached",
    "no route to host": "the repository can't be reached",
    "i/o timeout": "the repository can't be reached",
    # Asked for by its name.
    "load(<snapshot/": NO_PARENT,
    "no matching id found": NO_PARENT,
    "wrong password or no key found": "mail_backup_password does not open this repository",
    "Is there a repository at the following location": NO_REPOSITORY,
    "repository is already locked": LOCKED,
    "repository contains errors": "the repository is damaged",
    # Of a restore: a pack was changed, or holds something else than its index says.
    "ciphertext verification failed": "the repository is damaged",
    "no space left on device": DISK_FULL,
    # The REST server's 507, as 0.14 and 0.18 tell it.
    "Not enough Storage": REPOSITORY_FULL,
    "507 Insufficient Storage": REPOSITORY_FULL,
}
DAMAGE_SHOWN = 5
DAMAGE_SECONDS = 10
# Faults that another try does not mend.
FINAL = (
    NOT_WANTED, "mail_backup_password", UNKNOWN_CREDENTIALS, NO_REPOSITORY, NO_PARENT, DISK_FULL, REPOSITORY_FULL,
    "the repository is damaged",
)
RETRIES = "retrying after"


class Fault(Exception):
    """restic could not do what it was asked."""


def literal(path: str) -> str:
    r"""Return *path* for a pattern of restic's that means just this.

    >>> literal("/srv/a*b")
    '/srv/a\\*b'
    """
    return "".join(f"\\{letter}" if letter in "*?[\\" else letter for letter in path)


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


def is_in_vain(said: str) -> bool:
    """Tell whether restic tries again and again, for a quarter of an hour, what no other try mends.

    >>> is_in_vain("Stat(<config/>) returned error, retrying after 1s: Stat: The specified bucket does not exist.")
    True
    >>> is_in_vain("Save(<data/99>) returned error, retrying after 1s: unexpected HTTP response (507): 507 Insufficient Storage")
    True
    >>> is_in_vain("Load(<config/>) returned error, retrying after 1s: dial tcp: connect: connection refused")
    False
    """
    return RETRIES in said and meaning(said, 1).startswith(FINAL)


def end_in_vain(process: subprocess.Popen, out: BinaryIO, errors: BinaryIO, ended: threading.Event) -> None:
    """Ask restic's *process* to end when its *errors* tell that it tries in vain; return when it has *ended*.

    While *out* is empty, it has not reached the repository yet, for which it has REACH_SECONDS from its first failure on.
    """
    deadline = math.inf
    while not ended.wait(LOOK_SECONDS):
        said = text_of(errors)
        if RETRIES in said:
            deadline = min(deadline, time.monotonic() + REACH_SECONDS)
        if is_in_vain(said) or (time.monotonic() > deadline and not os.fstat(out.fileno()).st_size):
            process.send_signal(END)
            return


def text_of(file: BinaryIO) -> str:
    """Return what another process wrote to *file* so far, without a move of the offset that both share."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def lines_of(process: subprocess.Popen, out: BinaryIO) -> Iterator[str]:
    """Yield the lines that *process* writes to the file *out* until it has ended."""
    at, rest = 0, b""
    while True:
        has_ended = process.poll() is not None
        while text := os.pread(out.fileno(), READ_BYTES, at):
            at += len(text)
            *lines, rest = (rest + text).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if has_ended:
            break
        time.sleep(TAIL_SECONDS)
    if rest:
        yield rest.decode(errors="replace")


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
        # restic collects garbage twice as often as Go by default, which costs a sixth of a full backup and saves 60 MB.
        base = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root", "GOGC": "200"}
        self.environment = {**base, **given, "RESTIC_CACHE_DIR": CACHE, "RESTIC_PROGRESS_FPS": PROGRESS_FPS}
        self.say = say

    def version(self) -> tuple[int, ...]:
        """Return the version of the restic that is installed."""
        found = re.search(r"(\d+)\.(\d+)", self.run_once("version", seconds=REACH_SECONDS))
        return tuple(map(int, found.groups())) if found else (0,)

    def lines(self, *arguments: str, accept: tuple[int, ...] = (0,)) -> Iterator[str]:
        """Yield the lines of one command, which are JSON, as they come, and then what it says of errors where it ended with one.

        Raise Fault when its exit code is none to *accept*.
        They come by way of a file: through a pipe, restic would wait for each line until it is taken, a tenth of its time. It has
        300 octets for each file of the backup, too many for a /tmp that is memory.
        """
        with tempfile.TemporaryFile(dir=KEY_HINT_FILE.parent) as out, tempfile.TemporaryFile() as errors, subprocess.Popen(
            ["restic", "--json", *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
        ) as process:
            ended = threading.Event()
            watch = threading.Thread(target=end_in_vain, args=(process, out, errors, ended))
            watch.start()
            try:
                yield from lines_of(process, out)
            finally:
                ended.set()
                watch.join()
            if process.returncode not in accept:
                raise Fault(meaning(text_of(errors), process.returncode))
            if process.returncode:
                yield from text_of(errors).splitlines()

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

    def run(self, *arguments: str, seconds: float | None = None, unless: threading.Event | None = None) -> str:
        """Return the standard output of one command; try again after a fault that may pass, then raise Fault.

        After so many *seconds* a try has failed: by itself restic tries to reach a repository for a quarter of an hour.
        It is asked to end, too, when *unless* is set.
        """
        return self.patiently(lambda: self.run_once(*arguments, seconds=seconds, unless=unless))

    def run_once(self, *arguments: str, seconds: float | None, unless: threading.Event | None = None) -> str:
        """Return the standard output of one command, tried once; raise Fault."""
        deadline, note = time.monotonic() + (seconds or math.inf), ""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, subprocess.Popen(
            ["restic", *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, close_fds=False,
        ) as process:
            while process.poll() is None:
                try:
                    process.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    note = "\nno answer: i/o timeout" if time.monotonic() > deadline else ""
                    note = "\n" + NOT_WANTED if unless and unless.is_set() else note
                    if note or is_in_vain(text_of(errors)):
                        # Asked to end, it says what it waited for.
                        process.send_signal(END)
                        process.wait()
            if process.returncode:
                raise Fault(meaning(f"{text_of(out)}\n{text_of(errors)}{note}", process.returncode))
            return text_of(out)

    def restore(self, snapshot: str, target: Path, paths: Iterable[str], unless: threading.Event | None = None) -> None:
        """Bring *paths* of *snapshot* to *target*, *unless* that is set; raise Fault. `links.restore` says what it makes of links."""
        includes = [word for path in paths for word in ("--include", literal(path))]
        self.run("restore", snapshot, "--target", str(target), *includes, unless=unless)

    def listed(self, snapshot: str, directories: list[str]) -> Iterator[dict]:
        """Yield what *snapshot* says of each file and directory below *directories*; raise Fault."""
        rows = map(parsed, self.lines("ls", "--recursive", snapshot, *directories))
        yield from (row for row in rows if row.get("struct_type") == "node")

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
            if str(fault).startswith(NO_REPOSITORY):
                return None
            raise

    def snapshots(self) -> list[dict]:
        """Return the kit's snapshots of all hosts, the oldest first; raise Fault."""
        found = json.loads(self.run("snapshots", "--json", "--tag", TAG) or "[]")
        return sorted(found, key=lambda snapshot: snapshot["time"])
