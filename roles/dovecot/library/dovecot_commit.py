#!/usr/bin/python
"""Change a running Dovecot in one transaction: stage, validate, swap, reload, probe, or roll back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dovecot_commit
short_description: Change a running Dovecot in one transaction
description:
  - Stages a whole release beside the live one, lets the host's own Dovecot validate it, points one symbolic link at
    it, reloads or restarts, and probes what users use. When the probe fails the earlier release serves again before
    the task fails.
  - The link C(current) is the only thing that changes hands, so a host that loses power at any moment has one whole
    configuration. The file C(pending) marks a swap that no probe has proven yet; the next run finishes it.
options:
  series: {description: The dialect, type: str, choices: ["2.3", "2.4"], required: true}
  root: {description: Directory that holds releases and the link to the live one, type: path, required: true}
  entries: {description: Paths beside the release that belong to it; see host_tree, type: list, elements: dict}
  units: {description: Directory of systemd's units. A release's own units are linked there, and its timers and paths run, type: path}
  links: {description: Links into the live release by path; a target that the release lacks removes its link, type: dict}
  user: {description: The system user that owns the mail; sysusers.d makes it, type: str}
  certificate: {description: Name of the release's file with the certificate that clients must be shown, type: str}
  key: {description: Its key, type: path}
  probes: {description: What clients use (protocol, address, port), type: list, elements: dict}
  probe_dir: {description: Directory on tmpfs for the probe's account, type: path}
  probe_user: {description: Its name, type: str}
  probe_login: {description: Whether to log in, type: bool}
  passdb: {description: Name of the release's file of accounts, whose lost accounts lose their sessions, type: str}
  prune: {description: Directory whose children go when no kept release names them, type: path}
  keep: {description: How many earlier releases stay, type: int}
author: [Letterlock]
"""

RETURN = r"""
release: {description: The name of the release that serves, type: str, returned: always}
action: {description: "What was done to the service: none, reload or restart", type: str, returned: success}
kicked: {description: Accounts whose sessions were ended, type: list, returned: success}
"""

import base64
import difflib
import fcntl
import glob
import grp
import hashlib
import imaplib
import json
import os
import poplib
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import time

from ansible.module_utils import letterlock_files as files
from ansible.module_utils.basic import AnsibleModule

UNIT = "dovecot.service"
CONFIG = "dovecot.conf"
PROBES = "probes.json"
USERDB = "accounts.userdb"
GROUP = "dovecot"
SECRET_SUFFIXES = (".passdb", ".secret")
# systemd warns of drop-ins that it alone may read; the directory keeps others out anyway.
UNIT_SUFFIXES = (".service.conf", ".service", ".timer", ".path", ".socket")
# A unit that is not started by another, and what starts it at boot.
WANTED_BY = {".timer": "timers.target.wants", ".path": "paths.target.wants", ".socket": "sockets.target.wants"}
# A service that says by whom it is wanted runs all the time, as these do.
RUNS = re.compile(r"^WantedBy=multi-user\.target$", re.MULTILINE)
# What has to be up for the probe.
BEFORE_PROBE = (".socket", ".service")
MODULES = "/usr/lib/dovecot/modules"
PROBE_SECONDS = 8.0
AUTH_LOOKS_SECONDS = 1.1
RELOAD_SETTLE_SECONDS = 1.0
MAX_FAULTS = 20


class Refused(Exception):
    """The staged release is not valid; the message lists every fault."""


class ProbeFailed(Exception):
    """The service does not do what users need of it."""


def run(*command: str, check: bool = True, timeout: float = 90) -> subprocess.CompletedProcess:
    """Run *command* with output captured; raise Fault when it fails and *check* is set."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise files.Fault(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done


# ---- the release on disk ----------------------------------------------------


def release_id(tree: dict[str, str]) -> str:
    """Return a short name for what is in *tree*."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def entry_for(directory: str, name: str, content: str, group: str) -> dict:
    """Describe one file of a release as host_tree does."""
    return {
        "path": os.path.join(directory, name), "state": "file", "content": content, "owner": "root", "group": group,
        "mode": "0644" if name.endswith(UNIT_SUFFIXES) else "0640", "secret": name.endswith(SECRET_SUFFIXES),
    }


