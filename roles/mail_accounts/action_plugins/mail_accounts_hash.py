"""Turn the inventory's passwords into ARGON2ID hashes, on the controller.

A hash that the host already has is kept while it verifies the password and
costs what the inventory asks for, so that a second run changes nothing. Salts
stay random: a salt that is derived from the password would give it away.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import argon2
from ansible.plugins.action import ActionBase

SCHEME = "{ARGON2ID}"


def read_passdb(text: str | None) -> dict[str, str]:
    """Return {account: hash} of a passwd-file."""
    rows = (line.split(":") for line in (text or "").splitlines() if ":" in line)
    return {fields[0]: fields[1] for fields in rows}


def hash_for(user: dict, live: str | None, hasher: argon2.PasswordHasher) -> str:
    """Return the hash of *user*, the *live* one where it still serves."""
    if user.get("password_hash"):
        return user["password_hash"]
    if live and live.startswith(SCHEME):
        bare = live.removeprefix(SCHEME)
        try:
            if hasher.verify(bare, user["password"]) and not hasher.check_needs_rehash(bare):
                return live
        except argon2.exceptions.VerificationError:
            pass
        except argon2.exceptions.InvalidHashError:
            pass
    return SCHEME + hasher.hash(user["password"])


class ActionModule(ActionBase):
    """`mail_accounts_hash`: costs no round trip; argon2 leaves the interpreter lock, so threads use all cores."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        """Return `passdb` and `userdb`: what each file has to hold."""
        result = super().run(tmp, task_vars)
        args = self._task.args
        live = read_passdb(args["live_passdb"])
        hasher = argon2.PasswordHasher(
            time_cost=int(args["iterations"]), memory_cost=int(args["memory"]), parallelism=int(args["lanes"])
        )
        users = sorted(args["users"], key=lambda user: user["name"])
        enabled = [user for user in users if user.get("state", "present") == "present" and user["name"] not in args["elsewhere"]]
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(lambda user: hash_for(user, live.get(user["name"]), hasher), enabled))
        result.update(
            passdb=[{"name": user["name"], "hash": value} for user, value in zip(enabled, hashes, strict=True)],
            userdb=[{"name": user["name"], "quota": user.get("quota") or ""} for user in users],
        )
        return result
