"""What mail_fail2ban refuses before anything changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from roles_loader import load

preflight = load("mail_fail2ban/preflight.py", "mail_fail2ban_preflight")
DEFAULTS = yaml.safe_load((Path(__file__).resolve().parents[2] / "defaults" / "main.yml").read_text())
ON = {**DEFAULTS, "mail_fail2ban_enabled": True}


def test_good_variables():
    """The defaults hold, and nothing is asked while the role is off."""
    assert preflight.faults(ON, {}) == []
    assert preflight.faults({**DEFAULTS, "mail_fail2ban_max_retry": 0}, {}) == []
    assert preflight.faults({**ON, "mail_fail2ban_ignore_networks": ["192.0.2.0/24", "2001:db8::1"]}, {}) == []


@pytest.mark.parametrize(("name", "value", "said"), [
    ("mail_fail2ban_max_retry", 0, "1 or more"),
    ("mail_fail2ban_find_time", "soon", "is not a"),
    ("mail_fail2ban_find_time", "500ms", "less than a second"),
    ("mail_fail2ban_ban_time", "8d", "longer than mail_fail2ban_ban_time_max"),
    ("mail_fail2ban_ignore_networks", ["0.0.0.0/0"], "is everybody"),
    ("mail_fail2ban_ignore_networks", ["office"], "'office'"),
    ("mail_fail2ban_ignore_networks", ["192.0.2.1/24"], "host bits"),
])
def test_each_fault_names_its_variable(name, value, said):
    """One fault, with the variable's name and what is wrong."""
    (fault,) = preflight.faults({**ON, name: value}, {})
    assert fault.startswith(name)
    assert said in fault
