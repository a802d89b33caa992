"""The filters that templates use; their docstrings hold examples, too, and those are run."""

from __future__ import annotations

from roles_loader import load

filters = load("dovecot/filter_plugins/dovecot.py")


def test_settings_of_another_series_are_left_out():
    """And nested sections are closed in order."""
    settings = [{"name": "a", "value": "1", "dovecot": "2.3"}, {"name": "mode", "value": "0600", "section": "service x/unix_listener y"}]
    assert filters.dovecot_settings_lines(settings, "2.4") == [
        "service x {", "  unix_listener y {", "    mode = 0600", "  }", "}",
    ]
    assert filters.dovecot_settings_lines(settings, "2.3")[0] == "a = 1"


def test_networks_are_collapsed_for_nftables():
    """Nftables refuses a set in which one network holds another."""
    assert filters.dovecot_networks_by_family(["10.0.0.0/8", "10.1.0.0/16", "::1/128"]) == {"ip": ["10.0.0.0/8"], "ip6": ["::1/128"]}
