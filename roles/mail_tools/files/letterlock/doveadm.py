"""Dovecot's own administration, in two ways.

Commands for one account go through doveadm's HTTP API on a unix socket that only
root may open; one connection serves any number of them, each at the price of a
new start of Dovecot's storage. What is asked of many accounts goes to one doveadm
process that iterates over them, at a third of that price.
https://doc.dovecot.org/latest/core/admin/doveadm_http.html
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

SOCKET = "/run/dovecot/http"
# The API insists on a key; who may speak is decided by the socket's mode.
API_KEY = "unix-socket"
TIMEOUT_SECONDS = 900
EX_NOUSER = 67
EX_TEMPFAIL = 75
# Where an operator's shell or a unit says otherwise, doveadm must still do the same.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
READ_AT_ONCE = 65536
# Accounts of one iteration; and for how few the start of a process is not worth it.
ACCOUNTS_AT_ONCE = 250
WORTH_A_PROCESS = 4
COMMANDS_AT_ONCE = 25
BETWEEN_ROWS = re.compile(r"[\s,\[\]]*")


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
        # Dovecot names an account once for each userdb that knows it.
        return sorted(set(self.one("user", userMask=["*"])["userList"]))


def rows_of(stream: TextIO) -> Iterator[dict]:
    """Yield the objects of the JSON list in *stream* as they come; what is cut off in the middle ends it."""
    decoder = json.JSONDecoder(strict=False)
    text = ""
    while more := stream.read(READ_AT_ONCE):
        text += more
        at = 0
        while (start := BETWEEN_ROWS.match(text, at).end()) < len(text):
            try:
                row, at = decoder.raw_decode(text, start)
            except ValueError:
                break
            yield row
        text = text[at:]


def over(accounts: list[str], command: list[str], *arguments: str) -> Iterator[dict]:
    """Yield the rows of one doveadm iteration over *accounts*; an account that is gone is passed over.

    Raises Failed at the end when it did not go well for all of them; the rows are then not to be relied on.
    """
    with tempfile.TemporaryFile() as names, tempfile.TemporaryFile() as errors:
        names.write("".join(f"{account}\n" for account in accounts).encode())
        names.seek(0)
        with subprocess.Popen(
            ["doveadm", "-f", "json", *command, "-F", "/dev/stdin", "--", *arguments],
            stdin=names, stdout=subprocess.PIPE, stderr=errors, env=ENVIRONMENT, encoding="utf-8", errors="replace",
        ) as process:
            watch = threading.Timer(TIMEOUT_SECONDS, process.kill)
            watch.start()
            try:
                yield from rows_of(process.stdout)
                code = process.wait()
            finally:
                watch.cancel()
                process.kill()
        if code:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"doveadm {' '.join(command)}: exit code {code}: {said[-1] if said else 'no message'}")


def statuses(doveadm: Doveadm, accounts: list[str], fields: tuple[str, ...]) -> dict[str, list[dict] | Failed]:
    """Return {account: *fields* of the status of each of its mailboxes, or why they can't be had}.

    By one iteration; if that fails, with a command for each, so that one account's fault is its own.
    """
    if len(accounts) >= WORTH_A_PROCESS:
        found: dict[str, list[dict] | Failed] = {account: [] for account in accounts}
        # A KeyError: where a status can't be read, doveadm's columns shift.
        with contextlib.suppress(Failed, KeyError):
            for row in over(accounts, ["mailbox", "status"], " ".join(fields), "*"):
                found[row["username"]].append(row)
            return found
    answers: list[list[dict] | Failed] = []
    for start in range(0, len(accounts), COMMANDS_AT_ONCE):
        some = accounts[start : start + COMMANDS_AT_ONCE]
        answers += doveadm.batch([status(account, "*", fields) for account in some])
    return dict(zip(accounts, answers, strict=True))


def status(account: str, mailbox: str, fields: tuple[str, ...]) -> tuple[str, dict]:
    """Return the command that asks for the status of an account's mailboxes."""
    return "mailboxStatus", {"user": account, "field": list(fields), "mailboxMask": [mailbox]}


def looking_at(series: str, kind: str, path: Path) -> list[str]:
    """Return the options with which doveadm looks at a store of the format *kind* elsewhere, in the dialect of Dovecot *series*.

    >>> looking_at("2.3", "sdbox", "/srv/x")
    ['-o', 'mail_location=sdbox:/srv/x']
    """
    settings = {"2.3": [f"mail_location={kind}:{path}"], "2.4": [f"mail_driver={kind}", f"mail_path={path}"]}
    return [word for setting in settings[series] for word in ("-o", setting)]


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


def any_of(searches: list[list[str]]) -> list[str]:
    """Return the search for what any of *searches* finds. Without the parentheses doveadm dies of a mixed AND and OR.

    >>> any_of([["seen"], ["uid", "1"]])
    ['(', '(', 'seen', ')', 'or', '(', 'uid', '1', ')', ')']
    """
    terms: list[str] = []
    for search in searches:
        terms += ["or"] * bool(terms) + ["(", *search, ")"]
    return ["(", *terms, ")"]


def in_mailbox(name: str, guid: str) -> list[str]:
    """Return the search that finds one mailbox exactly, whatever its name holds; the plain name spares a look at all others."""
    exact = ["mailbox-guid", guid]
    return exact if set(name) & set("*%") else ["mailbox", name, *exact]
