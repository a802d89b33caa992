#!/usr/bin/env python3
"""Load a host of one's own with mail sessions, from within, for a few seconds; print what was served as JSON.

Usage: load.py KIND SECONDS WORKERS PASSWORD

KIND is login (IMAP login and logout), imap (login, select, fetch), pop3 (login,
stat, retr) or lmtp (deliver 3 kB over the unix socket). Runs on the measured
host itself, on its loopback, so that one script serves every configuration;
client and server share the machine, so the numbers compare and mean little
alone. Standard library only.
"""

from __future__ import annotations

import imaplib
import json
import multiprocessing
import poplib
import smtplib
import ssl
import sys
import time

# Not the address that the server answers on: equal ones count as secured without TLS.
HOST = "127.0.0.1"
USERS = 20
MESSAGE = b"From: s@example.org\r\nSubject: load\r\n\r\n" + b"0123456789abcdef\r\n" * 165


def context() -> ssl.SSLContext:
    """Return a context; certificates differ between configurations, and are verified elsewhere."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def login(tls: ssl.SSLContext, user: str, password: str) -> None:
    """Log in over IMAP and out."""
    client = imaplib.IMAP4_SSL(HOST, ssl_context=tls, timeout=30)
    client.login(user, password)
    client.logout()


def imap(tls: ssl.SSLContext, user: str, password: str) -> None:
    """Open INBOX and read its newest message."""
    client = imaplib.IMAP4_SSL(HOST, ssl_context=tls, timeout=30)
    client.login(user, password)
    client.select("INBOX")
    client.fetch("*", "(FLAGS BODY.PEEK[])")
    client.logout()


def pop3(tls: ssl.SSLContext, user: str, password: str) -> None:
    """Read the newest message."""
    client = poplib.POP3_SSL(HOST, context=tls, timeout=30)
    client.user(user)
    client.pass_(password)
    count, _ = client.stat()
    if count:
        client.retr(count)
    client.quit()


def lmtp(_tls: ssl.SSLContext, user: str, _password: str) -> None:
    """Deliver one message."""
    client = smtplib.LMTP("/run/dovecot/lmtp")
    client.sendmail("s@example.org", [user], MESSAGE)
    client.quit()


KINDS = {"login": login, "imap": imap, "pop3": pop3, "lmtp": lmtp}


def work(kind: str, seconds: float, number: int, password: str, results: multiprocessing.Queue) -> None:
    """Do *kind* until *seconds* have passed; report [seconds each]."""
    tls, did, times = context(), KINDS[kind], []
    deadline = time.monotonic() + seconds
    turn = number
    while time.monotonic() < deadline:
        turn += 1
        started = time.monotonic()
        did(tls, f"user{turn % USERS}@bench.test", password)
        times.append(time.monotonic() - started)
    results.put(times)


def main() -> None:
    """Run the workers and print the rate and the 99th percentile."""
    kind, seconds, workers, password = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if kind == "lmtp":
        # An account's very first deliveries at once race in Dovecot 2.4.1 (README, Limits); that is not measured here.
        for number in range(USERS):
            lmtp(context(), f"user{number}@bench.test", password)
    results: multiprocessing.Queue = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=work, args=(kind, seconds, number * 7, password, results)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    times = sorted(took for _ in processes for took in results.get(timeout=seconds + 120))
    for process in processes:
        process.join()
    print(json.dumps({"per_second": len(times) / seconds, "p99_ms": 1000 * times[int(len(times) * 0.99)]}))


if __name__ == "__main__":
    main()
