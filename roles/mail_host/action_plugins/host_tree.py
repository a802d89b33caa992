"""Render a tree of files on the controller and send it to the host in one module call."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import generate_ansible_template_vars, trust_as_template

STATES = ("file", "directory", "link", "absent")
KEYS = {"path", "state", "template", "content", "target", "owner", "group", "mode", "validate", "secret", "purge"}


def check_entry(entry: dict) -> list[str]:
    """Return what is wrong with *entry*, as it stands in the playbook."""
    path = entry.get("path")
    if not isinstance(path, str) or not path.startswith("/"):
        return [f"an entry needs an absolute path, not {path!r}"]
    state = entry.get("state", "file")
    faults = [f"{path}: unknown key {key!r}" for key in sorted(set(entry) - KEYS)]
    if state not in STATES:
        faults.append(f"{path}: state is {state!r}; choose one of {', '.join(STATES)}")
    if state == "file" and ("template" in entry) == ("content" in entry):
        faults.append(f"{path}: a file needs either template or content")
    if state == "link" and "target" not in entry:
        faults.append(f"{path}: a link needs a target")
    return faults


class ActionModule(ActionBase):
    """The controller's half of `host_tree`."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Render the entries and run the module once."""
        result = super().run(tmp, task_vars)
        entries = self._task.args.get("entries") or []
        faults = [fault for entry in entries for fault in check_entry(entry)]
        if faults:
            raise AnsibleActionFail("host_tree: " + "; ".join(faults))
        wanted = []
        for given in entries:
            entry = {"state": "file", **given}
            if "template" in entry:
                entry["content"] = self.render(entry.pop("template"), task_vars)
            wanted.append(entry)
        payload = base64.b64encode(json.dumps(wanted).encode()).decode()
        result.update(self._execute_module("host_tree", {"payload": payload}, task_vars=task_vars))
        # The payload is long and says nothing to a reader.
        result.pop("invocation", None)
        return result

    def render(self, name: str, task_vars: dict) -> str:
        """Render the template *name* (of the role, or an absolute path) as `template` would."""
        path = name if name.startswith("/") else self._find_needle("templates", name)
        text = trust_as_template(self._loader.get_text_file_contents(path))
        variables = {**task_vars, **generate_ansible_template_vars(path=name, fullpath=path)}
        # A template includes what lies beside it, and by a role's name what another role shares.
        shared = [str(folder.parent.parent) for folder in Path(path).parents if folder.name == "templates"]
        templar = self._templar.copy_with_new_env(searchpath=[str(Path(path).parent), *shared], available_variables=variables)
        rendered = templar.template(
            text, escape_backslashes=False, overrides={"trim_blocks": True, "lstrip_blocks": True}
        )
        # What renders to nothing is None to the templar.
        return "" if rendered is None else str(rendered)