def dovecot_group() -> str:
    """Return the group that may read a release: dovecot's, or root's before it is installed."""
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        return "root"
    return GROUP


def read_release(directory: str | None) -> dict[str, str]:
    """Return {name: content} of the release in *directory*."""
    if not directory or not os.path.isdir(directory):
        return {}
    found = {}
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as stream:
            found[name] = stream.read()
    return found


def write_release(directory: str, tree: dict[str, str]) -> None:
    """Write *tree* into the new *directory*, durably."""
    group = dovecot_group()
    os.mkdir(directory, 0o750)
    os.chown(directory, 0, grp.getgrnam(group).gr_gid)
    os.chmod(directory, 0o750)  # noqa: S103  # the group is Dovecot's, whose processes read the accounts
    for name, content in tree.items():
        files.write_file(entry_for(directory, name, content, group))


def close_release(directory: str) -> None:
    """Give the files of a kept release the modes that they were made with, should somebody have opened them by hand."""
    for name in os.listdir(directory):
        entry = entry_for(directory, name, "", GROUP)
        os.chmod(entry["path"], int(entry["mode"], 8))


def release_diffs(directory: str | None, tree: dict[str, str]) -> list[dict]:
    """Return the diffs between the release in *directory* and *tree*."""
    live = read_release(directory)
    base = directory or "(none)"
    diffs = []
    for name in sorted(set(live) | set(tree)):
        wanted = {"path": os.path.join(base, name), "state": "file" if name in tree else "absent"}
        if name in tree:
            wanted = entry_for(base, name, tree[name], dovecot_group())
        found = files.read_state(wanted["path"]) if directory else {"state": "absent"}
        if name not in tree and wanted["path"].endswith(SECRET_SUFFIXES):
            found = {**found, "content": b""}
        diff = files.difference(wanted, found, strict=False)
        if diff:
            diffs.append(diff)
    return diffs


# ---- validation -------------------------------------------------------------


def source_of(line: int, sources: list[list]) -> str:
    """Return the template that line *line* of dovecot.conf comes from."""
    named = [source for first, source in sources if first <= line]
    return named[-1] if named else "dovecot.conf"


def explain(message: str, line: int, text: str, sources: list[list], names: list[str]) -> str:
    """Turn doveconf's message into one that names the variable and the fix."""
    source = source_of(line, sources)
    where = "dovecot_settings" if "zz-settings" in source else source
    unknown = re.search(r"Unknown setting: (\S+)", message)
    hint = ""
    if unknown:
        close = difflib.get_close_matches(unknown.group(1).rsplit("/", 1)[-1], names, n=1, cutoff=0.7)
        hint = f"; did you mean {close[0]}?" if close else "; this Dovecot has no such setting"
    shown = f" (line {line}: {text.strip()})" if text.strip() else ""
    return f"{where}: {message}{hint}{shown}"


