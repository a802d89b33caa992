"""What the tests of retention do again and again on a host."""

from __future__ import annotations

import json
import re
import shlex
import socket
import time
from typing import TYPE_CHECKING

import clients

if TYPE_CHECKING:
    import ssl

LEDGER = "/var/lib/letterlock/ledger"


class Store:
    """The mail of one host, from the operator's side."""

    def __init__(self, host) -> None:
        """Take testinfra's host."""
        self.host = host

    def save(self, user: str, mailbox: str, days: float, *identities: str, sender: str = "sender@example.org", octets: int = 20) -> None:
        """Save a message for each of *identities*, as if it had been saved *days* ago."""
        script = []
        for identity in identities:
            head = f"From: {sender}\r\nSubject: {identity}\r\nMessage-ID: <{identity}@example.org>\r\n\r\n"
            body = f"head -c {octets} /dev/zero | tr '\\0' x | fold -w 70"
            save = f"faketime -f -{int(days * 86400)} doveadm save -u {user} -m {shlex.quote(mailbox)}"
            script.append(f"(printf %s {shlex.quote(head)}; {body}; echo) | {save}")
        exists = f"doveadm mailbox create -u {user} -- {shlex.quote(mailbox)} 2>/dev/null; " if mailbox != "INBOX" else ""
        self.host.check_output(f"{exists}set -e; " + "; ".join(script))

    def subjects(self, user: str, mailbox: str) -> set[str]:
        """Return the subjects in *mailbox*."""
        # Asked for by its name only where Dovecot lists it to nobody: a name can look like an option or a pattern.
        query = f"mailbox {mailbox}" if mailbox == "Held" else "ALL"
        found = self.host.run(f"doveadm -f json fetch -u {user} 'mailbox hdr.subject' {query}")
        assert found.rc == 0, found.stderr
        return {row["hdr.subject"] for row in json.loads(found.stdout) if row["mailbox"] == mailbox}

    def letterlock(self, arguments: str, *, clock: str = ""):
        """Run the command, by a moved *clock* where one is given."""
        return self.host.run(f"{f'faketime -f {clock} ' if clock else ''}letterlock {arguments}")

    def run(self, *, clock: str = ""):
        """Run the policies, acknowledged if that is needed; fail unless it went well."""
        done = self.letterlock("retention run", clock=clock)
        if done.rc == 2:
            done = self.letterlock(f"retention run --acknowledge {self.word(done.stderr)}", clock=clock)
        assert done.rc == 0, f"{done.stdout}\n{done.stderr}"
        return done

    @staticmethod
    def word(said: str) -> str:
        """Return the word that a refusal asks for."""
        return re.search(r"--acknowledge (\w+)", said).group(1)

    def ledger(self) -> list[dict]:
        """Return the lines of the ledger; what a killed run left half written is none."""
        read = self.host.run(f"cat {LEDGER}/ledger-*.jsonl")
        assert read.rc == 0, read
        whole, _, _ = read.stdout.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


class RawPop3:
    """A POP3 client that can misbehave."""

    def __init__(self, mail, user: str) -> None:
        """Log in."""
        context = clients.tls_context(mail.ca_file)
        plain = socket.create_connection((mail.host["address"], mail.host["pop3s_port"]), timeout=30)
        self.stream: ssl.SSLSocket = context.wrap_socket(plain, server_hostname=mail.host["address"])
        self.lines = self.stream.makefile("rb")
        self.lines.readline()
        self.say(f"USER {user}")
        assert self.say(f"PASS {mail.accounts[user]}").startswith(b"+OK")

    def say(self, line: str) -> bytes:
        """Send a line and return the first line of the answer."""
        self.stream.sendall(line.encode() + b"\r\n")
        return self.lines.readline()

    def whole(self) -> None:
        """Read a multi-line answer to its end."""
        while self.lines.readline() not in (b".\r\n", b""):
            pass

    def drop(self) -> None:
        """Go away without a word."""
        self.lines.close()
        self.stream.close()


def settle(condition, seconds: float = 15) -> bool:
    """Return whether *condition* becomes true within *seconds*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.3)
    return False
