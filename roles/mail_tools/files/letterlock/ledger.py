"""The record of deletions: hash-chained lines, signed at the end of each run.

Each line is one JSON object that names the SHA-256 of the line before it, so
that a line removed, changed or moved breaks the chain. The head, a file of its
own, holds the last line's number and hash under the host's Ed25519 signature:
an end that was cut off no longer reaches it. What a deletion leaves is its
message's GUID and a keyed hash of its Message-ID; no content and no addresses
but the account's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/var/lib/letterlock/ledger")
START = "0" * 64
SEGMENT_BYTES = 64 * 1024 * 1024


class Broken(Exception):
    """The ledger is not what was written; the message says where."""


def digest(line: bytes) -> str:
    """Return the hash by which the next line names this one."""
    return hashlib.sha256(line).hexdigest()


def write_durably(path: Path, content: bytes, mode: int = 0o600, group: int = -1) -> None:
    """Replace *path* by *content* in one step that survives a power cut; a *group* other than one's own is a number."""
    candidate = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
        os.fchown(stream.fileno(), -1, group)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    candidate.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in *path* durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Ledger:
    """The ledger of one host. One process writes at a time: runs hold a lock."""

    def __init__(self, root: Path = ROOT) -> None:
        """Make the ledger's directory and keys if they are not there yet."""
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.head_file = root / "head.json"
        self.mutex = threading.Lock()
        self.stream = None
        self.sequence, self.hash = 0, START
        self.newest_time = 0
        self.key = b""

    # ---- keys

    def signing_key(self) -> Ed25519PrivateKey:
        """Return the host's key, made at its first use."""
        file = self.root / "signing.key"
        if not file.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            write_durably(file, pem)
        return serialization.load_pem_private_key(file.read_bytes(), password=None)

    def public_key(self) -> str:
        """Return the public key, which an auditor keeps elsewhere, as PEM."""
        return self.signing_key().public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()

    def keyed_hash(self, text: str | None) -> str | None:
        """Return what stands for a Message-ID: the same for the same text, and no way back without the key."""
        if not text:
            return None
        return hmac.digest(self.hash_key(), text.encode(), "sha256").hex()

    def hash_key(self) -> bytes:
        """Return the key of `keyed_hash`, made at its first use, and read once: a run asks for it with each message."""
        if not self.key:
            with self.mutex:
                file = self.root / "hash.key"
                if not file.exists():
                    write_durably(file, secrets.token_bytes(32))
                self.key = file.read_bytes()
        return self.key

    # ---- reading

    def segments(self) -> list[Path]:
        """Return the files of the ledger, the oldest first."""
        return sorted(self.root.glob("ledger-*.jsonl"))

    def lines(self) -> Iterator[tuple[Path, int, bytes]]:
        """Yield (file, number of the line in it, the line without its end); not what a crash left half written at the very end."""
        segments = self.segments()
        for segment in segments:
            with segment.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    # All but the last segment were whole when the next one was begun.
                    if line.endswith(b"\n") or segment != segments[-1]:
                        yield segment, number, line.rstrip(b"\n")

    def head(self) -> dict:
        """Return the signed head, or an empty one before the first run."""
        if not self.head_file.exists():
            return {"sequence": 0, "hash": START, "begins": {"sequence": 0, "hash": START}}
        head = json.loads(self.head_file.read_text())
        signed = {name: value for name, value in head.items() if name != "signature"}
        try:
            self.signing_key().public_key().verify(base64.b64decode(head["signature"]), canonical(signed))
        except (InvalidSignature, KeyError) as error:
            raise Broken(f"{self.head_file}: the signature is not this host's") from error
        return head

    def verify(self) -> dict:
        """Return {lines, signed, unsigned, hash}; raise Broken at the first line that is not as it was written."""
        head = self.head()
        sequence, before = head["begins"]["sequence"], head["begins"]["hash"]
        count = 0
        reached = sequence == head["sequence"]
        for file, number, line in self.lines():
            where = f"{file.name}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise Broken(f"{where}: is not a line of the ledger") from error
            if entry.get("sequence") != sequence + 1:
                raise Broken(f"{where}: has number {entry.get('sequence')} where {sequence + 1} belongs: a line was removed or moved")
            if entry.get("previous") != before:
                raise Broken(f"{where}: does not continue the line before it: one of them was changed")
            sequence, before = sequence + 1, digest(line)
            count += 1
            if sequence == head["sequence"]:
                if before != head["hash"]:
                    raise Broken(f"{where}: was changed since it was signed")
                reached = True
        if not reached:
            raise Broken(f"the ledger ends at line {sequence}, and line {head['sequence']} was signed: its end was cut off")
        return {"lines": count, "signed": head["sequence"], "unsigned": sequence - head["sequence"], "hash": before}

    # ---- writing

    def open(self) -> None:
        """Verify the end of the ledger and get ready to append; what a crash left half written is dropped."""
        head = self.head()
        segments = self.segments()
        self.sequence, self.hash = head["begins"]["sequence"], head["begins"]["hash"]
        path = segments[-1] if segments else self.root / "ledger-000000000001.jsonl"
        if segments:
            last, whole = last_line(path)
            os.truncate(path, whole)
            if not last and len(segments) > 1:
                last, _ = last_line(segments[-2])
            if last:
                entry = json.loads(last)
                self.sequence, self.hash, self.newest_time = entry["sequence"], digest(last), entry["time"]
        if self.sequence < head["sequence"]:
            raise Broken(f"the ledger ends at line {self.sequence}, and line {head['sequence']} was signed: its end was cut off")
        self.stream = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        sync_directory(self.root)

    def append(self, entries: list[dict], now: float) -> None:
        """Append *entries* durably, all of them or, when the disk is full, none; raise OSError then."""
        with self.mutex:
            sequence, before, lines = self.sequence, self.hash, []
            for entry in entries:
                sequence += 1
                line = canonical({"sequence": sequence, "previous": before, "time": int(now), **entry})
                before = digest(line)
                lines.append(line + b"\n")
            length = os.fstat(self.stream).st_size
            try:
                text = memoryview(b"".join(lines))
                while text:
                    text = text[os.write(self.stream, text):]
                os.fsync(self.stream)
            except OSError:
                os.ftruncate(self.stream, length)
                raise
            self.sequence, self.hash, self.newest_time = sequence, before, int(now)

    def sign(self, now: float, keep_from: float | None = None) -> None:
        """Sign the end; segments whose every line is older than *keep_from* are forgotten, and the rest begins after them."""
        head = self.head()
        begins, gone = head["begins"], []
        for segment in self.segments()[:-1]:
            last, _ = last_line(segment)
            entry = json.loads(last)
            if keep_from is None or entry["time"] >= keep_from:
                break
            begins = {"sequence": entry["sequence"], "hash": digest(last)}
            gone.append(segment)
        signed = {"sequence": self.sequence, "hash": self.hash, "begins": begins, "time": int(now)}
        signature = base64.b64encode(self.signing_key().sign(canonical(signed))).decode()
        write_durably(self.head_file, canonical({**signed, "signature": signature}) + b"\n")
        for segment in gone:
            segment.unlink()

    def rotate(self, *, now: float, segment_seconds: float) -> None:
        """Begin a new file when the last one is large, or spans so long that it could not be forgotten in time."""
        segments = self.segments()
        if not segments or not segments[-1].stat().st_size:
            return
        with segments[-1].open("rb") as stream:
            first = json.loads(stream.readline())
        if segments[-1].stat().st_size < SEGMENT_BYTES and now - first["time"] < segment_seconds:
            return
        os.close(self.stream)
        path = self.root / f"ledger-{self.sequence + 1:012}.jsonl"
        self.stream = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        sync_directory(self.root)

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            os.close(self.stream)
            self.stream = None


def last_line(path: Path) -> tuple[bytes, int]:
    """Return the last whole line of *path* without its end, and the size up to that end; (b"", 0) if there is none."""
    size = path.stat().st_size
    block = 65536
    with path.open("rb") as stream:
        while True:
            stream.seek(max(0, size - block))
            tail = stream.read(block)
            end = tail.rfind(b"\n")
            start = tail.rfind(b"\n", 0, end)
            if end >= 0 and (start >= 0 or block >= size):
                return tail[start + 1 : end], size - len(tail) + end + 1
            if block >= size:
                return b"", 0
            block *= 4


def canonical(value: dict) -> bytes:
    """Return *value* as JSON of one form, so that the same fact has the same hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
