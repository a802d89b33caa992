"""What only they can open whose keys are kept off the host, by age(1).

https://age-encryption.org/v1
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from letterlock.doveadm import ENVIRONMENT

if TYPE_CHECKING:
    from typing import BinaryIO

SEAL_SECONDS = 300
# Bech32 (https://github.com/bitcoin/bips/blob/master/bip-0173.mediawiki), as https://age-encryption.org/v1 uses it.
LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
RECIPIENT = re.compile(rf"age1([{LETTERS}]{{58}})")


class NotSealed(Exception):
    """Something could not be sealed; the message says why."""


def seal(recipients: list[str], source: BinaryIO, target: BinaryIO, *options: str) -> None:
    """Write what *source* holds to *target*, sealed to the *recipients*; raise NotSealed or OSError."""
    names = [word for recipient in recipients for word in ("--recipient", recipient)]
    try:
        done = subprocess.run(
            ["age", "--encrypt", *options, *names], stdin=source, stdout=target, stderr=subprocess.PIPE, timeout=SEAL_SECONDS, check=False,
            env=ENVIRONMENT,
        )
    except subprocess.TimeoutExpired as fault:
        raise NotSealed(f"age: no end within {SEAL_SECONDS} s") from fault
    if done.returncode:
        raise NotSealed(f"age: {done.stderr.decode(errors='replace').strip()}")


def sealed_text(recipients: list[str], secret: bytes) -> str:
    """Return *secret* sealed to the *recipients*, as text; it is on no disk meanwhile. Raises NotSealed or OSError."""
    with os.fdopen(os.memfd_create("secret"), "w+b") as source, os.fdopen(os.memfd_create("sealed"), "w+b") as target:
        source.write(secret)
        source.flush()
        source.seek(0)
        seal(recipients, source, target, "--armor")
        target.seek(0)
        return target.read().decode()


def is_recipient(text: str) -> bool:
    """Tell whether *text* is an age recipient, its checksum included: to a typo nothing could be encrypted.

    >>> is_recipient("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj")
    True
    """
    found = RECIPIENT.fullmatch(text)
    if not found:
        return False
    prefix = [ord(char) >> 5 for char in "age"] + [0] + [ord(char) & 31 for char in "age"]
    checksum = 1
    for value in [*prefix, *(LETTERS.index(char) for char in found.group(1))]:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for number, generator in enumerate(GENERATORS):
            checksum ^= generator if top >> number & 1 else 0
    return checksum == 1


def recipient_faults(variable: str, recipients: list[str]) -> list[str]:
    """Return what is wrong with the *recipients* that a *variable* names."""
    if not recipients:
        return [f"{variable}: empty; make a key with age-keygen, off this host, and name its public key (age1...) here"]
    found = []
    for recipient in recipients:
        if recipient.upper().startswith("AGE-SECRET-KEY-"):
            found.append(f"{variable}: holds a secret key; it belongs off every host. Name the public key (age1...)")
        elif not is_recipient(recipient):
            found.append(f"{variable}: {recipient!r} is not an age recipient (age1 and 58 characters), or has a typo")
    return found
