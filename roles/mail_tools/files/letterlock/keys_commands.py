"""`letterlock keys`: the life of an account's keys.

No password, recovery key or private key is ever an argument: a terminal is asked for
them, and a program gives them by standard input, one on a line, in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from letterlock import backup, keystore, leak_audit, links, locks, restic, restore, sealing, session_key
from letterlock.accounts import place_of
from letterlock.asking import ask
from letterlock.doveadm import ENVIRONMENT, Failed
from letterlock.keyring import CLEAR, MOVING, OWN, SEALED, Credential, Keyring
from letterlock.retention import Refused
from letterlock.runs import one_run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Of an app password, which is copied once: 100 bits.
APP_LETTERS, APP_LENGTH = "abcdefghijkmnpqrstuvwxyz23456789", 20
# What Dovecot takes of a client in one line is longer; nobody types as much.
LONGEST_PASSWORD = 1024
LETTERLOCK = {**ENVIRONMENT, "PATH": f"/usr/local/sbin:{ENVIRONMENT['PATH']}"}
STATES = {
    SEALED: "", CLEAR: "NOT ENCRYPTED YET (`letterlock keys seal`); ", MOVING: "AT REST, run `letterlock keys seal` or `unseal` again; ",
}
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def ask_new() -> str:
    """Return a password that is to be; raise Refused."""
    password = ask("new password")
    if sys.stdin.isatty() and ask("once more") != password:
        raise Refused("those were two passwords; nothing was changed")
    return usable(password)


def usable(password: str) -> str:
    """Return *password*; raise Refused when nobody could log in with it."""
    if not password:
        raise Refused("an empty password keeps nobody out; nothing was changed")
    if len(password.encode("utf-8", "surrogateescape")) > LONGEST_PASSWORD:
        raise Refused(f"a password has {LONGEST_PASSWORD} octets at most; nothing was changed")
    if set(password) & set("\0\r\n"):
        raise Refused("a password is one line, without NUL; nothing was changed")
    return password


def hash_of(password: str, wanted: keystore.KeySettings) -> str:
    """Return what Dovecot checks *password* by."""
    import argon2  # noqa: PLC0415  # mail_crypt brings it, and the other commands work without

    return "{ARGON2ID}" + argon2.PasswordHasher(**wanted.hashing).hash(password.encode("utf-8", "surrogateescape"))


def make(arguments: argparse.Namespace) -> int:
    """Make the keys of accounts that have none."""
    if arguments.initial:
        raw = json.load(sys.stdin)
        wanted = keystore.settings_of(raw["settings"])
        given = {each["name"]: each["password"] for each in raw["accounts"]}
    else:
        wanted, given = keystore.read_settings(), {arguments.account: None}
    with keystore.alone():
        missing = [account for account in given if not keystore.file_of(account).exists()]
        if not arguments.initial and not missing:
            raise Refused(f"{arguments.account} has keys already; `letterlock keys rotate` makes new ones")
        for account in missing:
            password = usable(given[account]) if given[account] is not None else ask_new()
            ring = Keyring.make(account, password, hash_of(password, wanted), wanted.recipients)
            # What is there was written in clear, and can be copied by who has no key as long as nothing else is between it.
            if sealing.counts(keystore.store_of(account, wanted))[1]:
                ring.state = CLEAR
            ring.write(keystore.place_for(account))
            print(f"{account}: keys made")
        if arguments.initial:
            keystore.retire(set(wanted.accounts))
        keystore.show(wanted)
    if not arguments.initial and not wanted.recipients:
        print(f"a forgotten password loses the mail; `letterlock keys recovery {arguments.account}` makes a key that opens it, too")
    return 0


def change_password(arguments: argparse.Namespace) -> int:
    """Change the account's own password, by the one that it has."""
    wanted = keystore.read_settings()
    with keystore.changed(arguments.account) as ring:
        credential, keys = ring.opened(ask("password"))
        if credential.name != OWN:
            raise Refused(f"that is the app password {credential.name}; only the account's own can change it")
        password = ask_new()
        ring.set_password(keys, password, hash_of(password, wanted))
    print(f"{arguments.account}: the password is changed; sessions that are open stay open")
    return 0


def reset(arguments: argparse.Namespace) -> int:
    """Set the account's own password without the old one."""
    wanted = keystore.read_settings()
    with keystore.changed(arguments.account) as ring:
        if arguments.escrow:
            password = ask_new()
            keys = ring.from_escrow(sys.stdin.read())
        else:
            keys = ring.recovered(ask("recovery key"))
            password = ask_new()
        ring.set_password(keys, password, hash_of(password, wanted))
    print(f"{arguments.account}: the password is reset")
    return 0


