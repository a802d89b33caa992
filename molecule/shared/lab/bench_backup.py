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
# Messages of which none is like another, in Maildirs that are imported: (accounts, messages of each, first number).
FILL = f"""python3 - %d %d %d <<'END'
import base64, os, shutil, subprocess, sys
accounts, messages, first = map(int, sys.argv[1:])
for account in range(accounts):
    source = f"/srv/source/user{{account}}"
    for folder in ("cur", "new", "tmp"):
        os.makedirs(f"{{source}}/{{folder}}", exist_ok=True)
    for number in range(first, first + messages):
        text = base64.encodebytes(os.urandom({OCTETS} * 3 // 4)).replace(b"\\n", b"\\r\\n")
        head = f"From: s@example.org\\r\\nSubject: {{number}}\\r\\nMessage-ID: <{{number}}.{{account}}@example.org>\\r\\n\\r\\n".encode()
        with open(f"{{source}}/cur/{{number}}.M1.bench:2,", "wb") as file:
            file.write(head + text)
    subprocess.run(["chown", "-R", "vmail:", "/srv/source"], check=True)
    take = ["doveadm", "-o", "mail_fsync=never", "import", "-u", f"user{{account}}@bench.test"]
    subprocess.run([*take, f"maildir:{{source}}", "", "all"], check=True)
    shutil.rmtree(source)
END
chown -R vmail: /srv/mail/bench.test
sync
"""
RESTIC = "env RESTIC_PASSWORD=bench RESTIC_REPOSITORY=/srv/bare RESTIC_CACHE_DIR=/srv/bare-cache restic"
LOSE = "systemctl stop dovecot && rm -rf /srv/mail/bench.test && systemctl start dovecot"
NOTHING = "rm -rf /srv/backup/* /srv/bare /srv/bare-cache /var/cache/letterlock/restic /var/lib/letterlock/backup /srv/out"
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


def measure(on: Callable, say: Callable, host: str, runs: int) -> dict:
    """Return medians, in seconds, of the kit and of bare restic on *host*: full, with 1 % new mail, restored; and latencies.

    A full backup makes its repository.
    """
    say(f"backup, {host}, fills {ACCOUNTS * MESSAGES} messages")
    on(host, FILL % (ACCOUNTS, MESSAGES, 0))
    times: dict[str, list[float]] = {f"{kind}{of}": [] for kind in ("full", "new", "restore") for of in ("", "_bare")}
    latencies: dict[str, list[float]] = {"latency": [], "latency_quiet": []}
    for number in range(runs):
        say(f"backup, {host}, run {number + 1} of {runs}")
        on(host, NOTHING)
        latencies["latency_quiet"].append(float(on(host, LATENCY % 10)))
        # As it is deployed: by the service, which gives way.
        began = "systemctl start letterlock-backup.service >/root/log 2>&1 & echo $!"
        latencies["latency"].append(float(on(host, LATENCY % f"300 {on(host, began).strip()}")))
        on(host, NOTHING)
        times["full_bare"].append(timed(on, host, f"sh -c '{RESTIC} init && {RESTIC} backup /srv/mail'")[0])
        times["full"].append(timed(on, host, "letterlock backup run")[0])
        on(host, FILL % (ACCOUNTS, NEW, MESSAGES * (number + 2)))
        times["new"].append(timed(on, host, "letterlock backup run")[0])
        times["new_bare"].append(timed(on, host, f"{RESTIC} backup /srv/mail")[0])
        times["restore_bare"].append(timed(on, host, f"{RESTIC} restore latest --target /srv/out")[0])
        on(host, "rm -rf /srv/out")
        on(host, LOSE)
        times["restore"].append(timed(on, host, "letterlock backup restore")[0])
    found = {name: statistics.median(values) for name, values in {**times, **latencies}.items()}
    ratios = {f"ratio_{kind}": found[kind] / found[f"{kind}_bare"] for kind in ("full", "new", "restore")}
    return {**found, **ratios, "ratio_latency": found["latency"] / found["latency_quiet"]}
