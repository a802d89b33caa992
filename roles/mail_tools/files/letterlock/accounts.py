"""Where an account has its place: the mail's root and all that mirrors it are laid out by domain."""

from __future__ import annotations

from pathlib import Path


def place_of(account: str) -> Path:
    """Return the relative path of *account*'s home.

    >>> str(place_of("ada@example.org"))
    'example.org/ada'
    """
    local, _, domain = account.rpartition("@")
    return Path(domain) / local
