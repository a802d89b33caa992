"""Dovecot's own administration, through doveadm's HTTP API on a unix socket that only root may open.

One connection serves any number of commands: no process for each account.
https://doc.dovecot.org/latest/core/admin/doveadm_http.html
"""

from __future__ import annotations

import base64
import http.client
import json
import socket

SOCKET = "/run/dovecot/http"
# The API insists on a key; who may speak is decided by the socket's mode.
API_KEY = "unix-socket"
TIMEOUT_SECONDS = 900
EX_NOUSER = 67
EX_TEMPFAIL = 75


class Failed(Exception):
    """Dovecot could not do what it was asked; `code` is doveadm's exit code."""

    def __init__(self, message: str, code: int = EX_TEMPFAIL) -> None:
        """Keep *code* beside the message."""
        super().__init__(message)
        self.code = code


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        """Remember *path*."""
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self.path)


class Doveadm:
    """A connection to doveadm; it opens itself again when Dovecot was reloaded."""

    def __init__(self, path: str = SOCKET) -> None:
        """Remember where it listens."""
        self.path = path
        self.connection: UnixConnection | None = None

    def post(self, body: bytes) -> bytes:
        """Return what the API answers to *body*; raise Failed when there is no answer."""
        token = base64.b64encode(API_KEY.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"X-Dovecot-API {token}"}
        if self.connection is None:
            self.connection = UnixConnection(self.path)
        try:
            self.connection.request("POST", "/doveadm/v1", body, headers)
            response = self.connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.connection = None
            raise Failed(f"doveadm at {self.path}: {error}") from error
        if response.status != http.client.OK:
            raise Failed(f"doveadm at {self.path}: {response.status} {text[:200].decode(errors='replace')}")
        return text

    def batch(self, commands: list[tuple[str, dict]]) -> list[list[dict] | Failed]:
        """Run *commands*, each (name, parameters), in order; return the rows of each, or why it failed.

        One command's failure leaves the others alone. A command that ends doveadm's
        process is a failure of its own: the rest is asked again, one by one.
        """
        try:
            return self.ask(commands) if commands else []
        except Failed as failed:
            if len(commands) == 1:
                return [failed]
        return [answer for command in commands for answer in self.batch([command])]

    def ask(self, commands: list[tuple[str, dict]]) -> list[list[dict] | Failed]:
        """Send *commands* in one request."""
        asked = [[name, parameters, str(number)] for number, (name, parameters) in enumerate(commands)]
        results: list[list[dict] | Failed] = [Failed("doveadm did not answer this command") for _ in commands]
        answers = json.loads(self.post(json.dumps(asked).encode()).decode(errors="replace"))
        for kind, answer, tag in answers:
            if kind == "doveadmResponse":
                results[int(tag)] = answer
            else:
                name, parameters, _ = asked[int(tag)]
                code = int(answer.get("exitCode", EX_TEMPFAIL)) if isinstance(answer, dict) else EX_TEMPFAIL
                results[int(tag)] = Failed(f"doveadm {name} for {parameters.get('user', 'all')}: exit code {code}", code)
        return results

    def one(self, name: str, **parameters: object):
        """Run one command and return its rows; raise Failed."""
        (result,) = self.batch([(name, parameters)])
        if isinstance(result, Failed):
            raise result
        return result

    def users(self) -> list[str]:
        """Return all accounts."""
        return sorted(self.one("user", userMask=["*"])["userList"])


def uid_set(uids: list[int]) -> str:
    """Return *uids* as an IMAP sequence set (RFC 9051, 9).

    >>> uid_set([5, 1, 2, 3])
    '1:3,5'
    """
    ranges: list[list[int]] = []
    for uid in sorted(uids):
        if ranges and uid == ranges[-1][1] + 1:
            ranges[-1][1] = uid
        else:
            ranges.append([uid, uid])
    return ",".join(str(first) if first == last else f"{first}:{last}" for first, last in ranges)


def in_mailbox(name: str, guid: str) -> list[str]:
    """Return the search that finds one mailbox exactly, whatever its name holds; the plain name spares a look at all others."""
    exact = ["mailbox-guid", guid]
    return exact if set(name) & set("*%") else ["mailbox", name, *exact]