def doveconf_faults(directory: str, sources: list[list]) -> list[str]:
    """Return all that doveconf refuses in the staged release.

    doveconf stops at the first fault, so the faulty line is blanked in a copy and
    the rest is asked again, MAX_FAULTS times at most.
    """
    path = os.path.join(directory, CONFIG)
    with open(path, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    faults: list[str] = []
    names: list[str] = []
    copy = os.path.join(directory, f".{CONFIG}.faults")
    try:
        while len(faults) < MAX_FAULTS:
            done = run("doveconf", "-n", "-c", copy if faults else path, check=False)
            if done.returncode == 0:
                break
            errors = done.stderr.strip().splitlines() or ["doveconf gave no reason"]
            fatal = next((text for text in errors if "Fatal" in text or "Error" in text), errors[-1])
            message = re.sub(r"^doveconf: (Fatal|Error): (Error in configuration file \S+( line \d+)?: )?", "", fatal)
            at = re.search(r"line (\d+):", fatal)
            if not names:
                shown = run("doveconf", "-a", check=False).stdout
                names = sorted(set(re.findall(r"^\s*([a-z0-9_]+) =", shown, re.MULTILINE)))
            line = int(at.group(1)) if at else 0
            text = lines[line - 1] if line else ""
            faults.append(explain(message.replace(f"{directory}/", ""), line, text, sources, names))
            if not line or not lines[line - 1].strip() or "{" in lines[line - 1]:
                break
            lines[line - 1] = ""
            with open(copy, "w", encoding="utf-8") as stream:
                stream.write("\n".join(lines) + "\n")
    finally:
        if os.path.exists(copy):
            os.unlink(copy)
    return faults


def variable_faults(directory: str, series: str) -> list[str]:
    """Return 2.3 variables in a 2.4 configuration, which 2.4 takes literally and without a word."""
    if series == "2.3":
        return []
    faults = []
    with open(os.path.join(directory, CONFIG), encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            found = re.search(r"(?<!%)%[A-Za-z]", line.split("#")[0])
            if found:
                faults.append(f"line {number}: {found.group()} is Dovecot 2.3's; 2.4 would take it literally: {line.strip()}")
    return faults


def plugin_faults(directory: str, protocols: list[str]) -> list[str]:
    """Return plugins that are not installed, which doveconf doesn't notice."""
    faults = set()
    for protocol in [*protocols, "lmtp"]:
        done = run(
            "doveconf", "-c", os.path.join(directory, CONFIG), "-f", f"protocol={protocol}", "-h", "mail_plugins", check=False
        )
        # 2.3 prints "quota zlib", 2.4 a list of "quota = yes".
        for plugin in re.findall(r"(\w+)(?: = yes)?(?:\s|$)", re.sub(r"\w+ = no\b", "", done.stdout)):
            pattern = f"{MODULES}/lib*{plugin}_plugin.so"
            names = (re.sub(r"^lib(\d\d_)?", "", os.path.basename(path)) for path in glob.glob(pattern))
            if f"{plugin}_plugin.so" not in names:
                faults.add(f"mail_plugins: no plugin {plugin!r} is installed")
    return sorted(faults)


def timer_faults(directory: str) -> list[str]:
    """Return the moments in the release's timers that systemd doesn't understand, which would keep them from starting."""
    moments = [
        (name, moment)
        for name, text in started_units(read_release(directory)).items() for moment in re.findall(r"^OnCalendar=(.*)$", text, re.MULTILINE)
    ]
    return [
        f"{name}: OnCalendar={moment} is no moment that systemd knows; `systemd-analyze calendar` tries one"
        for name, moment in moments if run("systemd-analyze", "calendar", moment, check=False).returncode
    ]


def certificate_faults(certificate: str, key: str) -> list[str]:
    """Return why OpenSSL would not serve this certificate with this key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        return [f"{certificate} with {key}: {error}"]
    return []


def validate(directory: str, job: dict, *, with_certificate: bool = True) -> None:
    """Raise Refused with every fault of the staged release."""
    faults = doveconf_faults(directory, job["sources"])
    faults += variable_faults(directory, job["series"]) + timer_faults(directory)
    if not faults:
        faults += plugin_faults(directory, sorted({probe["protocol"] for probe in job["probes"]}))
    if with_certificate:
        faults += certificate_faults(os.path.join(directory, job["certificate"]), job["key"])
    if faults:
        raise Refused("\n".join(f"  - {fault}" for fault in faults))


# ---- the service ------------------------------------------------------------


def unit_property(name: str) -> str:
    """Return a property of the unit."""
    return run("systemctl", "show", "--property", name, "--value", UNIT).stdout.strip()


def runs_old_binary() -> bool:
    """Tell whether the main process runs a file that an update has replaced."""
    pid = unit_property("MainPID")
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(" (deleted)")
    except OSError:
        return False


def own_units(tree: dict[str, str]) -> dict[str, str]:
    """Return {name: content} of the release's units other than Dovecot's drop-in."""
    return {name: content for name, content in tree.items() if name.endswith((".service", *WANTED_BY))}


def unit_links(tree: dict[str, str], directory: str) -> dict[str, str]:
    """Return {path: name of the release's file} that make the units of *tree* known and start them at boot."""
    links = {}
    for name, text in own_units(tree).items():
        links[os.path.join(directory, name)] = name
        wants = "multi-user.target.wants" if RUNS.search(text) else WANTED_BY.get(os.path.splitext(name)[1])
        if wants:
            links[os.path.join(directory, wants, name)] = name
    return links


def started_units(tree: dict[str, str]) -> dict[str, str]:
    """Return {name: content} of the release's units that are started by nothing else."""
    return {name: text for name, text in own_units(tree).items() if name.endswith(tuple(WANTED_BY)) or RUNS.search(text)}


def stop_units(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Stop what the release *old* started and *new* does not know, while systemd still has its file; return the names."""
    gone = sorted(set(started_units(old)) - set(started_units(new)))
    if gone:
        run("systemctl", "stop", *gone)
    return gone


def differs(unit: str, old: dict[str, str], new: dict[str, str]) -> bool:
    """Tell whether *unit*, or a file of its release that it names, is another in *new*."""
    named = [name for name in {*old, *new} if re.search(rf"/current/{re.escape(name)}(\s|$)", new[unit])]
    return any(old.get(name) != new.get(name) for name in (unit, *named))


def is_up(name: str, text: str) -> bool:
    """Tell whether a unit is active, and its socket's file, which systemd does not look after, still there."""
    files_of_socket = re.findall(r"^ListenStream=(/.*)$", text, re.MULTILINE)
    return run("systemctl", "is-active", name, check=False).stdout.strip() == "active" and all(map(os.path.exists, files_of_socket))


def start_units(old: dict[str, str], new: dict[str, str], *, before_probe: bool) -> list[str]:
    """Bring the units of the release *new* up that the probe needs, or all others; return those that were started."""
    after = {name: text for name, text in started_units(new).items() if name.endswith(BEFORE_PROBE) == before_probe}
    if own_units(old) != own_units(new):
        run("systemctl", "daemon-reload")
    inactive = [name for name, text in after.items() if not is_up(name, text)]
    changed = sorted({name for name in after if differs(name, old, new)} | set(inactive))
    if changed:
        run("systemctl", "restart", *changed)
    return changed


def listeners(config: str) -> list[str]:
    """Return the lines of a dovecot.conf that say who listens where, and who may connect to a socket."""
    names = "protocols|listen|address|port|ssl|mode|user|group"
    return re.findall(rf"^\s*(?:{names}) = .*$|^\s*(?:inet|unix|fifo)_listener .*$", config, re.MULTILINE)


def make_unit_current(action: str, old: dict[str, str], new: dict[str, str]) -> None:
    """Bring firewall, unit and process to the live release."""
    # A new release brings a new file for the drop-in, even where its text is the same.
    if action == "restart" or unit_property("NeedDaemonReload") == "yes":
        run("systemctl", "daemon-reload")
    if action == "none":
        return
    if "lmtp.nft" in old and "lmtp.nft" not in new:
        run("/usr/sbin/nft", "delete table inet letterlock_lmtp", check=False)
    elif "lmtp.nft" in new and action == "reload":
        run("/usr/sbin/nft", "--file", "/etc/letterlock/dovecot/current/lmtp.nft")
    run("systemctl", "reset-failed", UNIT, check=False)
    run("systemctl", action, UNIT)
    if action == "reload":
        # Idle login processes of the old configuration still take connections for a moment;
        # a probe that they answer proves nothing.
        time.sleep(RELOAD_SETTLE_SECONDS)


def journal_since(moment: float) -> str:
    """Return Dovecot's warnings and errors since *moment* (seconds since the epoch)."""
    done = run(
        "journalctl", "--unit", UNIT, "--since", f"@{int(moment)}", "--no-pager", "--output", "cat", "--lines", "20",
        "--priority", "warning", check=False,
    )
    return done.stdout.strip()


def kick_lost(passdb: str) -> list[str]:
    """End the sessions of accounts that *passdb* doesn't have any more; return their names."""
    with open(passdb, encoding="utf-8") as stream:
        allowed = {line.split(":", 1)[0] for line in stream if ":" in line}
    shown = run("doveadm", "-f", "tab", "who", "-1", check=False).stdout.splitlines()[1:]
    online = {line.split("\t", 1)[0] for line in shown if line}
    lost = sorted(online - allowed)
    for name in lost:
        run("doveadm", "kick", name, check=False)
    return lost


def changed_accounts(old: str, new: str) -> list[str]:
    """Return accounts that both texts of a passwd-file have, with another line: another password, quota or hold."""
    before, after = (dict(line.split(":", 1) for line in text.splitlines() if ":" in line) for text in (old, new))
    return sorted(name for name in before.keys() & after.keys() if before[name] != after[name])


# ---- the probe --------------------------------------------------------------


class ProbeAccount:
    """An account that exists while the block runs, for logins from this host only.

    An auth process looks for changes of a passwd-file once in a second. On a host where mail comes in it has just done
    so, and would not know the account: one that is restarted in the block does, and for any other the block waits.
    """

    def __init__(self, job: dict, *, auth_restarts: bool) -> None:
        """Take names and the password from *job*, and whether auth is restarted in the block."""
        self.auth_restarts = auth_restarts
        self.directory, self.user, self.hash = job["probe_dir"], job["probe_user"], job["probe_hash"]
        self.owner = pwd.getpwnam(job["user"])

    def write(self, passdb: str, userdb: str) -> None:
        """Fill both files in place: their owner and mode stay."""
        for name, text in (("probe.userdb", userdb), ("probe.passdb", passdb)):
            with open(os.path.join(self.directory, name), "w", encoding="utf-8") as stream:
                stream.write(text)

    def __enter__(self) -> None:
        """Make the account."""
        home = os.path.join(self.directory, "probe")
        self.write(
            f"{self.user}:{self.hash}::::::allow_nets=local,127.0.0.0/8,::1\n",
            f"{self.user}::{self.owner.pw_uid}:{self.owner.pw_gid}::{home}::\n",
        )
        if not self.auth_restarts:
            time.sleep(AUTH_LOOKS_SECONDS)

    def __exit__(self, *_exception: object) -> None:
        """Remove the account and what its mailbox left."""
        self.write("", "")
        home = os.path.join(self.directory, "probe")
        for name in os.listdir(home):
            path = os.path.join(home, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def tls_context() -> ssl.SSLContext:
    """Return a client context that shows the certificate without judging it: the probe compares it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def leaf_of(path: str) -> bytes:
    """Return the first certificate of a PEM file, as DER."""
    with open(path, encoding="ascii") as stream:
        text = stream.read()
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN"): text.index(end) + len(end)])


def expect(condition: bool, what: str) -> None:
    """Raise ProbeFailed unless *condition* holds."""
    if not condition:
        raise ProbeFailed(what)


def probe_imap(probe: dict, login: tuple[str, str] | None) -> bytes:
    """Greet, and log in and open INBOX; return the certificate that was shown (DER)."""
    client = imaplib.IMAP4_SSL(probe["address"], probe["port"], ssl_context=tls_context(), timeout=PROBE_SECONDS)
    try:
        shown = client.sock.getpeercert(binary_form=True)
        if login:
            client.login(*login)
            status, _ = client.select("INBOX", readonly=True)
            expect(status == "OK", "INBOX could not be opened")
        client.logout()
    except imaplib.IMAP4.error as error:
        raise ProbeFailed(f"login was answered: {error}") from error
    return shown


def probe_pop3(probe: dict, login: tuple[str, str] | None) -> bytes:
    """Greet, and log in and ask for the state; return the certificate that was shown (DER)."""
    client = poplib.POP3_SSL(probe["address"], probe["port"], context=tls_context(), timeout=PROBE_SECONDS)
    try:
        shown = client.sock.getpeercert(binary_form=True)
        if login:
            client.user(login[0])
            client.pass_(login[1])
            client.stat()
        client.quit()
    except poplib.error_proto as error:
        raise ProbeFailed(f"login was answered: {error}") from error
    return shown


def probe_lmtp(probe: dict, _login: tuple[str, str] | None) -> bytes | None:
    """Greet over the unix socket, or over TLS; return the certificate that was shown (DER)."""
    if probe.get("path"):
        stream: socket.socket = socket.socket(socket.AF_UNIX)
        stream.settimeout(PROBE_SECONDS)
        stream.connect(probe["path"])
        shown = None
    else:
        plain = socket.create_connection((probe["address"], probe["port"]), timeout=PROBE_SECONDS)
        stream = tls_context().wrap_socket(plain)
        shown = stream.getpeercert(binary_form=True)
    with stream, stream.makefile("rwb") as lines:
        expect(lines.readline().startswith(b"220 "), "no greeting")
        lines.write(b"LHLO probe\r\n")
        lines.flush()
        expect(lines.readline().startswith(b"250"), "LHLO was not answered")
        lines.write(b"QUIT\r\n")
        lines.flush()
    return shown


PROBES_BY_PROTOCOL = {"imap": probe_imap, "pop3": probe_pop3, "lmtp": probe_lmtp}


def probe_all(job: dict, certificate: bytes | None) -> None:
    """Raise ProbeFailed with all that users would miss, after trying for PROBE_SECONDS."""
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        failures = probe_once(job, certificate)
        if not failures:
            return
        if time.monotonic() > deadline or any("login was answered" in failure for failure in failures):
            raise ProbeFailed("\n".join(f"  - {failure}" for failure in failures))
        time.sleep(0.2)


def probe_once(job: dict, certificate: bytes | None) -> list[str]:
    """Return what fails right now."""
    login = (job["probe_user"], job["probe_password"]) if job["probe_login"] else None
    failures = []
    for probe in job["probes"]:
        where = probe.get("path") or f"{probe['address']}:{probe['port']}"
        try:
            shown = PROBES_BY_PROTOCOL[probe["protocol"]](probe, login)
            expect(
                certificate is None or shown is None or shown == certificate, "another certificate than the new one is shown"
            )
        except (OSError, EOFError, ProbeFailed, imaplib.IMAP4.error, poplib.error_proto) as error:
            failures.append(f"{probe['protocol']} at {where}: {error}")
    return failures


# ---- the transaction --------------------------------------------------------


class Transaction:
    """One run of the module."""

    def __init__(self, job: dict, *, check_mode: bool) -> None:
        """Read what is there."""
        self.job, self.check_mode = job, check_mode
        self.root = job["root"]
        self.releases = os.path.join(self.root, "releases")
        self.current = os.path.join(self.root, "current")
        self.pending_file = os.path.join(self.root, "pending")
        self.live = os.path.realpath(self.current) if os.path.islink(self.current) else None
        if self.live and not os.path.isdir(self.live):
            self.live = None
        # A release says itself what to ask of it, so that the way back can be probed, too.
        self.tree: dict[str, str] = {**job["files"], PROBES: json.dumps(job["probes"], indent=2) + "\n"}
        self.diffs: list[dict] = []
        self.old: dict[str, str] = {}
        self.pending: dict | None = None
        if os.path.exists(self.pending_file):
            with open(self.pending_file, encoding="utf-8") as stream:
                self.pending = json.load(stream)

    def companions(self) -> None:
        """Bring the paths beside the release into place: first root's, then what needs the mail user."""
        user = self.job["user"]
        entries = self.job["entries"]
        for entry in sorted(entries, key=lambda item: item.get("owner", "root") != "root"):
            if entry.get("owner", "root") != "root" and not self.check_mode:
                try:
                    pwd.getpwnam(user)
                except KeyError:
                    run("systemd-sysusers")
            found = files.read_state(entry["path"])
            diff = files.difference(entry, found, strict=not self.check_mode)
            if diff:
                self.diffs.append(diff)
                if not self.check_mode:
                    files.apply_entry(entry, found)

    def links(self, tree: dict[str, str]) -> bool:
        """Make the links into the live release; return whether one of Dovecot's own changed."""
        changed = False
        known = {**unit_links(self.old, self.job["units"]), **unit_links(tree, self.job["units"])}
        for path, name in {**self.job["links"], **known}.items():
            entry = {"path": path, "state": "absent"}
            if name in tree:
                entry = {"path": path, "state": "link", "target": os.path.join(self.current, name)}
            found = files.read_state(path)
            diff = files.difference(entry, found)
            if diff:
                changed = changed or path in self.job["links"]
                self.diffs.append(diff)
                if not self.check_mode:
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    files.apply_entry(entry, found)
        return changed

    def stage(self) -> str:
        """Write the release beside the live one, validate it and return its directory."""
        os.makedirs(self.releases, mode=0o755, exist_ok=True)
        staging = os.path.join(self.releases, f".staging-{os.getpid()}")
        for left in glob.glob(os.path.join(self.releases, ".staging-*")):
            shutil.rmtree(left)
        write_release(staging, self.tree)
        try:
            validate(staging, self.job)
        except BaseException:
            shutil.rmtree(staging)
            raise
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{release_id(self.tree)}"
        directory = os.path.join(self.releases, name)
        if os.path.exists(directory):
            shutil.rmtree(staging)
            raise files.Fault(f"{directory} is there already; run again")
        os.rename(staging, directory)
        files.sync_directory(self.releases)
        return directory

    def validate_in_check_mode(self) -> None:
        """Validate in a directory that is gone afterwards; a bare host has nothing to validate with."""
        if not shutil.which("doveconf"):
            return
        staging = f"/run/letterlock-check-{os.getpid()}"
        try:
            write_release(staging, self.tree)
            # A certificate that this run would only issue has no key to compare yet.
            validate(staging, self.job, with_certificate=os.path.exists(self.job["key"]))
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def point_at(self, directory: str | None, previous: str | None) -> None:
        """Note that a swap is under way, then make *directory* the live release."""
        if directory is None:
            os.unlink(self.current)
            return
        with open(f"{self.pending_file}.new", "w", encoding="utf-8") as stream:
            json.dump({"previous": previous}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(f"{self.pending_file}.new", self.pending_file)
        files.write_link(self.current, directory)

    def settle(self) -> None:
        """Forget the pending swap: what is live is proven."""
        os.unlink(self.pending_file)
        files.sync_directory(self.root)

    def needed_action(self, old: dict[str, str], new: dict[str, str], *, relinked: bool) -> str:
        """Return restart, reload or none."""
        if unit_property("ActiveState") != "active" or runs_old_binary():
            return "restart"
        if relinked or old.get("dovecot.service.conf") != new.get("dovecot.service.conf"):
            return "restart"
        # A reload opens no new listener in 2.4, and leaves the sockets' owners and modes as they were.
        if listeners(old.get(CONFIG, "")) != listeners(new[CONFIG]):
            return "restart"
        # The accounts' files are read again at each login; all else needs a reload.
        apart = {name for name in set(old) | set(new) if old.get(name) != new.get(name)}
        if self.pending or apart - {self.job["passdb"], USERDB}:
            return "reload"
        return "none"

    def enable(self) -> None:
        """Let the service start at boot."""
        if run("systemctl", "is-enabled", UNIT, check=False).stdout.strip() != "enabled":
            self.diffs.append({"before": f"{UNIT}: not enabled\n", "after": f"{UNIT}: enabled\n"})
            if not self.check_mode:
                run("systemctl", "enable", "--quiet", UNIT)

    def note_inactive(self) -> None:
        """Tell which units a run would start."""
        up = bool(shutil.which("doveconf")) and unit_property("ActiveState") == "active"
        inactive = [] if up else [UNIT]
        inactive += [name for name, text in started_units(self.tree).items() if not is_up(name, text)]
        self.diffs += [{"before": f"{name}: not active\n", "after": f"{name}: active\n"} for name in inactive]

    def roll_back(self, previous: str | None, failed: dict[str, str], why: str, since: float) -> None:
        """Make *previous* serve again and raise ProbeFailed."""
        said = journal_since(since)
        rejected = os.path.join(self.root, "rejected")
        directory = os.path.realpath(self.current)
        if previous is None:
            run("systemctl", "stop", UNIT)
            self.point_at(None, None)
            outcome = "there was no earlier release, so Dovecot is stopped"
        else:
            self.point_at(previous, previous)
            old = read_release(previous)
            self.old = failed
            stop_units(failed, old)
            self.links(old)
            self.pending = {"previous": previous}
            outcome = f"the earlier release {os.path.basename(previous)} serves again"
            try:
                with ProbeAccount(self.job, auth_restarts=True):
                    make_unit_current("restart", failed, old)
                    start_units(failed, old, before_probe=True)
                    start_units(failed, old, before_probe=False)
                    probe_all({**self.job, "probes": json.loads(old.get(PROBES, "[]"))}, None)
            except (files.Fault, ProbeFailed) as fault:
                outcome = f"the earlier release {os.path.basename(previous)} is back and fails, too:\n{fault}\nThe new one"
        self.settle()
        shutil.rmtree(rejected, ignore_errors=True)
        os.rename(directory, rejected)
        log = f"\nDovecot's journal:\n{said}" if said else ""
        raise ProbeFailed(f"the new configuration failed its probe; {outcome}:\n{why}{log}\nIt is kept in {rejected}.")

    def prune(self) -> None:
        """Remove old releases, and the certificates that no kept release names."""
        names = sorted(os.listdir(self.releases))
        live = os.path.basename(os.path.realpath(self.current))
        for name in [name for name in names if name != live][: -self.job["keep"] or None]:
            shutil.rmtree(os.path.join(self.releases, name))
        for name in os.listdir(self.releases):
            close_release(os.path.join(self.releases, name))
        kept = "".join(
            read_release(os.path.join(self.releases, name)).get(CONFIG, "") for name in os.listdir(self.releases)
        )
        if os.path.isdir(self.job["prune"]):
            for name in os.listdir(self.job["prune"]):
                path = os.path.join(self.job["prune"], name)
                if f"{path}/" not in kept:
                    shutil.rmtree(path)

    def kick(self, old: dict[str, str]) -> list[str]:
        """End the sessions of accounts that are gone or changed since *old*; return those that are gone."""
        name = self.job["passdb"]
        kicked = []
        if name in self.tree and (old.get(name) != self.tree[name] or self.pending):
            kicked = kick_lost(os.path.join(self.current, name))
        for passwd_file in (name, USERDB):
            for account in changed_accounts(old.get(passwd_file, ""), self.tree.get(passwd_file, "")):
                run("doveadm", "kick", account, check=False)
        return kicked

    def run(self) -> dict:
        """Do what is needed and return the result."""
        old = self.old = read_release(self.live)
        self.diffs += release_diffs(self.live, self.tree)
        changed_release = bool(self.diffs)
        if self.check_mode:
            self.companions()
            self.links(self.tree)
            if changed_release:
                self.validate_in_check_mode()
            self.enable()
            self.note_inactive()
            changed = bool(self.diffs or self.pending or runs_old_binary())
            return {"changed": changed, "diff": self.diffs, "release": os.path.basename(self.live or "")}

        started = time.time()
        directory = self.stage() if changed_release else self.live
        self.companions()
        previous = (self.pending or {}).get("previous", self.live) if self.pending else self.live
        if changed_release:
            self.point_at(directory, previous)
        units = stop_units(old, self.tree)
        relinked = self.links(self.tree)
        action = self.needed_action(old, self.tree, relinked=relinked)
        self.enable()
        kicked: list[str] = []
        if changed_release or self.pending or action != "none":
            try:
                with ProbeAccount(self.job, auth_restarts=action != "none"):
                    make_unit_current(action, old, self.tree)
                    units += start_units(old, self.tree, before_probe=True)
                    probe_all(self.job, leaf_of(os.path.join(self.current, self.job["certificate"])))
            except (files.Fault, ProbeFailed) as why:
                if not changed_release and not self.pending:
                    raise
                self.roll_back(previous if previous != directory else None, self.tree, str(why), started)
            if os.path.exists(self.pending_file):
                self.settle()
            kicked = self.kick(old)
            self.prune()
        else:
            units += start_units(old, self.tree, before_probe=True)
        units += start_units(old, self.tree, before_probe=False)
        return {
            "changed": bool(self.diffs or action != "none" or self.pending or units), "diff": self.diffs, "action": action,
            "release": os.path.basename(directory or ""), "kicked": kicked,
        }


def main() -> None:
    """Run one transaction; a second one on the same host waits."""
    module = AnsibleModule(
        argument_spec={"payload": {"type": "str", "required": True, "no_log": True}}, supports_check_mode=True
    )
    job = json.loads(base64.b64decode(module.params["payload"]))
    with open("/run/letterlock-commit.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            transaction = Transaction(job, check_mode=module.check_mode)
            module.exit_json(**transaction.run())
        except Refused as refused:
            module.fail_json(
                msg=f"the host's own Dovecot refuses the new configuration; the old one serves on, unchanged:\n{refused}"
            )
        except (files.Fault, ProbeFailed, OSError, subprocess.TimeoutExpired) as fault:
            module.fail_json(msg=str(fault))


if __name__ == "__main__":
    main()
