"""What every deployed host promises on the network, asked by the same tests that `make verify` asks any host by."""

from __future__ import annotations

import pytest

# Each has tests that only read, and every host promises it.
ALWAYS = {
    "TLS-1", "TLS-2", "TLS-3", "TLS-4", "TLS-5", "SURF-1", "SURF-2", "AUTH-1", "AUTH-2", "AUTH-3", "AUTH-4", "AUTH-5", "SEC-1", "SEC-2",
}


@pytest.mark.requirement(*sorted(ALWAYS), "OPS-5")
def test_what_every_host_promises_is_proven(verifier, declared):
    """And nothing that it claims is violated."""
    verified = verifier.run()
    assert verified.why("violated") == {}
    assert verified.code == 0
    wanted = ALWAYS | ({"TLS-6"} if declared["lmtp_port"] else set())
    assert wanted <= set(verified.why("proven")), verified.why("not proven") | verified.why("not claimed")


@pytest.mark.requirement("TLS-2")
def test_it_is_the_host_that_refuses_old_tls(host):
    """Not the client: the journal says why."""
    assert "unsupported protocol" in host.check_output("journalctl --unit dovecot --no-pager --since -2min")
