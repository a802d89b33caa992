"""A host is lost, and brought back from repository, password and inventory alone. Clients that had its mail notice nothing."""

from __future__ import annotations

import os
import subprocess

import lane
import pytest
import testinfra
from lane import PROJECT
from real_clients import Client

pytestmark = pytest.mark.requirement("LOSS-4")

USERS = ["ada@letterlock.test", "bob@letterlock.test", "grace@example.test"]
def playbook(name: str, limit: str) -> None:
    """Run a playbook of the lab for the hosts in *limit*."""
    scenario = os.environ["MOLECULE_SCENARIO_DIRECTORY"]
    command = [
        "ansible-playbook", f"--inventory={PROJECT}/inventories/lab", f"--inventory={PROJECT}/molecule/shared/inventory",
        f"--inventory={scenario}/inventory", f"--limit={limit}", f"{PROJECT}/molecule/{name}",
    ]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def client(mail) -> Client:
    """Return the clients, on a host that is not lost."""
    return Client(testinfra.get_host("ssh://store", ssh_config=lane.SSH_CONFIG), mail, USERS[0])


def test_a_host_is_lost_and_comes_back(host, store, site, client, container):
    """From a bare machine; no message is downloaded twice, none is lost, no flag either, and backups go on."""
    for user in USERS:
        # Reading by POP3 marks as seen.
        store.seen(user)
    client.sync()
    assert "Near: +0 *0 #0" in client.sync()
    kept = client.held()
    assert len(kept.splitlines()) == 8
    assert client.fetch() == 5
    assert client.fetch() == 0
    before = {user: store.seen(user) for user in USERS}
    store.backup()

    name = store.mail.host["name"]
    subprocess.run(["ssh", "-F", lane.SSH_CONFIG, "-O", "exit", name], capture_output=True, check=False)
    container("rm", "--force", "--time", "0", "--volumes")
    playbook("shared/create.yml", f"localhost,{name}")
    playbook("drill/prepare.yml", name)
    assert not host.file("/etc/letterlock").exists
    run = site.run(playbook="playbooks/restore.yml")
    assert run.code == 0, run.output
    assert "0 differences" in run.output, run.output

    assert {user: store.seen(user) for user in USERS} == before
    said = client.sync()
    assert "Far: +0 *0 #0" in said, said
    assert "Near: +0 *0 #0" in said, said
    assert client.held() == kept
    assert client.fetch() == 0
    assert store.letterlock("ledger verify").rc == 0
    assert "0 failures" in store.backup()
    assert site.converge().changed(name) == 0


def test_a_restore_of_nobody_in_particular_is_refused(site):
    """Without a limit it would be everybody's."""
    site.command = [word for word in site.command if not word.startswith("--limit")]
    run = site.run(playbook="playbooks/restore.yml")
    assert run.code != 0
    assert "name the hosts with --limit" in run.output
