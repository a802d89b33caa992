"""The bench of retention: a run of the kit against bare doveadm with the same query, on the same mail."""

from __future__ import annotations

import re
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNTS, MESSAGES, OLD = 1000, 100, 10
VARIABLES = {
    "bench_accounts": ACCOUNTS,
    "mail_retention_policies": [{"name": "bench", "mailboxes": ["INBOX"], "keep_for": "30d"}],
    "mail_retention_ceiling_host_percent": 100,
    "mail_retention_schedule": "*-01-01 00:00:00",
}
# A tenth of each account's mail is imported as if 40 days ago, the rest, tenth by tenth, as if it came in over the days since:
# mailboxes of their own, with GUIDs of their own. The whole is kept, and brought back with its indexes for each run.
AGES_HOURS = [960, *range(708, 0, -84)]
FILL = f"""
set -eu
mail=/srv/mail/bench.test
command -v faketime >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet faketime >/dev/null
if [ ! -d /srv/full ]; then
  for number in $(seq {MESSAGES}); do
    printf 'From: s@example.org\r\nSubject: %s\r\nMessage-ID: <%s@example.org>\r\n\r\nx\r\n' "$number" "$number" |
      doveadm save -u user0@bench.test -m INBOX
  done
  mv $mail/user0 /srv/mail/.source
  seq -f 'user%.0f@bench.test' 0 {ACCOUNTS - 1} >/root/users
  last=0
  for age in {" ".join(map(str, AGES_HOURS))}; do
    first=$((last + 1)) last=$((last + {OLD}))
    faketime -f "-${{age}}h" doveadm import -F /root/users sdbox:/srv/mail/.source/sdbox "" mailbox INBOX uid "$first:$last"
  done
  chown -R vmail: $mail
  cp -a $mail /srv/full
fi
rm -rf $mail
cp -a /srv/full $mail
rm -f /var/lib/letterlock/last_run.json /var/lib/letterlock/marks.sqlite
sync
"""
BARE = "doveadm expunge -A mailbox INBOX savedbefore 30d"
# Prints seconds and the peak of memory in MiB.
TIMED = """python3 -c '
import resource, subprocess, sys, time
started = time.monotonic()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(done.returncode, time.monotonic() - started, peak, done.stderr)
' """


def timed(on: Callable, host: str, command: str) -> tuple[float, float]:
    """Return (seconds, MiB at the peak) of *command* on *host*; raise SystemExit when it fails."""
    code, seconds, peak, *rest = on(host, TIMED + command).split(maxsplit=3)
    if code != "0":
        raise SystemExit(f"failed on {host}: {command}: {rest}")
    return float(seconds), float(peak)


def acknowledged(on: Callable, host: str) -> str:
    """Return the run's command with the word that a first run asks for; raise SystemExit when it asks for none."""
    asked = on(host, "letterlock retention run 2>&1; :")
    word = re.search(r"--acknowledge (\w+)", asked)
    if not word:
        raise SystemExit(f"on {host}, the first run did not ask: {asked}")
    return f"letterlock retention run --acknowledge {word.group(1)}"


def measure(on: Callable, say: Callable, _deploy: Callable, host: str, runs: int) -> dict:
    """Return medians, in seconds, of the kit and of bare doveadm on *host*, with a tenth to expunge and with nothing."""
    times: dict[str, list[float]] = {name: [] for name in ("bare", "bare_nothing", "kit", "kit_nothing", "kit_quiet", "kit_mib")}
    for number in range(runs):
        say(f"retention, {host}, run {number + 1} of {runs}")
        on(host, "sh -s", given=FILL)
        times["bare"].append(timed(on, host, BARE)[0])
        times["bare_nothing"].append(timed(on, host, BARE)[0])
        on(host, "sh -s", given=FILL)
        command = acknowledged(on, host)
        seconds, peak = timed(on, host, command)
        times["kit"].append(seconds)
        times["kit_mib"].append(peak)
        if f'expunged{{policy="bench"}} {ACCOUNTS * OLD}\n' not in on(host, "cat /var/lib/letterlock/metrics/retention.prom"):
            raise SystemExit(f"on {host}, the run did not expunge {ACCOUNTS * OLD} messages")
        times["kit_nothing"].append(timed(on, host, "letterlock retention run")[0])
        # The first run that finds mailboxes as the last one left them looks ahead, once in days.
        timed(on, host, "letterlock retention run")
        times["kit_quiet"].append(timed(on, host, "letterlock retention run")[0])
    found = {name: statistics.median(values) for name, values in times.items()}
    against = {"kit": "bare", "kit_nothing": "bare_nothing", "kit_quiet": "bare_nothing"}
    return {**found, **{f"ratio_{name}": found[name] / found[bare] for name, bare in against.items()}}
