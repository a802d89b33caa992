"""Where the lane that a scenario runs in keeps its files; molecule/shared/inventory has the same names."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
NAME = f"test{os.environ.get('LAB_LANE') or 1}"
FOLDER = PROJECT / ".lab" / NAME
SSH_CONFIG = str(FOLDER / "ssh" / f"config_{NAME}")
ACCESS_FILE = FOLDER / "access.json"


def container(host: str) -> str:
    """Return the name of the container that *host* runs in."""
    return f"letterlock-{NAME}-{host}"