def recovery(arguments: argparse.Namespace) -> int:
    """Make a new recovery key and print it, once."""
    with keystore.changed(arguments.account) as ring:
        _, keys = ring.opened(ask("password"))
        key = ring.new_recovery_key(keys)
    print(f"{arguments.account}: the recovery key, which is kept nowhere and ends any before it:\n{key}")
    return 0


def escrow(arguments: argparse.Namespace) -> int:
    """Print the account's private keys as they are sealed to the operator's recipients."""
    ring = keystore.read(arguments.account)
    if not ring.escrow:
        raise Refused(f"{arguments.account} has nothing in escrow: mail_crypt_escrow was none when its keys were made")
    print(ring.escrow, end="")
    return 0


def rotate(arguments: argparse.Namespace) -> int:
    """Make a new pair of keys for the mail to come."""
    wanted = keystore.read_settings()
    with keystore.changed(arguments.account) as ring:
        if len(ring.pairs) >= wanted.pairs_max:
            raise Refused(f"{arguments.account} has {len(ring.pairs)} pairs of keys, as many as Dovecot is told of")
        ring.recipients = wanted.recipients
        key, ended = ring.rotate(ask("password"))
    print(f"{arguments.account}: new mail is for the key {ring.pairs[0].identity}; the password opens old mail as before")
    for name in ended:
        print(f"the app password {name} has ended, because nobody has typed it in; make it anew")
    print(f"the recovery key, which is kept nowhere and ends any before it:\n{key}")
    return 0


def rename(arguments: argparse.Namespace) -> int:
    """Give an account's keys and mail another name."""
    wanted, old, new = keystore.read_settings(), arguments.account, arguments.to
    homes = [wanted.mail_root / place_of(account) for account in (old, new)]
    with sealing_alone(wanted), keystore.alone():
        ring = keystore.read(old)
        taken = keystore.file_of(new).exists() and keystore.read(new).pairs != ring.pairs
        if taken or (homes[1].exists() and homes[0].exists()):
            raise Refused(f"{new} has keys or mail of its own; nothing was changed")
        credential, _ = ring.opened(password := ask("password"))
        if credential.name != OWN:
            raise Refused(f"that is the app password {credential.name}; only the account's own can do this")
        ring.renamed(new, password).write(keystore.place_for(new))
        if homes[0].exists():
            owner = homes[0].stat()
            homes[1].parent.mkdir(mode=0o700, exist_ok=True)
            os.chown(homes[1].parent, owner.st_uid, owner.st_gid)
            homes[0].rename(homes[1])
        keystore.file_of(old).unlink()
        keystore.show()
    print(f"{new}: has the keys and the mail of {old}, whose app passwords have ended; now deploy mail_accounts_users with the new name")
    return 0


def add_app_password(arguments: argparse.Namespace) -> int:
    """Make an app password and print it, once."""
    wanted = keystore.read_settings()
    if not arguments.name or not NAME_LETTERS.issuperset(arguments.name) or arguments.name == OWN:
        raise Refused(f"{arguments.name!r}: a name has a-z, 0-9, - and _, and is not {OWN}")
    with keystore.changed(arguments.account) as ring:
        names = keystore.app_passwords(ring)
        if arguments.name in names:
            raise Refused(f"{arguments.account} has an app password {arguments.name}; revoke it first")
        if len(names) >= wanted.app_passwords_max:
            raise Refused(f"{arguments.account} has {len(names)} app passwords, as many as mail_crypt_app_passwords_max allows")
        _, keys = ring.opened(ask("password"))
        password = "".join(secrets.choice(APP_LETTERS) for _ in range(APP_LENGTH))
        ring.put(Credential(
            arguments.name, hash_of(password, wanted), int(time.time()), {}, arguments.network, arguments.protocol,
        ), keys, password)
    print(f"{arguments.account}: the app password {arguments.name}, which is kept nowhere:\n{password}")
    return 0


def revoke_app_password(arguments: argparse.Namespace) -> int:
    """End an app password."""
    with keystore.changed(arguments.account) as ring:
        try:
            ring.revoke(arguments.name)
        except KeyError:
            names = ", ".join(keystore.app_passwords(ring)) or "none"
            raise Refused(f"{arguments.account} has no app password {arguments.name}; there are: {names}") from None
    print(f"{arguments.account}: {arguments.name} is revoked; sessions that are open stay open")
    return 0


