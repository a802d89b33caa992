"""Secrets that somebody types: never an argument, which all processes of a host can read."""

from __future__ import annotations

import getpass
import sys

from letterlock.retention import Refused


def ask(what: str) -> str:
    """Return a secret from the terminal, or the next line of standard input; raise Refused."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    line = sys.stdin.buffer.readline()
    if not line:
        raise Refused(f"on standard input a line is missing: {what}")
    return line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
