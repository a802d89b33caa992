#!/usr/bin/python
"""Read, in one round trip, what the kit's roles need to know of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mail_host_state
short_description: Read in one round trip what the kit's roles need to know of a host
description:
  - Replaces the setup module, package facts and a handful of stat and slurp calls. It changes nothing.
options:
  packages:
    description: Packages whose installed version is wanted.
    type: list
    elements: str
    default: []
  files:
    description: Small text files whose content is wanted. A file that is not there gives null.
    type: list
    elements: path
    default: []
  globs:
    description: Patterns whose matching paths are wanted.
    type: list
    elements: str
    default: []
  users:
    description: Names of users whose uid is wanted. A user that is not there gives null.
    type: list
    elements: str
    default: []
author: [Letterlock]
"""

RETURN = r"""
state:
  description: >-
    C(release) (id, version, codename), C(dovecot) (version, installed), C(packages), C(files), C(globs), C(users), C(cpus)
    and C(time) (seconds since the epoch, UTC, by the host's clock).
  type: dict
  returned: always
"""

import glob
import os
import pwd
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

MAX_BYTES = 8 * 1024 * 1024


def os_release() -> dict:
    """Return the lower-case keys of os-release(5)."""
    with open("/etc/os-release", encoding="utf-8") as stream:
        pairs = (line.rstrip("\n").split("=", 1) for line in stream if "=" in line)
        values = {key.lower(): value.strip("\"'") for key, value in pairs}
    return {"id": values.get("id", ""), "version": values.get("version_id", ""), "codename": values.get("version_codename", "")}


def installed_versions(packages: list[str]) -> dict[str, str | None]:
    """Return {package: upstream and Debian version, or None} as dpkg knows them."""
    versions: dict[str, str | None] = dict.fromkeys(packages)
    if packages:
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status} ${Version}\n", *packages],
            capture_output=True, text=True, check=False,
        )
        for line in done.stdout.splitlines():
            name, status, *version = line.split()
            if status == "installed" and version:
                versions[name] = version[0]
    return versions


def candidate_version(package: str) -> str | None:
    """Return the version that apt would install, or None when it knows of none."""
    done = subprocess.run(
        ["apt-cache", "policy", package], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    found = re.search(r"Candidate: (\S+)", done.stdout)
    return found.group(1) if found and found.group(1) != "(none)" else None


def read_text(path: str) -> str | None:
    """Return the content of a small text file, or None when it is not there."""
    try:
        with open(path, "rb") as stream:
            return stream.read(MAX_BYTES).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def uid_of(name: str) -> int | None:
    """Return the uid of user *name*, or None."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def main() -> None:
    """Read and report."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "globs": {"type": "list", "elements": "str", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    release = os_release()
    packages = installed_versions([*module.params["packages"], "dovecot-core"])
    installed = packages.get("dovecot-core")
    version = installed or candidate_version("dovecot-core")
    module.exit_json(
        changed=False,
        state={
            "release": release,
            # 1:2.4.1+dfsg1-6 -> 2.4.1
            "dovecot": {
                "installed": installed is not None,
                "version": re.sub(r"^\d+:|[+-].*$", "", version) if version else None,
            },
            "packages": packages,
            "files": {path: read_text(path) for path in module.params["files"]},
            "globs": {pattern: sorted(glob.glob(pattern)) for pattern in module.params["globs"]},
            "users": {name: uid_of(name) for name in module.params["users"]},
            "cpus": os.cpu_count() or 1,
            "time": int(time.time()),
        },
    )


if __name__ == "__main__":
    main()
