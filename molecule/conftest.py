"""What every scenario's tests share: the hosts, the clients, the site's playbook, and the journal of a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).resolve().parent / "shared" / "lab"))

import clients  # found only on the path that the line above adds
import lane  # so is this
from scanning import Scanner  # and this
from store import Store  # and this
from verifying import Verifier  # and this

PLAYBOOK_SECONDS = 600


@pytest.fixture(scope="session")
def access() -> dict:
    """Return how to reach the hosts, and what the inventory declared."""
    return clients.read_access(lane.ACCESS_FILE)


@pytest.fixture
def declared(access: dict) -> dict:
    """Return what the inventory declared of the hosts."""
    return access["declared"]


@dataclass
class Mail:
    """One deployed host as a mail client sees it."""

    host: dict
    ca_file: str
    accounts: dict[str, str]
    # The hosts whose tests run side by side.
    side_by_side: list[str]

    @property
    def user(self) -> str:
        """Return the first account."""
        return next(iter(self.accounts))

    def login(self, user: str | None = None) -> tuple[dict, str, str, str]:
        """Return the arguments that the clients take."""
        user = user or self.user
        return self.host, self.ca_file, user, self.accounts[user]

    def deliver(self, recipient: str, message: bytes) -> None:
        """Deliver over LMTP with TLS."""
        clients.deliver(self.host, self.ca_file, recipient, message)


@pytest.fixture
def mail(host, access: dict) -> Mail:
    """Return the mail side of testinfra's `host`."""
    name = host.backend.get_pytest_id().removeprefix("ssh://")
    facts = next(facts for facts in access["hosts"] if facts["name"] == name)
    accounts = {account["user"]: account["password"] for account in access["accounts"]}
    return Mail(facts, access["ca_file"], accounts, [host["name"] for host in access["hosts"]])


@pytest.fixture
def container(mail: Mail) -> Callable[..., None]:
    """Return what podman does with the machine under testinfra's `host`: `container("kill", "--signal", "KILL")`."""
    def podman(*arguments: str) -> None:
        command = [lane.PROJECT / "molecule" / "shared" / "lab" / "podman", *arguments, lane.container(mail.host["name"])]
        subprocess.run(command, check=True, capture_output=True)

    return podman


@pytest.fixture
def reboot(host, container) -> Callable[[], None]:
    """Return what starts the machine under testinfra's `host` anew, and waits until it is reached again."""
    def answers() -> bool:
        try:
            return host.run("true").rc == 0
        except RuntimeError:
            return False

    def restart() -> None:
        container("restart")
        wait_for(answers, 60)

    return restart


@pytest.fixture
def store(host, mail, declared) -> Store:
    """Return the mail of testinfra's `host`, as its users see it, and the operator's commands."""
    return Store(host, mail, declared)


@pytest.fixture
def scanner(host) -> Scanner:
    """Return the scanner of testinfra's `host`, as its operator handles it."""
    return Scanner(host, lane.FOLDER)


@pytest.fixture
def no_sweep(host):
    """Keep the sweep from what the gate is to find; called, do so again after a deployment, which starts its path unit."""
    def stop() -> None:
        host.check_output("systemctl stop letterlock-sweep.path letterlock-sweep.service")

    stop()
    yield stop
    host.check_output("systemctl start letterlock-sweep.path")


@dataclass
class Run:
    """What a playbook run came to."""

    code: int
    output: str

    def changed(self, name: str) -> int:
        """Return how many tasks changed host *name*."""
        return int(re.search(rf"^{name}\s.*changed=(\d+)", self.output, re.MULTILINE).group(1))


class Site:
    """The site's playbook, run as users run it."""

    def __init__(self, name: str) -> None:
        """Run for the host *name* only."""
        scenario = os.environ["MOLECULE_SCENARIO_DIRECTORY"]
        self.command = [
            "ansible-playbook", f"--inventory={lane.PROJECT}/inventories/lab",
            f"--inventory={lane.PROJECT}/molecule/shared/inventory", f"--inventory={scenario}/inventory", f"--limit={name}",
        ]

    def start(self, *arguments: str, playbook: str = "playbooks/site.yml", **variables: object) -> subprocess.Popen:
        """Start a run with extra *variables* and return its process."""
        # molecule asks its children for colour wherever TERM knows it, and that request is stronger than NO_COLOR.
        environment = {**os.environ, "ANSIBLE_CONFIG": f"{lane.PROJECT}/ansible.cfg", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
        extra = ["--extra-vars", json.dumps(variables)] if variables else []
        return subprocess.Popen(
            [*self.command, *extra, *arguments, f"{lane.PROJECT}/{playbook}"], env=environment, cwd=lane.PROJECT, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str, playbook: str = "playbooks/site.yml", **variables: object) -> Run:
        """Run to the end. A later --limit among the *arguments* takes the place of the host under test."""
        process = self.start(*arguments, playbook=playbook, **variables)
        output, _ = process.communicate(timeout=PLAYBOOK_SECONDS)
        return Run(process.returncode, output)

    def converge(self, **variables: object) -> Run:
        """Run and insist that it went well."""
        run = self.run(**variables)
        assert run.code == 0, run.output
        return run


@pytest.fixture
def site(mail: Mail) -> Site:
    """Return the playbook for the host under test."""
    return Site(mail.host["name"])


@pytest.fixture
def verifier(mail: Mail, site: Site, tmp_path: Path) -> Verifier:
    """Return the verification of the host under test, with its first account."""
    # Without ansible-playbook: its inventories, and the limit.
    return Verifier(site.command[1:], tmp_path, (mail.user, mail.accounts[mail.user]))


def wait_for(condition, seconds: float = 20.0) -> None:
    """Wait until *condition* gives true; fail after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s: {condition}"
        time.sleep(0.2)


class ByHost(LoadScopeScheduling):
    """Keeps the tests of one host in order on one worker; hosts are tested side by side."""

    def _split_scope(self, nodeid: str) -> str:
        return re.search(r"ssh://[\w.-]+?(?=[]-])|$", nodeid).group()


def pytest_xdist_make_scheduler(config, log):
    """Schedule by host (pytest-xdist's hook)."""
    return ByHost(config, log)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Print the host's journal with a failure that concerns a host."""
    outcome = yield
    report = outcome.get_result()
    host = getattr(item, "funcargs", {}).get("host")
    if report.when == "call" and report.failed and host is not None:
        for whose, unit in (("dovecot's", "dovecot"), ("the kit's services'", "letterlock-*")):
            try:
                journal = host.run(f"journalctl --unit '{unit}' --no-pager --lines 30").stdout
            except RuntimeError as unreachable:
                journal = f"the host can't be reached: {unreachable}"
            report.sections.append((f"{whose} journal on the host", journal))
