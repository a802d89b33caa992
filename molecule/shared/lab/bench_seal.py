"""The bench of mail at rest under its user's key: one host that encrypts against another that does not, the same mail on both."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from bench_backup import fill

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNTS, FETCHED, LARGE = 20, 1000, 10_000
NAME = "user{}@bench.test"
KINDS = ("deliver", "fetch", "login", "first", "again", "news", "anew")
# Beside those that deliveries go to: whose 1,000 messages are fetched, whose mailbox of 10,000 is opened, and who has nothing.
READER, OWNER, IDLE = ACCOUNTS, ACCOUNTS + 1, ACCOUNTS + 2
VARIABLES = {
    "mail_crypt_enabled": True,
    "mail_crypt_escrow": ["none"],
    "mail_retention_schedule": "*-01-01 00:00:00",
    # The kit's own parameters: what a login costs is what it is compared with.
    "mail_accounts_users": [{"name": NAME.format(number), "password": "bench"} for number in range(ACCOUNTS + 3)],
    "dovecot_sessions_per_account_and_address": 100,
}
# The second host's.
OTHER_VARIABLES = {"mail_crypt_enabled": False}
# Wraps the key again with the same password and a derivation that costs nothing: what is left is the cost of all else.
WITHOUT_DERIVATION = f"""printf 'bench\\nbench\\n' | python3 -c '
import sys
sys.path.insert(0, "/usr/lib/letterlock")
from letterlock import cli, keyring
keyring.SCRYPT_N = 2
sys.argv = ["letterlock", "keys", "password", "{NAME.format(IDLE)}"]
sys.exit(cli.main())' && sleep 2
"""
CLIENT = """python3 - %s <<'END'
import imaplib, ssl, sys, time
context = ssl._create_unverified_context()
def session(user):
    client = imaplib.IMAP4_SSL("127.0.0.1", 993, ssl_context=context)
    started = time.monotonic()
    client.login(user, "bench")
    client.noop()
    return client, started
def seconds(user, *commands):
    client, started = session(user)
    begun = time.monotonic()
    if commands:
        client.select("INBOX")
    for messages, items in commands:
        assert client.fetch(messages, items)[0] == "OK"
    ended = time.monotonic()
    client.logout()
    return ended - (begun if commands else started)
%s
END
"""
# Prints the median, in seconds, of logins until a session has answered.
LOGIN = CLIENT % (NAME.format(IDLE), "print(sorted(seconds(sys.argv[1]) for _ in range(60))[30])")
FETCH = CLIENT % (NAME.format(READER), 'print(sorted(seconds(sys.argv[1], ("1:*", "(BODY.PEEK[])")) for _ in range(5))[2])')
# What a client asks for when it meets a mailbox; one that keeps what it got, from then on, and with the headers of 50 new
# messages; and one that keeps nothing.
OPEN = CLIENT % (NAME.format(OWNER), f"""
headers = "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[HEADER.FIELDS (DATE FROM TO SUBJECT MESSAGE-ID)])"
first = seconds(sys.argv[1], ("1:*", headers))
again = sorted(seconds(sys.argv[1], ("1:*", "(UID FLAGS)")) for _ in range(5))[2]
news = sorted(seconds(sys.argv[1], ("1:*", "(UID FLAGS)"), ("{LARGE - 49}:*", headers)) for _ in range(5))[2]
anew = sorted(seconds(sys.argv[1], ("1:*", headers)) for _ in range(3))[1]
print(first, again, news, anew)""")
# As if nobody had ever opened it.
UNSEEN = f"find /srv/mail/bench.test/user{OWNER} -name 'dovecot.index.cache*' -delete"
DELIVER_SECONDS, WORKERS = 8, 8
DELIVER = (Path(__file__).parent / "load.py").read_text()


def measure(on: Callable, say: Callable, _deploy: Callable, hosts: tuple[str, str], runs: int) -> dict:
    """Return medians of the first of *hosts*, which encrypts, and of the second: seconds, and deliveries a second."""
    sides = dict(zip(("", "_bare"), hosts, strict=True))
    for host in hosts:
        say(f"seal, {host}, fills {FETCHED + LARGE} messages")
        on(host, fill(1, FETCHED, 0, 10_000, first_account=READER))
        on(host, fill(1, LARGE, 0, 4000, first_account=OWNER))
    times: dict[str, list[float]] = {f"{kind}{side}": [] for kind in KINDS for side in sides}
    for number in range(runs):
        say(f"seal, {hosts[0]} and {hosts[1]}, run {number + 1} of {runs}")
        for side, host in sides.items():
            on(host, UNSEEN)
            for kind, seconds in zip(("first", "again", "news", "anew"), on(host, OPEN).split(), strict=True):
                times[f"{kind}{side}"].append(float(seconds))
            for kind, command in (("fetch", FETCH), ("login", LOGIN)):
                times[f"{kind}{side}"].append(float(on(host, command)))
            found = json.loads(on(host, f"python3 - lmtp {DELIVER_SECONDS} {WORKERS} bench", given=DELIVER))
            times[f"deliver{side}"].append(found["per_second"])
    on(hosts[0], WITHOUT_DERIVATION)
    apart = [float(on(hosts[0], LOGIN)) for _ in range(runs)]
    found = {name: statistics.median(values) for name, values in times.items()}
    found["underived"], found["underived_bare"] = statistics.median(apart), found["login_bare"]
    return {**found, **{f"ratio_{kind}": found[kind] / found[f"{kind}_bare"] for kind in (*KINDS, "underived")}}
