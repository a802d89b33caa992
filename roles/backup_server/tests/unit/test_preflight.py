"""What a backup server is refused for."""

from __future__ import annotations

import pytest
from roles_loader import load

preflight = load("backup_server/preflight.py")
GOOD = {"backup_server_clients": [{"name": "mail1", "password": "x" * 24}], "backup_server_directory": "/srv/backups"}
HOST = {"release": {"version": "13"}}
REFUSED = {
    "a release without the package": ({}, {"release": {"version": "12"}}, "is in Debian 13 and later"),
    "a name that leaves its folder": ({"backup_server_clients": [{"name": "../x", "password": "x" * 24}]}, HOST, "a name has letters"),
    "a name twice": ({"backup_server_clients": GOOD["backup_server_clients"] * 2}, HOST, "'mail1' stands there twice"),
    "a password that is guessed": ({"backup_server_clients": [{"name": "mail1", "password": "x"}]}, HOST, "at least 16 characters"),
    "a relative path": ({"backup_server_directory": "backups"}, HOST, "must be an absolute path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """By the variable's name, once."""
    news, host, saying = REFUSED[case]
    found = preflight.faults({**GOOD, **news}, host)
    assert len(found) == 1
    assert saying in found[0]


def test_good():
    """Nothing to find."""
    assert preflight.faults(GOOD, HOST) == []
