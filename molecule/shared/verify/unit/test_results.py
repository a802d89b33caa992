"""What a test came to belongs to its host, whatever else it is parametrized by."""

from __future__ import annotations

import pytest
import results


@pytest.mark.parametrize(("nodeid", "host"), [
    ("t.py::test_a[ssh://deb12]", "deb12"), ("t.py::test_a[ssh://deb12-AES128-GCM-SHA256]", "deb12"),
    ("t.py::test_a[ssh://mail-1-imap]", "mail-1"), ("t.py::test_a[ssh://mail.example.org-pop3]", "mail.example.org"),
])
def test_the_host_of_a_test(nodeid, host):
    """Names with dashes among them."""
    assert results.host_in(nodeid, ["mail", "deb12", "mail-1", "mail.example.org"]) == host
