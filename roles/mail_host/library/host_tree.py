#!/usr/bin/python
"""Bring a list of files, directories, links and absences into place in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_tree
short_description: Bring files, directories, links and absences into place in one round trip
description:
  - An action plugin renders every template on the controller; this module compares
    all of it with the host and writes what differs, each file atomically.
  - Check mode and diff are true per path. What is marked C(secret) is masked.
options:
  entries:
    description: The paths, in the order in which they are made. Directories come before what is in them.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path., type: str, required: true}
      state: {description: What must stand there., type: str, choices: [file, directory, link, absent], default: file}
      template: {description: Name of a template of the role., type: str}
      content: {description: Text of the file., type: str}
      target: {description: What the link points to., type: str}
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
      mode: {description: Permission bits in octal., type: str}
      validate: {description: Command that must accept the candidate; C(%s) is its path., type: str}
      secret: {description: Mask the content in diffs., type: bool, default: false}
      purge: {description: Remove what stands in the directory and is no entry; Python's caches stay., type: bool, default: false}
author: [Letterlock]
"""

RETURN = r"""
paths:
  description: The paths that were changed, or would be in check mode.
  type: list
  returned: always
"""

import base64
import json

from ansible.module_utils import letterlock_files as files
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Compare, write and report."""
    module = AnsibleModule(
        # One opaque value: neither content nor secrets reach the host's journal.
        argument_spec={"payload": {"type": "str", "required": True, "no_log": True}},
        supports_check_mode=True,
    )
    entries = json.loads(base64.b64decode(module.params["payload"]))
    entries += files.strangers(entries)
    paths, diffs = [], []
    for entry in entries:
        try:
            found = files.read_state(entry["path"])
            diff = files.difference(entry, found, strict=not module.check_mode)
            if diff is None:
                continue
            if not module.check_mode:
                files.apply_entry(entry, found)
        except (files.Fault, OSError) as fault:
            module.fail_json(msg=str(fault), paths=paths, changed=bool(paths))
        paths.append(entry["path"])
        diffs.append(diff)
    module.exit_json(changed=bool(paths), paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