def discard(arguments: argparse.Namespace) -> int:
    """Destroy the account's keys, and with them its mail, in all backups that have no older keyring."""
    account = arguments.account
    if arguments.confirm != account:
        raise Refused(f"{arguments.confirm!r} is not the name of the account whose mail would be lost, {account}")
    with one_run() as run:
        held = [hold["name"] for hold in run.holds_of(account)]
        if held:
            raise Refused(f"{account} is held by {', '.join(held)}; lift the hold first (mail_retention_holds)")
        if not keystore.remove(account):
            raise Refused(f"{account} has no keys")
        run.ledger.append([{"kind": "keys", "action": "discarded", "account": account}], run.now)
    print(f"{account}: the keys are destroyed; mail for it is deferred, and nobody can log in")
    return 0


def seal(arguments: argparse.Namespace) -> int:
    """Encrypt the mail that was there before the keys."""
    wanted = keystore.read_settings()
    there = keystore.accounts()
    names = there if arguments.all else arguments.account
    if unknown := sorted(set(names) - set(there)):
        raise Refused(f"without keys: {', '.join(unknown)}; `letterlock keys make` makes them")
    failed = 0
    with sealing_alone(wanted):
        for number, account in enumerate(names, 1):
            try:
                ring = keystore.read(account)
                key = session_key.settings_for(ring, ask("password"), wanted.series) if arguments.password else ""
                count = sealing.Account(ring, wanted, say, key=key).run()
            except (Failed, Refused, OSError) as fault:
                failed += 1
                print(f"FAILED {account}: {fault}", file=sys.stderr, flush=True)
            else:
                say(f"{account}: all {count} messages are encrypted ({number} of {len(names)} accounts)")
    return int(bool(failed))


def unseal(arguments: argparse.Namespace) -> int:
    """Bring an account's mail into the clear."""
    wanted, account = keystore.read_settings(), arguments.account
    ring = keystore.read(account)
    key = session_key.settings_for(ring, ask("password"), wanted.series)
    with sealing_alone(wanted):
        count = sealing.Account(ring, wanted, say, key=key, clear=True).run()
    print(f"{account}: all {count} messages are in clear; now deploy mail_crypt_accounts without it")
    return 0


def audit(arguments: argparse.Namespace) -> int:
    """Look for what of a message lies in clear on this host."""
    wanted = keystore.read_settings()
    ring, password = keystore.read(arguments.account), ask("password")
    if ring.state != SEALED:
        raise Refused(f"the mail of {arguments.account} is not encrypted")
    ring.opened(password)
    made = leak_audit.Audit(arguments.account, password, wanted, say)
    found = made.run(functools.partial(newest_backup, wanted.mail_root / place_of(arguments.account)) if arguments.backup else None)
    for hit in found:
        print(hit.line())
    print(f"{arguments.account}: {len(found)} places in {made.files} files that changed, and in the journal, hold something of the message")
    return int(bool(found))


def newest_backup(home: Path, target: Path) -> None:
    """Make a backup, and bring what it holds of *home*, and beside the mail, to *target*; raise Failed or Fault."""
    done = subprocess.run(["letterlock", "backup", "run"], env=LETTERLOCK, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"letterlock backup run: {done.stderr.strip()}")
    engine = restic.Restic(say)
    made = restore.choose(engine.snapshots(), backup.read_settings().host, "latest")
    links.restore(engine, made["id"], target, (home, backup.STAGE))


@contextlib.contextmanager
def sealing_alone(wanted: keystore.KeySettings) -> Iterator[None]:
    """Have the stores of all accounts: neither a backup nor a retention's run may look at them meanwhile."""
    with locks.only_one(wanted.mail_root / sealing.ASIDE / "lock"), locks.only_one(locks.BACKUP), locks.only_one(locks.RETENTION):
        yield


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, flush=True)


def show(_arguments: argparse.Namespace) -> int:
    """Write what Dovecot reads anew, from the keyrings."""
    with keystore.alone():
        keystore.show()
    return 0


