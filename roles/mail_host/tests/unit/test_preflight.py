"""What is refused, and with which words."""

from __future__ import annotations

import pytest
from roles_loader import load

plugin = load("mail_host/action_plugins/mail_preflight.py")
preflight = load("mail_host/preflight.py")
KNOWN = {"dovecot_protocols", "dovecot_listen", "mail_tls_names"}
ROLES = ["dovecot", "mail_tls"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("dovecot_protocls", "did you mean 'dovecot_protocols'?"),
        ("dovecto_protocols", "did you mean 'dovecot_protocols'?"),
        ("mail_tls_name", "did you mean 'mail_tls_names'?"),
        ("dovecot_zzz", "see the README's reference"),
    ],
)
def test_unknown_variables_are_refused_with_a_suggestion(name, fault):
    """A typo after the prefix, and one in it."""
    assert fault in plugin.unknown_variables([name], KNOWN, ROLES)[0]


def test_other_variables_are_none_of_our_business():
    """Inventories hold more than this kit's variables."""
    assert plugin.unknown_variables(["postfix_domain", "ansible_host", "__dovecot_x", *KNOWN], KNOWN, ROLES) == []


@pytest.mark.parametrize(
    ("release", "version", "refused"),
    [(("debian", "12"), "2.3.19.1", False), (("debian", "13"), None, False), (("debian", "11"), "2.3.13", True),
     (("ubuntu", "24.04"), "2.3.21", True), (("debian", "13"), "2.5.0", True)],
)
def test_releases(release, version, refused):
    """Only what the tests run on is served."""
    host = {"release": {"id": release[0], "version": release[1]}, "dovecot": {"version": version}}
    assert bool(preflight.faults({}, host)) is refused
