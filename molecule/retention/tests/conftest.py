"""The fixture that the tests of retention share; what it is stands in retention_store."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from retention_store import Store  # found only on the path that the line above adds


@pytest.fixture
def store(host) -> Store:
    """Return the host's mail."""
    return Store(host)
