"""What tests that only read and probe share: the host as its inventory declares it, and the evidence that they gather."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from evidence import Evidence, masked

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_SECONDS = 60
# What comes with the server's greeting disturbs a renegotiation.
GREETING_SECONDS = 0.7


@dataclass
class Server:
    """One host: where it is reached, what is declared of it, and an account to log in with where one was given."""

    name: str
    address: str
    names: list[str]
    ports: dict[str, int]
    ca_file: str
    declared: dict
    account: tuple[str, str] | None
    evidence: Evidence

    @property
    def tls_ports(self) -> dict[str, int]:
        """The published ports of the chosen protocols."""
        return {protocol: self.ports[protocol] for protocol in self.declared["protocols"]}

    def outside(self, *command: str, say: str = "", hold: float = 0) -> subprocess.CompletedProcess:
        """Run *command* here, from where the tests run; its input is *say*, after GREETING_SECONDS if it stays open for *hold* seconds."""
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            if hold:
                time.sleep(GREETING_SECONDS)
                # Who was not let in at all has gone by now.
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(say)
                    process.stdin.flush()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(hold)
                say = ""
            output, error = process.communicate(None if process.poll() is not None else say, timeout=TIMEOUT_SECONDS)
        done = subprocess.CompletedProcess(command, process.returncode, output, error)
        self.evidence.add(" ".join(command), done.returncode, output + error)
        return done

    def s_client(self, port: int, *options: str, say: str = "", hold: float = 0) -> subprocess.CompletedProcess:
        """Run OpenSSL's own client against a *port*."""
        trusted = ["-CAfile", self.ca_file] if self.ca_file else []
        return self.outside("openssl", "s_client", "-connect", f"{self.address}:{port}", *trusted, *options, say=say, hold=hold)

    def refuses(self, port: int, *options: str) -> bool:
        """Tell whether the host itself refuses such a session; fail when it was not even reached."""
        done = self.s_client(port, *options)
        assert "CONNECTED(" in done.stdout, f"port {port} can't be reached: {done.stderr.strip()[-300:]}"
        return done.returncode != 0

    def insist_on(self, declared: str, what: str) -> None:
        """Skip a test of what the inventory does not declare."""
        if not self.declared[declared]:
            pytest.skip(f"not claimed: {what}")


def read_server(name: str, evidence: Evidence) -> Server:
    """Return what is declared of the host *name*."""
    raw = json.loads((Path(os.environ["LETTERLOCK_VERIFY"]) / "declared" / f"{name}.json").read_text())
    user, password = os.environ.get("LETTERLOCK_PROBE_USER"), os.environ.get("LETTERLOCK_PROBE_PASSWORD")
    return Server(
        raw["name"], raw["address"], raw["names"], raw["ports"], raw["ca_file"], raw["declared"],
        (user, password) if user and password else None, evidence,
    )


@pytest.fixture
def server(host, record_property) -> Server:
    """Return testinfra's `host` as its inventory declares it; whatever it is asked is kept as evidence."""
    evidence = Evidence()
    asked = host.run

    def run(command: str, *arguments: str, **options: object):
        done = asked(command, *arguments, **options)
        evidence.add(done.command.decode() if isinstance(done.command, bytes) else str(done.command), done.rc, done.stdout + done.stderr)
        return done

    host.run = run
    yield read_server(host.backend.get_pytest_id().removeprefix("ssh://"), evidence)
    host.run = asked
    secrets = [os.environ.get("LETTERLOCK_PROBE_PASSWORD", "")]
    record_property("evidence", json.dumps([masked(entry, secrets) for entry in evidence.entries]))


@pytest.fixture
def figure(record_property) -> Callable[..., None]:
    """Return what keeps a figure for one of the report's charts: what it is, its value, and the most or the least that it may be."""

    def keep(chart: str, what: str, value: float, unit: str, **limit: float | None) -> None:
        record_property("figure", json.dumps({
            "chart": chart, "what": what, "value": round(value, 1), "unit": unit, "most": limit.get("most"), "least": limit.get("least"),
        }))

    return keep


@pytest.fixture
def account(server: Server) -> tuple[str, str]:
    """Return name and password of the account that was given to log in with; without one nothing is proven."""
    if server.account is None:
        pytest.skip("not proven: no account to log in with was given (PROBE_USER, PROBE_PASSWORD)")
    return server.account
