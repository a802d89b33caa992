"""Faults of a backup server."""

from __future__ import annotations

import re

SHORTEST_PASSWORD = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Debian 12 has no package of the server.
OLDEST_RELEASE = 13


def faults(variables: dict, host: dict) -> list[str]:
    """Return the role's faults."""
    found = []
    version = host["release"]["version"]
    if int(version) < OLDEST_RELEASE:
        found.append(f"backup_server: restic-rest-server is in Debian {OLDEST_RELEASE} and later; this host is Debian {version}")
    names = [client["name"] for client in variables["backup_server_clients"]]
    for client in variables["backup_server_clients"]:
        name = client["name"]
        if not NAME.fullmatch(name):
            found.append(f"backup_server_clients: {name!r}: a name has letters, digits, dots, dashes and underscores only")
        if names.count(name) > 1:
            found.append(f"backup_server_clients: {name!r} stands there twice")
        if len(client["password"]) < SHORTEST_PASSWORD:
            found.append(f"backup_server_clients: the password of {name!r} must have at least {SHORTEST_PASSWORD} characters")
    if not variables["backup_server_directory"].startswith("/"):
        found.append("backup_server_directory: must be an absolute path")
    return list(dict.fromkeys(found))
