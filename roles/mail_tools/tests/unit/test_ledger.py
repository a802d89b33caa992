"""The ledger tells when somebody touched it, and a full disk leaves no half line."""

from __future__ import annotations

import errno
import json
import os

import pytest
from letterlock import ledger as module
from letterlock.ledger import Broken, Ledger

NOW = 1_800_000_000


def filled(root, lines: int = 10) -> Ledger:
    """Return a signed ledger with *lines* lines."""
    ledger = Ledger(root)
    ledger.open()
    ledger.append([{"kind": "expunge", "guid": f"{number:032x}"} for number in range(lines)], NOW)
    ledger.sign(NOW)
    ledger.close()
    return ledger


def rewrite(root, change) -> None:
    """Replace the ledger's lines by change(lines)."""
    (file,) = root.glob("ledger-*.jsonl")
    file.write_bytes(b"".join(line + b"\n" for line in change(file.read_bytes().splitlines())))


TAMPERING = {
    "a line removed": lambda lines: lines[:3] + lines[4:],
    "a line changed": lambda lines: [*lines[:3], lines[3].replace(b"expunge", b"expunGe"), *lines[4:]],
    "the last line changed": lambda lines: [*lines[:-1], lines[-1].replace(b"expunge", b"expunGe")],
    "two lines exchanged": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "the end cut off": lambda lines: lines[:-2],
    "everything gone": lambda _lines: [],
    "the first line removed": lambda lines: lines[1:],
    "a line put in": lambda lines: [*lines[:3], lines[3], *lines[3:]],
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found(tmp_path, what):
    """Removed, changed, moved or cut off."""
    ledger = filled(tmp_path)
    assert ledger.verify()["lines"] == 10
    rewrite(tmp_path, TAMPERING[what])
    with pytest.raises(Broken):
        Ledger(tmp_path).verify()


def test_a_chain_that_was_forged_as_a_whole_is_found(tmp_path):
    """Who rewrites all lines lacks the key."""
    filled(tmp_path)

    def forge(lines):
        before = module.START
        for line in lines[:-1]:
            entry = {**json.loads(line), "previous": before}
            forged = module.canonical({**entry, "guid": "0" * 32})
            before = module.digest(forged)
            yield forged

    rewrite(tmp_path, lambda lines: list(forge([*lines, b""])))
    with pytest.raises(Broken, match="changed since it was signed"):
        Ledger(tmp_path).verify()
    head = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps({**head, "sequence": 9}))
    with pytest.raises(Broken, match="signature"):
        Ledger(tmp_path).verify()


def test_an_interrupted_run_goes_on(tmp_path):
    """Lines without a signature, and half a line, are what a crash leaves; the next run continues the chain."""
    filled(tmp_path)
    ledger = Ledger(tmp_path)
    ledger.open()
    ledger.append([{"kind": "expunge"}], NOW + 1)
    ledger.close()
    (file,) = tmp_path.glob("ledger-*.jsonl")
    with file.open("ab") as stream:
        stream.write(b'{"half')
    assert Ledger(tmp_path).verify()["unsigned"] == 1
    ledger = Ledger(tmp_path)
    ledger.open()
    ledger.append([{"kind": "end"}], NOW + 2)
    ledger.sign(NOW + 2)
    found = ledger.verify()
    assert (found["lines"], found["unsigned"]) == (12, 0)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    """The write fails as a whole, and the ledger is what it was."""
    filled(tmp_path)
    ledger = Ledger(tmp_path)
    ledger.open()
    real = os.write

    def full(handle, data):
        real(handle, bytes(data[:20]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        ledger.append([{"kind": "expunge"}], NOW)
    monkeypatch.undo()
    assert ledger.verify()["lines"] == 10
    ledger.append([{"kind": "expunge"}], NOW)
    assert ledger.verify()["lines"] == 11


def test_rotation_keeps_the_chain_and_old_lines_are_forgotten(tmp_path):
    """Segments follow each other; what is too old goes by whole segments, and what remains still verifies."""
    ledger = Ledger(tmp_path)
    ledger.open()
    for year in range(4):
        now = NOW + year * 1000
        ledger.rotate(now=now, segment_seconds=500)
        ledger.append([{"kind": "expunge", "year": year}] * 3, now)
        ledger.sign(now)
    assert len(ledger.segments()) == 4
    assert ledger.verify()["lines"] == 12
    ledger.sign(NOW + 3000, keep_from=NOW + 1500)
    assert len(ledger.segments()) == 2
    found = ledger.verify()
    assert (found["lines"], found["signed"]) == (6, 12)
    ledger.close()
    rewrite_first = ledger.segments()[0]
    rewrite_first.write_bytes(rewrite_first.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(Broken):
        Ledger(tmp_path).verify()


def test_message_ids_are_hashed_with_a_key(tmp_path):
    """The same on this host, another on another, and nothing for nothing."""
    one, other = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    assert one.keyed_hash("<x@y>") == one.keyed_hash("<x@y>") != other.keyed_hash("<x@y>")
    assert one.keyed_hash(None) is None
    assert (tmp_path / "a" / "hash.key").stat().st_mode & 0o777 == 0o600
