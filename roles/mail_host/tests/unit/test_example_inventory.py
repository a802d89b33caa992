"""The example inventory is whole: its vault opens, its variables exist, and the playbook takes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from roles_loader import ROLES, load

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = ROLES.parent
EXAMPLE = PROJECT / "inventories" / "example"
# As the README says; the file holds examples, not secrets.
VAULT_PASSWORD = "letterlock-example"  # noqa: S105  # the README names it

plugin = load("mail_host/action_plugins/mail_preflight.py")


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an Ansible command with the vault's password."""
    password = tmp_path / "password"
    password.write_text(VAULT_PASSWORD)

    def run_command(*command: str, inventory: Path = EXAMPLE) -> str:
        done = subprocess.run(
            [*command, "--inventory", str(inventory), "--vault-password-file", str(password)], cwd=PROJECT, check=False,
            capture_output=True, text=True, env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_command


def test_every_variable_is_known_and_every_secret_is_indirect(run):
    """Names match the specs, and each vault_ name that a file uses is in the vault."""
    variables = json.loads(run("ansible-inventory", "--list"))["_meta"]["hostvars"]["mail1.example.org"]
    roles = [role for role in ROLES.iterdir() if (role / "meta/argument_specs.yml").is_file()]
    known = {name for role in roles for name in plugin.read_options(role)}
    assert plugin.unknown_variables(list(variables), known, [role.name for role in roles]) == []
    text = "".join(file.read_text() for file in EXAMPLE.rglob("*.yml") if file.name != "vault.yml")
    vaulted = {name for name in variables if name.startswith("vault_")}
    assert vaulted
    assert all(f"{{{{ {name} }}}}" in text for name in vaulted)


def test_a_private_ca_in_the_inventory_is_no_inventory(run, tmp_path):
    """The CA that the first run makes beside the hosts must not stop the second."""
    copy = tmp_path / "production"
    shutil.copytree(EXAMPLE, copy)
    (copy / "pki").mkdir()
    (copy / "pki" / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    assert "mail1.example.org" in run("ansible-inventory", "--list", inventory=copy)


def test_the_vault_is_encrypted():
    """It is committed as users would commit theirs."""
    assert (EXAMPLE / "group_vars/mail_hosts/vault.yml").read_text().startswith("$ANSIBLE_VAULT;1.1;AES256")


def test_the_playbook_takes_it(run):
    """Syntax and roles."""
    assert "playbook: playbooks/site.yml" in run("ansible-playbook", "--syntax-check", "playbooks/site.yml")