def day(seconds: int) -> str:
    """Return a time's date."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def described(account: str, wanted: keystore.KeySettings, *, count: bool) -> dict:
    """Return what `status` says of *account*, with a *count* of its messages where that is asked for."""
    try:
        ring = keystore.read(account)
    except Refused as refused:
        return {"account": account, "fault": str(refused)}
    return {
        "account": account,
        "keys": [{"identity": pair.identity, "curve": pair.curve, "made": day(pair.made)} for pair in ring.pairs],
        "passwords": [
            {"name": each.name, "wrapped": day(each.made), "networks": each.networks, "protocols": each.protocols}
            for each in ring.credentials
        ],
        "recovery": bool(ring.pairs[0].recovery), "escrow": ring.recipients if ring.escrow else [],
        "state": ring.state,
        **(dict(zip(("sealed", "clear"), sealing.counts(keystore.store_of(account, wanted)), strict=True)) if count else {}),
    }


def status(arguments: argparse.Namespace) -> int:
    """Say which keys there are, what opens them, and who lacks them."""
    wanted = keystore.read_settings()
    names = [arguments.account] if arguments.account else sorted({*wanted.accounts, *keystore.accounts()})
    found = [described(account, wanted, count=arguments.count) for account in names]
    if arguments.json:
        print(json.dumps(found, indent=2))
    for each in [] if arguments.json else found:
        if "fault" in each:
            print(f"{each['account']}: NO KEYS: {each['fault']}")
            continue
        keys = ", ".join(f"{key['identity']} ({key['curve']}, {key['made']})" for key in each["keys"])
        passwords = ", ".join(
            f"{one['name']} ({' '.join([one['wrapped'], *one['protocols'], *one['networks']])})" for one in each["passwords"]
        )
        others = [text for text, there in (("recovery key", each["recovery"]), ("escrow", each["escrow"])) if there]
        also = " and ".join(others) or "neither recovery key nor escrow"
        print(f"{each['account']}: {STATES[each['state']]}keys {keys}; passwords {passwords}; {also}"
              + (f"; {each['sealed']} messages encrypted, {each['clear']} in clear" if arguments.count else ""))
    return int(any("fault" in each for each in found))


def add_to(area: argparse._SubParsersAction, command: Callable) -> None:
    """Add the commands to the command line."""
    made = command(area, "make", make, "Make an account's keys, and its password.")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("account", nargs="?")
    which.add_argument("--initial", action="store_true", help="of all in the JSON on standard input that have none; a deployment does this")
    for name, action, text in (
        ("password", change_password, "Change the password, by the one that it has."),
        ("recovery", recovery, "Make a new recovery key and print it, once."),
        ("escrow", escrow, "Print the private keys, sealed to the operator's recipients."),
        ("rotate", rotate, "Make a new pair of keys for the mail to come; old mail stays readable."),
    ):
        command(area, name, action, text).add_argument("account")
    made = command(area, "rename", rename, "Give an account's keys and mail another name, before it is deployed.")
    made.add_argument("account")
    made.add_argument("to")
    made = command(area, "reset", reset, "Set the password without the old one.")
    made.add_argument("account")
    by = made.add_mutually_exclusive_group(required=True)
    by.add_argument("--recovery", action="store_true", help="by the recovery key; asks for it, then for the new password")
    by.add_argument("--escrow", action="store_true", help="by what the escrow's holder opened, on standard input after the new password")
    made = command(area, "app-password", add_app_password, "Make an app password and print it, once.")
    made.add_argument("account")
    made.add_argument("name")
    made.add_argument("--network", action="append", default=[], metavar="CIDR", help="from where it may be used; anywhere by default")
    made.add_argument("--protocol", action="append", default=[], choices=keystore.PROTOCOLS, help="by which protocol; all by default")
    made = command(area, "revoke", revoke_app_password, "End an app password.")
    made.add_argument("account")
    made.add_argument("name")
    made = command(area, "discard", discard, "Destroy the keys: the mail can never be read again.")
    made.add_argument("account")
    made.add_argument("--confirm", required=True, metavar="ACCOUNT", help="the account's name once more")
    command(area, "show", show, "Write what Dovecot reads anew, from the keyrings.")
    made = command(area, "status", status, "Say which keys there are, what opens them, and who lacks them.")
    made.add_argument("account", nargs="?")
    made.add_argument("--json", action="store_true")
    made.add_argument("--count", action="store_true", help="how many messages are encrypted, too; looks into each file")
    made = command(area, "seal", seal, "Encrypt the mail that was there before the keys; can be interrupted and run again.")
    made.add_argument("account", nargs="*")
    made.add_argument("--all", action="store_true", help="of all accounts that have keys")
    made.add_argument("--password", action="store_true", help="ask for the password, where some of the mail is encrypted already")
    command(area, "unseal", unseal, "Bring an account's mail into the clear.").add_argument("account")


def add_audit_to(top: argparse._SubParsersAction, command: Callable) -> None:
    """Add `letterlock leak-audit`."""
    made = command(top, "leak-audit", audit, "Send a message through all of this host, and look for what of it lies in clear.")
    made.add_argument("account", help="an account whose password you know; it gets the message, and loses it again")
    made.add_argument("--backup", action="store_true", help="make a backup meanwhile, and look into that, too")
