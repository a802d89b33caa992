"""Faults of encryption at rest, above all a forgotten password that nobody has thought of."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mail_tools" / "files"))

from letterlock import age  # found on the path that the line above adds

NONE = "none"
MOST_APP_PASSWORDS = 20
BEGUN = "/var/lib/letterlock/keys/begun.passdb"
RINGS = "/var/lib/letterlock/keys/accounts/"


def escrow_faults(escrow: list[str]) -> list[str]:
    """Return what is wrong with what was chosen for forgotten passwords."""
    if not escrow:
        return [(
            "mail_crypt_escrow: say who can open the keys when a password is forgotten: an age recipient whose identity is kept off "
            "the host (age-keygen makes both), or none: a forgotten password loses the mail"
        )]
    if escrow == [NONE]:
        return []
    if NONE in escrow:
        return ["mail_crypt_escrow: holds none and a recipient; choose"]
    return age.recipient_faults("mail_crypt_escrow", escrow)


def have_keys(host: dict) -> set[str]:
    """Return the accounts that have keys on the *host*."""
    files = [Path(path) for found in host.get("globs", {}).values() for path in found if path.startswith(RINGS)]
    return {f"{file.stem}@{file.parent.name}" for file in files}


def begun_of(text: str) -> list[list[str]]:
    """Return [account, hash of the password that its keys were made with, state] of each line of *text*."""
    return [line.split(":") for line in text.splitlines()]


def password_faults(users: list[dict], begun: str) -> list[str]:
    """Return whose password in the inventory is no longer the one that the keys were made with; *begun* has the hashes of those."""
    hashes = {account: hash_of for account, hash_of, _ in begun_of(begun)}

    def is_another(user: dict) -> bool:
        try:
            return not argon2.PasswordHasher().verify(hashes[user["name"]].removeprefix("{ARGON2ID}"), user["password"])
        except argon2.exceptions.Argon2Error:
            return True

    known = [user for user in users if user.get("password") and user["name"] in hashes]
    with ThreadPoolExecutor() as pool:
        another = pool.map(is_another, known)
    return [
        f"mail_accounts_users: {user['name']!r}: the password is another than its keys were made with, which only the old one opens; "
        f"change it by `letterlock keys password {user['name']}` on the host, and leave the first one here"
        for user, differs in zip(known, another, strict=True) if differs
    ]


def faults(variables: dict, host: dict) -> list[str]:
    """Return the role's faults; *host* is what mail_host read."""
    wanted = variables["mail_crypt_accounts"]
    may_log_in = {user["name"] for user in variables.get("mail_accounts_users", []) if user.get("state", "present") == "present"}
    sealed = (may_log_in if "*" in wanted else may_log_in & set(wanted)) if variables["mail_crypt_enabled"] else set()
    begun = host.get("files", {}).get(BEGUN) or ""
    in_clear = {account for account, _, state in begun_of(begun) if state == "clear"}
    found = [
        f"mail_crypt_accounts: {name} has encrypted mail, which nobody could read any more; `letterlock keys unseal {name}` comes first"
        for name in sorted((have_keys(host) & may_log_in) - sealed - in_clear)
    ]
    if not variables["mail_crypt_enabled"]:
        return found
    found += escrow_faults(variables["mail_crypt_escrow"])
    users = [user for user in variables.get("mail_accounts_users", []) if user["name"] in sealed]
    found += password_faults(users, begun)
    known = {user["name"] for user in variables.get("mail_accounts_users", [])}
    found += [f"mail_crypt_accounts: {name} is not in mail_accounts_users" for name in wanted if name != "*" and name not in known]
    if not 0 <= variables["mail_crypt_app_passwords_max"] <= MOST_APP_PASSWORDS:
        found.append(f"mail_crypt_app_passwords_max: {variables['mail_crypt_app_passwords_max']} is not from 0 to {MOST_APP_PASSWORDS}")
    found += [
        f"dovecot_settings: {setting['name']} = {setting.get('value', '')}: a full-text index would hold every encrypted word"
        for setting in variables.get("dovecot_settings", []) if "fts" in f"{setting['name']} {setting.get('value', '')}".lower()
    ]
    return found
