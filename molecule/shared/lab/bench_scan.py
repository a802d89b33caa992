"""The bench of scanning: deliveries and logins with it and without, and a sweep against bare clamdscan over the same files."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench_backup import fill
from bench_retention import timed

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNTS, MESSAGES, OCTETS = 10, 2000, 50_000
# In the mailbox whose logins are measured.
LARGE = 10_000
NAME = "user{}@bench.test"
VARIABLES = {
    "mail_scan_enabled": True,
    "mail_scan_freshclam": False,
    # An age recipient whose identity nobody has: the bench seals nothing that somebody opens.
    "mail_scan_quarantine_recipients": ["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"],
    "mail_scan_signatures_age_max": "100y",
    "mail_scan_sweep_schedule": "*-01-01 00:00:00",
    "mail_retention_schedule": "*-01-01 00:00:00",
    # What clamdscan reads beside the sweep.
    "dovecot_mail_compression_level": 0,
    # The kit's own parameters: what a login costs is what it is compared with.
    "mail_accounts_users": [{"name": NAME.format(number), "password": "bench"} for number in range(ACCOUNTS + 1)],
    "dovecot_sessions_per_account_and_address": 100,
}
SIGNATURE = "printf 'Bench.None:0:*:%s\\n' 6e6f206d65737361676520686173207468697320 >/etc/letterlock/signatures/bench.ndb"
# A reload empties clamd's memory of what it has found clean.
FORGET = (
    "systemctl stop letterlock-sweep.path letterlock-gate.service; rm -f /var/lib/letterlock/scan/judged.sqlite*; "
    "systemctl restart letterlock-clamd"
)
READY = "until letterlock scan status >/dev/null; do sleep 0.2; done"
SWEEP = "letterlock scan sweep"
# Each message as a file: in dbox's own files clamd does not see that they are mail, and looks into no part of them.
FILES = """rm -rf /root/messages; mkdir /root/messages; python3 - <<'END'
import pathlib, sys
sys.path.insert(0, "/usr/lib/letterlock")
from letterlock.stored import octets_of_dbox
for number, file in enumerate(pathlib.Path("/srv/mail").rglob("u.*")):
    pathlib.Path(f"/root/messages/{number}").write_bytes(octets_of_dbox(file.read_bytes()))
END
"""
BARE = "clamdscan --config-file=/etc/letterlock/dovecot/current/clamd.conf --multiscan --fdpass --no-summary /root/messages"
# Prints the median and the 95th percentile, in seconds, of deliveries to a socket one after another.
DELIVER = """python3 - %s <<'END'
import os, smtplib, sys, time
client = smtplib.LMTP(sys.argv[1])
client.ehlo_or_helo_if_needed()
times = []
for number in range(300):
    message = f"Subject: {number}\\r\\n\\r\\n".encode() + os.urandom(7500).hex().encode().replace(b"00", b"\\r\\n") + b"\\r\\n"
    started = time.monotonic()
    client.sendmail("s@example.org", ["user0@bench.test"], message)
    times.append(time.monotonic() - started)
times.sort()
print(times[len(times) // 2], times[int(len(times) * 0.95)])
END
"""
# Prints the median, in seconds, of logins until a session has answered.
LOGIN = """python3 - <<'END'
import imaplib, ssl, time
context = ssl._create_unverified_context()
times = []
for number in range(60):
    client = imaplib.IMAP4_SSL("127.0.0.1", 993, ssl_context=context)
    started = time.monotonic()
    client.login("user%d@bench.test", "bench")
    client.noop()
    times.append(time.monotonic() - started)
    client.logout()
print(sorted(times)[len(times) // 2])
END
"""


def measure(on: Callable, say: Callable, deploy: Callable, host: str, runs: int) -> dict:
    """Return medians, in seconds, with scanning and without on *host*, which *deploy* deploys with other variables."""
    times: dict[str, list[float]] = {
        name: [] for name in ("p50", "p50_bare", "p95", "p95_bare", "login", "login_bare", "sweep", "sweep_bare", "again", "again_bare")
    }
    on(host, "DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends clamdscan")
    on(host, f"{SIGNATURE} && systemctl start letterlock-signatures && {READY}")
    say(f"scan, {host}, fills {ACCOUNTS * MESSAGES + LARGE} messages")
    on(host, fill(ACCOUNTS, MESSAGES, 0, OCTETS))
    for number in range(runs):
        say(f"scan, {host}, run {number + 1} of {runs}")
        for side, socket in (("", "/run/dovecot/lmtp"), ("_bare", "/run/dovecot/lmtp-store")):
            p50, p95 = map(float, on(host, DELIVER % socket).split())
            times[f"p50{side}"].append(p50)
            times[f"p95{side}"].append(p95)
        on(host, FILES)
        for side, command in (("", SWEEP), ("_bare", BARE)) if number % 2 else (("_bare", BARE), ("", SWEEP)):
            on(host, f"{FORGET}; {READY}; sync")
            times[f"sweep{side}"].append(timed(on, host, command)[0])
    on(host, SWEEP)
    for _ in range(runs):
        times["again"].append(timed(on, host, SWEEP)[0])
        times["again_bare"].append(timed(on, host, "letterlock scan status")[0])
    on(host, fill(1, LARGE, 0, 1000, first_account=ACCOUNTS))
    on(host, SWEEP)
    for _ in range(2 * runs):
        for side, enabled in (("", True), ("_bare", False)):
            deploy(mail_scan_gate_enabled=enabled)
            on(host, LOGIN % ACCOUNTS)
            times[f"login{side}"].append(float(on(host, LOGIN % ACCOUNTS)))
    found = {name: statistics.median(values) for name, values in times.items()}
    return {**found, **{f"ratio_{kind}": found[kind] / found[f"{kind}_bare"] for kind in ("p50", "p95", "login", "sweep", "again")}}
