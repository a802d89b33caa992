"""The evidence of a test: what was asked of a host and what it answered, with secrets masked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# What is kept of one answer: its beginning.
SHOWN = 1500
SECRETS = (
    re.compile(r"\$argon2(?:id|i|d)\$[^\s:'\"]+"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"AGE-SECRET-KEY-1[A-Z0-9]+"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)
MASK = "(masked)"


@dataclass
class Evidence:
    """What one test asked, in its order."""

    entries: list[dict] = field(default_factory=list)

    def add(self, command: str, code: int, answer: str) -> None:
        """Keep a command, its exit code and the beginning of its answer."""
        text = answer.strip()
        self.entries.append({"command": command, "code": code, "answer": text[:SHOWN] + (" ..." if len(text) > SHOWN else "")})


def without_secrets(text: str, known: list[str]) -> str:
    """Return *text* without the secrets that are *known*, and what looks like one.

    >>> without_secrets("user:{ARGON2ID}$argon2id$v=19$m=1:x hunter2", ["hunter2"])
    'user:{ARGON2ID}(masked):x (masked)'
    """
    for secret in filter(None, known):
        text = text.replace(secret, MASK)
    for pattern in SECRETS:
        text = pattern.sub(MASK, text)
    return text


def masked(entry: dict, known: list[str]) -> dict:
    """Return an entry without secrets."""
    return {name: without_secrets(value, known) if isinstance(value, str) else value for name, value in entry.items()}
