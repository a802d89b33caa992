"""What doveadm says, read as it comes."""

from __future__ import annotations

import io
import json

import pytest
from letterlock import doveadm

ROWS = [{"username": "a@b", "mailbox": 'odd ]["},{ \\name', "uid": str(number)} for number in range(50)]


@pytest.mark.parametrize("size", [1, 7, 100, 65536])
def test_rows_come_whole(monkeypatch, size):
    """Wherever the stream is cut into pieces."""
    monkeypatch.setattr(doveadm, "READ_AT_ONCE", size)
    assert list(doveadm.rows_of(io.StringIO(json.dumps(ROWS)))) == ROWS


@pytest.mark.parametrize("text", ["", "[]", "[\n]\n"])
def test_no_rows(text):
    """An iteration that finds nothing."""
    assert list(doveadm.rows_of(io.StringIO(text))) == []


def test_a_row_that_breaks_off_is_none():
    """A process that died in the middle; its exit code says the rest."""
    cut = len(json.dumps(ROWS[:2])) + 20
    assert list(doveadm.rows_of(io.StringIO(json.dumps(ROWS)[:cut]))) == ROWS[:2]
