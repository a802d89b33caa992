"""Compare wanted files with those of the host, and write them atomically.

One description of a tree serves two modules: `host_tree`, which owns single
paths all over the host, and `dovecot_commit`, which owns a release directory.
An entry is a dict:

  path     absolute path, or relative to a release
  state    file | directory | link | absent
  content  file: its text
  target   link: what it points to
  owner, group, mode ("0644"), secret (its diff is masked), validate (a command
           with %s for the candidate's path)
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile

MASK = "(secret, not shown)\n"


class Fault(Exception):
    """The host cannot be brought to the wanted state; the text says why."""


def ids_of(entry: dict, *, strict: bool = True) -> tuple[int | None, int | None]:
    """Return (uid, gid) of the entry's owner and group.

    With strict=False a name that the host does not know yet gives None, as in
    check mode before the packages that make the user are installed.
    """
    found: list[int | None] = []
    for kind, name, look_up in (
        ("user", entry.get("owner", "root"), lambda n: pwd.getpwnam(n).pw_uid),
        ("group", entry.get("group", "root"), lambda n: grp.getgrnam(n).gr_gid),
    ):
        try:
            found.append(look_up(name))
        except KeyError:
            if strict:
                raise Fault(f"{entry['path']}: the host has no {kind} {name!r}") from None
            found.append(None)
    return found[0], found[1]


def default_mode(entry: dict) -> int:
    """Return the permission bits that the entry asks for."""
    return int(entry.get("mode") or ("0755" if entry["state"] == "directory" else "0644"), 8)


def read_state(path: str) -> dict:
    """Return what stands at *path*: state, and mode, uid, gid, content or target."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return {"state": "absent"}
    except NotADirectoryError:
        return {"state": "absent"}
    about = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    if stat.S_ISLNK(found.st_mode):
        return {**about, "state": "link", "target": os.readlink(path)}
    if stat.S_ISDIR(found.st_mode):
        return {**about, "state": "directory"}
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as stream:
            return {**about, "state": "file", "content": stream.read()}
    return {**about, "state": "special"}


def difference(entry: dict, found: dict, *, strict: bool = True) -> dict | None:
    """Return a diff for Ansible if *found* is not what *entry* wants, else None."""
    path, wanted_state = entry["path"], entry["state"]
    before: list[str] = []
    after: list[str] = []
    text_before = text_after = ""
    if found["state"] != wanted_state:
        before.append(f"state: {found['state']}")
        after.append(f"state: {wanted_state}")
    if wanted_state == "file":
        wanted = entry["content"].encode()
        if found.get("content") != wanted:
            old = found.get("content", b"").decode(errors="replace")
            new = entry["content"]
            text_before, text_after = (MASK, MASK.replace("not", "changed, not")) if entry.get("secret") else (old, new)
    if wanted_state == "link" and found.get("target") != entry["target"]:
        before.append(f"target: {found.get('target', '-')}")
        after.append(f"target: {entry['target']}")
    if wanted_state in ("file", "directory"):
        uid, gid = ids_of(entry, strict=strict)
        mode = default_mode(entry)
        for name, wanted_value, found_value, show in (
            ("mode", mode, found.get("mode"), lambda v: f"{v:04o}"),
            ("uid", uid, found.get("uid"), str),
            ("gid", gid, found.get("gid"), str),
        ):
            if wanted_value is not None and found_value != wanted_value:
                before.append(f"{name}: {'-' if found_value is None else show(found_value)}")
                after.append(f"{name}: {show(wanted_value)}")
    if not (before or after or text_before or text_after):
        return None
    return {
        "before_header": path,
        "after_header": path,
        "before": "".join(f"# {line}\n" for line in before) + text_before,
        "after": "".join(f"# {line}\n" for line in after) + text_after,
    }


def sync_directory(path: str) -> None:
    """Make the names in directory *path* durable (fsync)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(entry: dict) -> None:
    """Write the entry's file beside its place, validate it, and rename it into place.

    Raises Fault when the validating command refuses the candidate; the file
    that stood there is then untouched.
    """
    path = entry["path"]
    uid, gid = ids_of(entry)
    directory = os.path.dirname(path)
    handle, candidate = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(entry["content"].encode())
            stream.flush()
            os.fchmod(stream.fileno(), default_mode(entry))
            os.fchown(stream.fileno(), uid, gid)
            os.fsync(stream.fileno())
        if entry.get("validate"):
            command = [part.replace("%s", candidate) for part in shlex.split(entry["validate"])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().replace(candidate, path)
                raise Fault(f"{path}: refused by `{entry['validate']}`: {said}")
        os.replace(candidate, path)
    except BaseException:
        if os.path.exists(candidate):
            os.unlink(candidate)
        raise
    sync_directory(directory)


def write_link(path: str, target: str) -> None:
    """Point the symbolic link *path* at *target* in one step."""
    candidate = f"{path}.letterlock-new"
    if os.path.lexists(candidate):
        os.unlink(candidate)
    os.symlink(target, candidate)
    os.replace(candidate, path)
    sync_directory(os.path.dirname(path))


def remove(path: str, found: dict) -> None:
    """Remove what stands at *path*; a directory goes with what is in it."""
    if found["state"] == "directory":
        shutil.rmtree(path)
    else:
        os.unlink(path)


def strangers(entries: list[dict]) -> list[dict]:
    """Return an absence for each child of the entries' purged directories that is no entry itself."""
    named = {entry["path"] for entry in entries}
    found = []
    for entry in entries:
        if entry.get("purge") and os.path.isdir(entry["path"]):
            paths = (os.path.join(entry["path"], name) for name in sorted(os.listdir(entry["path"])) if name != "__pycache__")
            found += [{"path": path, "state": "absent"} for path in paths if path not in named]
    return found


def apply_entry(entry: dict, found: dict) -> None:
    """Bring the host from *found* to what *entry* wants."""
    path, state = entry["path"], entry["state"]
    if state == "absent":
        remove(path, found)
        return
    if found["state"] not in ("absent", state) and (found["state"] == "directory" or state == "directory"):
        raise Fault(f"{path}: a {found['state']} stands where a {state} belongs; move it away first")
    if state == "link":
        write_link(path, entry["target"])
    elif state == "file":
        write_file(entry)
    else:
        uid, gid = ids_of(entry)
        if found["state"] == "absent":
            os.makedirs(path, mode=default_mode(entry))
        os.chown(path, uid, gid)
        os.chmod(path, default_mode(entry))
