"""The signatures in force: sets of databases, each tried before clamd gets it, and proven to be in force after that.

A set is a directory with a copy of each database of all sources, and one of the kit's
own: a hash signature of the set's name. When clamd finds that name in a text of it, this
set and no other is what clamd judges by; clamd itself tells of a reload only in its log,
and goes on with the old set when a database is broken.
https://docs.clamav.net/manual/Signatures/DatabaseInfo.html
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from letterlock.clamd import MALWARE, Unavailable
from letterlock.durations import show_duration
from letterlock.ledger import write_durably
from letterlock.scan_settings import STATE

if TYPE_CHECKING:
    from pathlib import Path

    from letterlock.clamd import Clamd
    from letterlock.scan_settings import ScanSettings

SETS = STATE / "signatures"
CURRENT = SETS / "current"
VERSION_FILE = STATE / "signatures.json"
# https://docs.clamav.net/manual/Signatures.html
SUFFIXES = {
    ".cvd", ".cld", ".cud", ".hdb", ".hsb", ".hdu", ".hsu", ".mdb", ".msb", ".mdu", ".msu", ".ndb", ".ndu", ".ldb", ".ldu",
    ".cbc", ".ftm", ".fp", ".sfp", ".ign", ".ign2", ".idb", ".zmd", ".rmd", ".cdb", ".pdb", ".gdb", ".wdb", ".cat", ".crb",
    ".yar", ".yara", ".info", ".cfg", ".pwdb",
}
# freshclam tries these before it puts them in place.
TRIED_ALREADY = {".cvd", ".cld", ".cud"}
# Of them: the header's size, and which of its fields is the time of making.
HEADER_OCTETS, MADE_AT = 512, 8
OWN = "letterlock.hdb"
RELOAD_SECONDS, START_SECONDS, TRY_SECONDS = 600, 180, 120
# A source that changes more often than that without a rest is looked at again by the timer.
MOST_ROUNDS = 5


@dataclass(frozen=True)
class Version:
    """The set in force: `number` grows with each new one; `newest` is when the newest of its first source was made."""

    number: int
    identity: str
    since: int
    newest: int
    databases: int

    @property
    def usable(self) -> bool:
        """Whether there is anything to judge by."""
        return self.databases > 0


def version() -> Version:
    """Return the set in force; number 0 before there is one."""
    with contextlib.suppress(FileNotFoundError):
        return Version(**json.loads(VERSION_FILE.read_text()))
    return Version(0, "", 0, 0, 0)


def made_at(file: Path) -> int:
    """Return when a database was made, in seconds since the epoch: ClamAV's own say so in their header, whenever they were fetched.

    https://docs.clamav.net/manual/Signatures/DatabaseInfo.html
    """
    with file.open("rb") as stream:
        fields = stream.read(HEADER_OCTETS).decode(errors="replace").strip().split(":")
    if fields[0] == "ClamAV-VDB" and len(fields) > MADE_AT and fields[MADE_AT].isdigit():
        return int(fields[MADE_AT])
    return int(file.stat().st_mtime)


def canary(identity: str) -> bytes:
    """Return the text that only the set *identity* finds something in."""
    return f"Letterlock looks for the signatures {identity}.\n".encode()


def canary_line(identity: str) -> str:
    """Return its line for a .hdb: hash, size and name."""
    text = canary(identity)
    return f"{hashlib.md5(text, usedforsecurity=False).hexdigest()}:{len(text)}:Letterlock.Set.{identity}\n"


def files_of(sources: list[Path]) -> dict[str, Path]:
    """Return {name: file} of all databases; of two with one name the later source's counts."""
    found = {}
    for source in sources:
        files = sorted(source.iterdir()) if source.is_dir() else []
        found |= {file.name: file for file in files if file.suffix in SUFFIXES and file.is_file() and file.name != OWN}
    return found


def marks_of(sources: list[Path]) -> dict[str, tuple[int, int, int]]:
    """Return {name: what differs once the file does} of all databases."""
    found = {}
    for name, file in files_of(sources).items():
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            found[name] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


def fault_of(file: Path) -> str | None:
    """Return why ClamAV would not load *file*, or None."""
    try:
        command = ["clamscan", "--no-summary", f"--database={file}", __file__]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{file}: not loaded within {TRY_SECONDS} s"
    # 1 means that it found something, so it has loaded, too.
    if done.returncode in (0, 1):
        return None
    said = [line for line in (done.stderr + done.stdout).splitlines() if "ERROR" in line or "Malformed" in line]
    return f"{file}: {said[0] if said else 'clamscan can not load it'}"


def identity_of(files: dict[str, Path]) -> str:
    """Return a short name for what is in *files*."""
    whole = hashlib.sha256()
    for name, file in sorted(files.items()):
        with file.open("rb") as stream:
            whole.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


