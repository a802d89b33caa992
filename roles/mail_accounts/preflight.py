"""Faults of domains, names and hashes."""

from __future__ import annotations

import re

DOMAIN = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What names a directory and a line of a passwd-file safely.
LOCAL_PART = re.compile(r"[a-z0-9]([a-z0-9._+-]{0,62}[a-z0-9_+-])?")
ARGON2ID = re.compile(r"\{ARGON2ID\}\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
SIZE = re.compile(r"\d+[BKMGT]?")
# auth's own limit; a hash over it never verifies, without a word in the log.
MAXIMUM_MEMORY_KIB = 196608


def name_faults(user: dict, domains: list[str]) -> list[str]:
    """Return what is wrong with the account's name."""
    name = user["name"]
    local, at, domain = name.rpartition("@")
    label = f"mail_accounts_users: {name!r}"
    if not at:
        return [f"{label}: give the full address, as in ada@example.org"]
    found = []
    if not LOCAL_PART.fullmatch(local) or ".." in local:
        found.append(f"{label}: the part before @ may have a-z, 0-9 and . _ + - inside, in lower case, and nothing else")
    if not DOMAIN.fullmatch(domain):
        found.append(f"{label}: {domain!r} is not a domain name")
    elif domain not in domains:
        found.append(f"{label}: {domain} is not in mail_accounts_domains")
    return found


def hash_faults(user: dict, minimum_memory: int) -> list[str]:
    """Return what is wrong with the account's hash."""
    label = f"mail_accounts_users: {user['name']!r}: password_hash"
    value = user["password_hash"]
    found = ARGON2ID.fullmatch(value)
    if not found:
        scheme = re.match(r"\{[A-Za-z0-9.-]+\}", value)
        which = f"has the scheme {scheme.group()}" if scheme else "has no known scheme"
        return [f"{label}: {which}; only {{ARGON2ID}} is taken (doveadm pw -s ARGON2ID makes one)"]
    memory = int(found.group(1))
    if memory < minimum_memory:
        return [f"{label}: made with {memory} KiB; mail_accounts_argon2id_memory_minimum asks for {minimum_memory}"]
    if memory > MAXIMUM_MEMORY_KIB:
        return [f"{label}: made with {memory} KiB, which Dovecot's auth process can't verify; {MAXIMUM_MEMORY_KIB} at most"]
    return []


def erasures(variables: dict, host: dict) -> list[str]:
    """Return the accounts whose mail this run would delete: those that say so and have any."""
    paths = {path for found in host["globs"].values() for path in found}
    names = [user["name"] for user in variables.get("mail_accounts_users", []) if user.get("delete_mail")]
    return [name for name in names if "{1}/{0}".format(*name.rsplit("@", 1)) in {"/".join(path.split("/")[-2:]) for path in paths}]


def faults(variables: dict, host: dict) -> list[str]:
    """Return the role's faults; *host* is what mail_host read."""
    domains = variables.get("mail_accounts_domains", [])
    users = variables.get("mail_accounts_users", [])
    found = [
        f"mail_accounts_domains: {domain!r} is not a domain name in lower case"
        for domain in domains if not DOMAIN.fullmatch(domain)
    ]
    erased, most = erasures(variables, host), variables["mail_accounts_erase_max"]
    if len(erased) > most:
        found.append(
            f"mail_accounts_erase_max: {len(erased)} accounts' mail would be deleted, {most} at most: {', '.join(erased)}; "
            "raise it for this run if that is what you mean"
        )
    seen = set()
    for user in users:
        name = user["name"]
        found += name_faults(user, domains)
        if name in seen:
            found.append(f"mail_accounts_users: {name!r} stands there twice")
        seen.add(name)
        if user.get("password_hash"):
            found += hash_faults(user, variables["mail_accounts_argon2id_memory_minimum"])
        if user.get("state") == "present" and bool(user.get("password")) == bool(user.get("password_hash")):
            found.append(f"mail_accounts_users: {name!r}: give either password or password_hash")
        if user.get("quota") and not SIZE.fullmatch(user["quota"]):
            found.append(f"mail_accounts_users: {name!r}: quota {user['quota']!r} is not a size such as 500M or 5G")
        if user.get("delete_mail") and user.get("state") != "absent":
            found.append(f"mail_accounts_users: {name!r}: delete_mail goes with state absent")
    return found
