"""The bench of backups: the kit's backup and restore against bare restic over the same tree, and what serving costs meanwhile."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench_retention import timed

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNTS, MESSAGES, OCTETS = 50, 2000, 20_000
# One percent.
NEW = MESSAGES // 100
VARIABLES = {
    "bench_accounts": ACCOUNTS,
    "mail_backup_repository": "/srv/backup",
    "mail_backup_password": "the-bench-has-no-secrets",
    "mail_backup_escrow": "none: a bench",
    "mail_backup_schedule": "*-01-01 00:00:00",
    "mail_backup_check_schedule": "*-01-01 00:00:00",
    "mail_retention_schedule": "*-01-01 00:00:00",
}
FILL = """python3 - %d %d %d %d %d <<'END'
import base64, os, shutil, subprocess, sys
accounts, messages, first, octets, first_account = map(int, sys.argv[1:])
for account in range(first_account, first_account + accounts):
    source = f"/srv/source/user{account}"
    for folder in ("cur", "new", "tmp"):
        os.makedirs(f"{source}/{folder}", exist_ok=True)
    for number in range(first, first + messages):
        text = base64.encodebytes(os.urandom(octets * 3 // 4)).replace(b"\\n", b"\\r\\n")
        head = f"From: s@example.org\\r\\nSubject: {number}\\r\\nMessage-ID: <{number}.{account}@example.org>\\r\\n\\r\\n".encode()
        with open(f"{source}/cur/{number}.M1.bench:2,", "wb") as file:
            file.write(head + text)
    subprocess.run(["chown", "-R", "vmail:", "/srv/source"], check=True)
    take = ["doveadm", "-o", "mail_fsync=never", "import", "-u", f"user{account}@bench.test"]
    subprocess.run([*take, f"maildir:{source}", "", "all"], check=True)
    shutil.rmtree(source)
END
find /srv/mail/bench.test ! -user vmail -exec chown vmail: {} +
sync
"""
RESTIC = "env RESTIC_PASSWORD=bench RESTIC_REPOSITORY=/srv/bare RESTIC_CACHE_DIR=/srv/bare-cache restic"
FULL = {"": "letterlock backup run", "_bare": f"sh -c '{RESTIC} init && {RESTIC} backup /srv/mail'"}
AGAIN = {"": "letterlock backup run", "_bare": f"{RESTIC} backup /srv/mail"}
LOSE = {"": "systemctl stop dovecot && rm -rf /srv/mail/bench.test && systemctl start dovecot && sync", "_bare": "rm -rf /srv/out; sync"}
RESTORE = {"": "letterlock backup restore", "_bare": f"{RESTIC} restore latest --target /srv/out"}
NOTHING = "rm -rf /srv/backup/* /srv/bare /srv/bare-cache /var/cache/letterlock/restic /var/lib/letterlock/backup /srv/out; sync"
# Prints the 95th percentile, in seconds, of IMAP sessions one after another: login, look, read the newest message, logout.
# They go on for so many seconds, or as long as a process runs.
LATENCY = """python3 - %s <<'END'
import imaplib, os, ssl, sys, time
context = ssl._create_unverified_context()
seconds, process = float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
deadline, times = time.monotonic() + seconds, []
while time.monotonic() < deadline and (not process or os.path.exists(f"/proc/{process}")):
    started = time.monotonic()
    client = imaplib.IMAP4_SSL("127.0.0.1", 993, ssl_context=context)
    client.login(f"user{len(times) %% 50}@bench.test", "bench")
    client.select("INBOX", readonly=True)
    client.fetch("*", "(BODY.PEEK[])")
    client.logout()
    times.append(time.monotonic() - started)
print(sorted(times)[int(len(times) * 0.95)])
END
"""


def fill(accounts: int, messages: int, first: int, octets: int = OCTETS, *, first_account: int = 0) -> str:
    """Return the command that imports *messages* of *octets* into each account, none like another, numbered from *first*."""
    return FILL % (accounts, messages, first, octets, first_account)


def measure(on: Callable, say: Callable, _deploy: Callable, host: str, runs: int) -> dict:
    """Return medians, in seconds, of the kit and of bare restic on *host*: full, with 1 % new mail, restored; and latencies.

    A full backup makes its repository.
    """
    say(f"backup, {host}, fills {ACCOUNTS * MESSAGES} messages")
    on(host, fill(ACCOUNTS, MESSAGES, 0))
    times: dict[str, list[float]] = {f"{kind}{of}": [] for kind in ("full", "new", "restore") for of in ("", "_bare")}
    latencies: dict[str, list[float]] = {"latency": [], "latency_quiet": []}
    # Whoever comes second finds more in memory: each is first as often as the other. What was written before must not go to the
    # disk while something else is measured.
    for number in range(2 * runs):
        say(f"backup, {host}, run {number + 1} of {2 * runs}")
        on(host, NOTHING)
        latencies["latency_quiet"].append(float(on(host, LATENCY % 10)))
        # As it is deployed: by the service, which gives way.
        began = "systemctl start letterlock-backup.service >/root/log 2>&1 & echo $!"
        latencies["latency"].append(float(on(host, LATENCY % f"300 {on(host, began).strip()}")))
        sides = ["", "_bare"] if number % 2 else ["_bare", ""]
        on(host, NOTHING)
        for side in sides:
            on(host, "sync")
            times[f"full{side}"].append(timed(on, host, FULL[side])[0])
        on(host, fill(ACCOUNTS, NEW, MESSAGES * (number + 2)))
        for side in sides:
            on(host, "sync")
            times[f"new{side}"].append(timed(on, host, AGAIN[side])[0])
        for side in sides:
            on(host, LOSE[side])
            times[f"restore{side}"].append(timed(on, host, RESTORE[side])[0])
    found = {name: statistics.median(values) for name, values in {**times, **latencies}.items()}
    ratios = {f"ratio_{kind}": found[kind] / found[f"{kind}_bare"] for kind in ("full", "new", "restore")}
    return {**found, **ratios, "ratio_latency": found["latency"] / found["latency_quiet"]}
