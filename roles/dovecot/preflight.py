"""Faults that cross the role's variables, and settings that would break a promise of the kit."""

from __future__ import annotations

import ipaddress
import re

SIZE = re.compile(r"\d+[BKMGT]?")
TIME = re.compile(r"\d+(ms|s|secs?|m|mins?)?")

MAXIMUM_ZSTD_LEVEL = 19
# What the unit's sandbox hides: ProtectHome, PrivateTmp, PrivateDevices and the kernel's own trees.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev", "/proc", "/sys")  # noqa: S108  # refused, not used

# Settings that dovecot_settings may not touch: setting -> why.
PROMISES = {
    "ssl": "mail crosses the network only under TLS",
    "ssl_min_protocol": "dovecot_tls_profile says it",
    "ssl_cipher_list": "dovecot_tls_profile says it",
    "ssl_cipher_suites": "dovecot_tls_profile says it",
    "disable_plaintext_auth": "no password crosses the network in clear",
    "auth_allow_cleartext": "no password crosses the network in clear",
    "auth_debug_passwords": "the journal never shows a password",
    "auth_verbose_passwords": "the journal never shows a password",
    "auth_allow_weak_schemes": "passwords are ARGON2ID only",
    "mail_fsync": "what got a 250 is on the disk",
    "protocols": "dovecot_protocols says it",
    "listen": "dovecot_listen says it",
    "mail_location": "dovecot_mail_format says it",
    "mail_driver": "dovecot_mail_format says it",
    "rawlog_dir": "message content stays out of logs",
}


def settings_faults(settings: list[dict]) -> list[str]:
    """Return what is wrong with dovecot_settings."""
    found = []
    for setting in settings:
        name = setting["name"]
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_:/ .-]*", name):
            found.append(f"dovecot_settings: {name!r} is not a setting's name")
        if name in PROMISES:
            found.append(f"dovecot_settings: {name} may not be set here: {PROMISES[name]}")
        # A variable such as %{user} may stand there; any other brace would open or close a section.
        text = re.sub(r"%\{[^{}\n]*\}", "", f"{setting['value']}{setting.get('section') or ''}")
        if re.search(r"[\x00-\x1f\x7f{}]", text):
            found.append(f"dovecot_settings: {name}: control characters and braces can't stand in a value or section")
        if "inet_listener" in (setting.get("section") or ""):
            found.append(f"dovecot_settings: {name}: listeners come from dovecot_protocols and dovecot_lmtp_port")
    return found


def lmtp_faults(variables: dict) -> list[str]:
    """Return what is wrong with LMTP over TCP."""
    port = variables["dovecot_lmtp_port"]
    found = []
    if not 0 <= port <= 65535:
        found.append(f"dovecot_lmtp_port: {port} is not a port")
    if port in (110, 143, 993, 995):
        found.append(f"dovecot_lmtp_port: {port} belongs to another protocol; 24 is LMTP's")
    if port and not variables["dovecot_lmtp_networks"]:
        found.append("dovecot_lmtp_networks: empty while dovecot_lmtp_port is set; name the networks that may deliver")
    for network in variables["dovecot_lmtp_networks"]:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            found.append(f"dovecot_lmtp_networks: {error}")
    return found


def address_faults(variables: dict, name: str) -> list[str]:
    """Return the addresses in variable *name* that are none."""
    found = [] if variables[name] else [f"{name}: empty; name an address, or '*' and '::' for all"]
    for address in variables[name]:
        if address not in ("*", "::"):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                found.append(f"{name}: {address!r} is not an IP address; '*' and '::' are all of them")
    return found


def form_faults(variables: dict) -> list[str]:
    """Return values that are not of the form that Dovecot and systemd take."""
    found = [
        f"{name}: {variables[name]!r} is not a size such as 500M or 5G"
        for name in ("dovecot_quota", "dovecot_message_size_max") if not SIZE.fullmatch(variables[name])
    ]
    found += [
        f"{name}: must be at least 1"
        for name in ("dovecot_sessions_max", "dovecot_sessions_per_account_and_address", "dovecot_process_memory_max")
        if variables[name] < 1
    ]
    found += [
        f"dovecot_mailboxes: {mailbox['name']!r} is not a folder's name"
        for mailbox in variables["dovecot_mailboxes"] if re.search(r"[\x00-\x1f\x7f*%]|^/|//|/$|^$", mailbox["name"])
    ]
    delay = variables["dovecot_auth_failure_delay"]
    if not TIME.fullmatch(delay):
        found.append(f"dovecot_auth_failure_delay: {delay!r} is not a time such as 2s")
    elif not int(re.match(r"\d+", delay).group()):
        found.append("dovecot_auth_failure_delay: 0 lets passwords be guessed at full speed; 2s is the default")
    if not 0 <= variables["dovecot_mail_compression_level"] <= MAXIMUM_ZSTD_LEVEL:
        found.append(f"dovecot_mail_compression_level: zstd has levels 1 to {MAXIMUM_ZSTD_LEVEL}; 0 is off")
    return found


def storage_faults(variables: dict, host: dict) -> list[str]:
    """Return why mail can't lie where, or belong to whom, the variables say."""
    found = []
    root, user, wanted = variables["dovecot_mail_root"], variables["dovecot_mail_user"], variables["dovecot_mail_uid"]
    if not re.fullmatch(r"/[A-Za-z0-9._/-]*[A-Za-z0-9]", root) or ".." in root:
        found.append(f"dovecot_mail_root: {root!r} is not a plain absolute path")
    if root.startswith(HIDDEN):
        found.append(f"dovecot_mail_root: {root} is hidden from the sandboxed service; /srv/mail is the default")
    uid = host["users"].get(user)
    if uid is not None and uid != wanted:
        found.append(
            f"dovecot_mail_uid: {wanted}, but the host's {user} has {uid}; "
            f"set dovecot_mail_uid to {uid}, or change the user and its files first"
        )
    return found


def faults(variables: dict, host: dict) -> list[str]:
    """Return the role's faults; *host* is what mail_host read."""
    found = []
    if not variables["dovecot_protocols"]:
        found.append("dovecot_protocols: empty; choose imap, pop3 or both")
    if len(set(variables["dovecot_protocols"])) != len(variables["dovecot_protocols"]):
        found.append("dovecot_protocols: a protocol stands there twice")
    found += form_faults(variables) + storage_faults(variables, host)
    found += address_faults(variables, "dovecot_listen") + address_faults(variables, "dovecot_lmtp_listen")
    return found + lmtp_faults(variables) + settings_faults(variables["dovecot_settings"])
