"""Where the repository of the backups under test is."""

from __future__ import annotations

import fcntl
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import lane
import pytest
import testinfra
from store import RESTIC

ON_SERVER = "runuser -u restic-rest-server -- env $(cat /etc/letterlock/prune/{name}.env)"


@dataclass
class Vault:
    """Where the repository is: on the mail host itself, or on the backup server, to which the mail host only appends."""

    # testinfra's host that has the files.
    host: object
    path: str
    # Of the mail host, on the backup server.
    name: str = ""

    @property
    def appends_only(self) -> bool:
        """Whether the mail host can't remove what it wrote."""
        return bool(self.name)

    def forget(self, arguments: str = "", *, clock: str = ""):
        """Forget what is old where that is done, by a moved *clock* where one is given."""
        fake = f"faketime -f {clock} " if clock else ""
        if not self.appends_only:
            return self.host.run(f"{fake}letterlock backup forget {arguments}")
        server = ON_SERVER.format(name=self.name)
        return self.host.run(f"{server} {fake}letterlock backup forget --settings /etc/letterlock/prune/{self.name}.json {arguments}")

    def restic(self, arguments: str):
        """Run restic on the repository where it may remove."""
        command = f"{RESTIC} {arguments}" if not self.appends_only else f"{ON_SERVER.format(name=self.name)} restic {arguments}"
        return self.host.run(f"sh -c {shlex.quote(command)}")


@pytest.fixture
def server_alone():
    """Keep the tests of other hosts that want the server as it is from running meanwhile: it serves all of them."""
    with (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "server").open("w") as one_at_once:
        fcntl.flock(one_at_once, fcntl.LOCK_EX)
        yield


@pytest.fixture
def vault(host, mail) -> Vault:
    """Return where the repository is."""
    if host.file("/srv/backup").exists:
        return Vault(host, "/srv/backup")
    name = mail.host["name"]
    return Vault(testinfra.get_host("ssh://store", ssh_config=lane.SSH_CONFIG), f"/srv/backups/{name}/mail", name)
