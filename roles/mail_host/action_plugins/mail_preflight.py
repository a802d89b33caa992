"""Refuse, before anything changes, what the roles of this play cannot make true.

Three kinds of fault, of all roles, are listed at once:

  - a variable that no role knows, with the name that was probably meant;
  - a value that is not of the type or choice that argument_specs says;
  - what a role's own preflight.py finds: faults that cross variables, that need
    the certificate read, or that depend on the host.

A role takes part by having meta/argument_specs.yml and, where it wants, a
preflight.py with `faults(variables, host) -> list[str]`.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

import yaml
from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase


def unknown_variables(names: list[str], known: set[str], roles: list[str]) -> list[str]:
    """Return a fault for each of *names* that carries a role's prefix, or nearly a variable's name, but is none.

    >>> unknown_variables(["dovecot_protocls"], {"dovecot_protocols"}, ["dovecot"])
    ["dovecot_protocls: no such variable; did you mean 'dovecot_protocols'?"]
    """
    faults = []
    for name in sorted(set(names) - known):
        prefixed = any(name.startswith(f"{role}_") for role in roles)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75 if prefixed else 0.92)
        if close:
            faults.append(f"{name}: no such variable; did you mean '{close[0]}'?")
        elif prefixed:
            faults.append(f"{name}: no such variable; see the README's reference of variables")
    return faults


def read_options(role: Path) -> dict:
    """Return the options of the role's `main` entry point."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    return specs["argument_specs"]["main"].get("options", {})


def role_faults(role: Path, variables: dict, host: dict) -> list[str]:
    """Return what the role's own preflight.py finds."""
    file = role / "preflight.py"
    if not file.is_file():
        return []
    spec = importlib.util.spec_from_file_location(f"{role.name}_preflight", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.faults(variables, host)


class ActionModule(ActionBase):
    """`mail_preflight`: runs on the controller and costs no round trip."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        """Collect the faults of every role in the play and fail if there is one."""
        result = super().run(tmp, task_vars)
        host = self._task.args["host"]
        folder = Path(task_vars["role_path"]).parent
        roles = [folder / name for name in task_vars["ansible_play_role_names"]]
        roles = [role for role in roles if (role / "meta" / "argument_specs.yml").is_file()]
        options = {role.name: read_options(role) for role in roles}
        known = {name for names in options.values() for name in names}
        faults = unknown_variables([str(name) for name in task_vars], known, list(options))
        variables = {}
        for role in roles:
            values, problems = self.values(options[role.name], task_vars)
            faults += problems
            validated = ArgumentSpecValidator(options[role.name]).validate(values)
            faults += [f"{role.name}: {message}" for message in validated.error_messages]
            variables.update(validated.validated_parameters)
            if problems or validated.error_messages:
                roles = [other for other in roles if other != role]
        for role in roles:
            faults += role_faults(role, variables, host)
        if faults:
            count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
            listed = "\n".join(f"  - {fault}" for fault in faults)
            result.update(
                failed=True, faults=faults, msg=f"{count} in the variables of {task_vars['inventory_hostname']}; "
                f"nothing was changed:\n{listed}"
            )
        return result

    def values(self, options: dict, task_vars: dict) -> tuple[dict, list[str]]:
        """Return the values of the *options* that are set, and a fault for each that cannot be had."""
        values, faults = {}, []
        for name in options:
            if name not in task_vars:
                continue
            try:
                value = self._templar.template(task_vars[name])
            except (AnsibleUndefinedVariable, AnsibleError) as error:
                faults.append(f"{name}: {str(error).splitlines()[0]}")
                continue
            if value is not None:
                values[name] = value
        return values, faults