class Signatures:
    """Brings the databases of all sources into force."""

    def __init__(self, settings: ScanSettings) -> None:
        """Take what mail_scan says."""
        self.settings = settings
        self.faults: list[str] = []

    def good_files(self) -> dict[str, Path]:
        """Return {name: file} of what can be in force: of a database that is broken the version that was."""
        found = {}
        for name, file in files_of(self.settings.sources).items():
            before = CURRENT / name
            same = before.exists() and before.stat().st_size == file.stat().st_size and before.read_bytes() == file.read_bytes()
            fault = None if same or file.suffix in TRIED_ALREADY else fault_of(file)
            if fault is None:
                found[name] = file
            else:
                self.faults.append(f"{fault}; {'its version before stays in force' if before.exists() else 'it is left out'}")
                if before.exists():
                    found[name] = before
        return found

    def build(self) -> Version:
        """Put the set together on the disk and make it current; return it. The one that is current stays if it is the same."""
        files = self.good_files()
        # The distributor's, where there are any: the operator's own must not hide that those grow old.
        distributors = files.keys() & files_of(self.settings.sources[:1]).keys()
        identity = identity_of(files)
        before = version()
        directory = SETS / identity
        for path, mode in ((STATE, 0o711), (SETS, 0o755)):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
        if not (directory / OWN).exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            directory.chmod(0o755)
            for name, file in files.items():
                copy = directory / name
                # Not a link: who fills the source may write into the file.
                shutil.copyfile(file, copy)
                copy.chmod(0o644)
            write_durably(directory / OWN, canary_line(identity).encode(), 0o644)
            (directory / OWN).chmod(0o644)
        made = Version(
            before.number if before.identity == identity else before.number + 1, identity, int(time.time()),
            max((made_at(files[name]) for name in distributors), default=0), len(files),
        )
        candidate = SETS / ".current"
        candidate.unlink(missing_ok=True)
        candidate.symlink_to(identity)
        candidate.replace(CURRENT)
        return made

    def follow(self) -> bool:
        """Bring into force what the sources hold, until they rest; return whether it is other than before. Raises Unavailable.

        What changes while that is done systemd.path(5) does not tell of, and until the timer nobody would look.
        """
        changed = False
        for _ in range(MOST_ROUNDS):
            seen, self.faults = marks_of(self.settings.sources), []
            changed |= self.bring_into_force()
            if marks_of(self.settings.sources) == seen:
                break
        return changed

    def bring_into_force(self) -> bool:
        """Make what the sources hold clamd's signatures; return whether they are others than before.

        Raises Unavailable when clamd does not take them. What was in force before stays so.
        """
        earlier = CURRENT.readlink() if CURRENT.is_symlink() else None
        before, made = version(), self.build()
        clamd = self.settings.clamd()
        wait_for(clamd)
        if not in_force(clamd, made.identity):
            clamd.ask("RELOAD")
            deadline = time.monotonic() + RELOAD_SECONDS
            while not in_force(clamd, made.identity):
                if time.monotonic() > deadline:
                    if earlier:
                        CURRENT.unlink()
                        CURRENT.symlink_to(earlier)
                    raise Unavailable(f"clamd has not taken the new signatures within {RELOAD_SECONDS} s; those from before stay in force")
                time.sleep(0.5)
        changed = made.identity != before.identity
        if changed or made.newest != before.newest:
            write_durably(VERSION_FILE, json.dumps(made.__dict__ if changed else {**made.__dict__, "since": before.since}).encode(), 0o600)
        for directory in SETS.iterdir():
            if directory.is_dir() and not directory.is_symlink() and directory.name != made.identity:
                shutil.rmtree(directory)
        return changed

    def age_fault(self, now: float) -> str | None:
        """Return what is wrong with the age of the signatures in force."""
        known = version()
        if not known.usable:
            return "there are no signatures: mail is not judged, and what mail_scan_unavailable says holds"
        if not known.newest:
            return f"{self.settings.sources[0]} holds no signatures; mail is judged by the operator's own alone"
        age = now - known.newest
        if age > self.settings.age_max_seconds:
            return f"the newest signatures are {show_duration(age)} old, over mail_scan_signatures_age_max"
        return None


def wait_for(clamd: Clamd) -> None:
    """Wait until *clamd*, which reads its signatures at its start, answers; raise Unavailable."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            clamd.ask("PING")
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def in_force(clamd: Clamd, identity: str) -> bool:
    """Tell whether clamd judges by the set *identity*."""
    verdict = clamd.scan([canary(identity)])
    return verdict.kind == MALWARE and verdict.signature == f"Letterlock.Set.{identity}"
