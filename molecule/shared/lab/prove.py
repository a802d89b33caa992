#!/usr/bin/env python3
"""Prove the lab: deliver a handful of real messages, read them back, and say how to connect.

Usage: prove.py ACCESS_JSON

A message that is there already is not delivered again, so that a second run
proves the same mail once more.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import clients
import messages


def find(wanted: bytes, stored: list[bytes]) -> bool:
    """Tell whether *wanted* is among the *stored* messages, byte for byte but for its trace fields."""
    return any(clients.without_trace(message) == wanted for message in stored)


def prove(host: dict, ca_file: str, account: dict) -> tuple[int, int]:
    """Deliver what is missing and read all of it back over IMAPS and POP3S.

    Returns (delivered now, octets compared). Raises AssertionError naming the message that came back changed.
    """
    login = (host, ca_file, account["user"], account["password"])
    before = clients.imap_messages(*login)
    handful = messages.handful()
    missing = {name: message for name, message in handful.items() if not find(message, before)}
    for message in missing.values():
        clients.deliver(host, ca_file, account["user"], message)
    octets = 0
    for protocol, stored in (("IMAPS", clients.imap_messages(*login)), ("POP3S", clients.pop3_messages(*login))):
        for name, message in handful.items():
            if not find(message, stored):
                raise AssertionError(f"{host['name']}: {protocol} doesn't give back the message {name!r} as it was sent")
            octets += len(message)
    return len(missing), octets


def table(rows: list[tuple[str, ...]]) -> str:
    """Return *rows* in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def main() -> None:
    """Prove every host and print the table."""
    file = Path(sys.argv[1])
    access = clients.read_access(file)
    rows = [("host", "Dovecot", "IMAPS", "POP3S", "LMTP over TLS", "SSH")]
    for host in access["hosts"]:
        started = time.monotonic()
        delivered, octets = prove(host, access["ca_file"], access["accounts"][0])
        print(
            f"  {host['name']}: delivered {delivered} messages, read {len(messages.handful())} back over IMAPS and POP3S, "
            f"{octets} octets the same, {time.monotonic() - started:.1f} s", flush=True
        )
        rows.append((
            f"{host['name']} ({host['release']})", host["dovecot_version"],
            *(f"{host['address']}:{host[port]}" for port in ("imaps_port", "pop3s_port", "lmtp_port")),
            f"make ssh HOST={host['name']}",
        ))
    print(f"\n{table(rows)}\n")
    print(table([("account", "password"), *((account["user"], account["password"]) for account in access["accounts"])]))
    print(f"\n  CA: {access['ca_file']}\n  The same facts: {file}")


if __name__ == "__main__":
    main()
