"""An account's keys, as its operator and its user handle them."""

from __future__ import annotations

import secrets
import shlex
import time
from dataclasses import dataclass

import clients
import pytest


@dataclass
class Keys:
    """`letterlock keys` on one host, and who can read what."""

    host: object
    mail: object

    def run(self, command: str, *lines: str):
        """Run a command of `letterlock keys` with *lines* on its standard input."""
        text = "".join(f"{line}\n" for line in lines)
        return self.host.run(f"printf %s {shlex.quote(text)} | letterlock keys {command}")

    def done(self, command: str, *lines: str) -> list[str]:
        """Run one that has to go well; return what it said, when auth has looked at its files again."""
        ran = self.run(command, *lines)
        assert ran.rc == 0, ran
        # auth looks once a second.
        time.sleep(1.1)
        return ran.stdout.splitlines()

    def texts(self, user: str, password: str) -> list[bytes]:
        """Return what IMAP gives of INBOX to who logs in with *password*."""
        return clients.imap_messages(self.mail.host, self.mail.ca_file, user, password)

    def lets_in(self, user: str, password: str, protocol: str = "imap", address: str = "") -> bool:
        """Tell whether *password* opens the account at all.

        From an *address* that nobody else has: Dovecot lets one wait longer after each wrong password.
        """
        address = address or f"192.0.2.{secrets.randbelow(256)}"
        words = shlex.join(["-x", f"service={protocol}", "-x", f"rip={address}", user, password])
        return self.host.run(f"doveadm auth test {words}").rc == 0

    def files(self, user: str) -> list[str]:
        """Return the files that hold the messages of *user*."""
        local, domain = user.split("@")
        home = f"/srv/mail/{domain}/{local}"
        found = self.host.check_output(f"find {home} -type f '(' -name 'u.*' -o -path '*/cur/*' -o -path '*/new/*' ')'")
        return found.split()


@pytest.fixture
def keys(host, mail) -> Keys:
    """Return the keys of testinfra's `host`."""
    return Keys(host, mail)
