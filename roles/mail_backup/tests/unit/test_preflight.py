"""What a backup is refused for."""

from __future__ import annotations

import pytest
from roles_loader import load

preflight = load("mail_backup/preflight.py")
GOOD = {
    "mail_backup_repository": "rest:https://backup.example.org/host", "mail_backup_password": "x" * 24, "mail_backup_escrow": "the safe",
    "mail_backup_pruner_password": "", "mail_backup_ca_file": "", "mail_tls_source": "private_ca", "mail_tls_ca_directory": "/made/later",
    "mail_backup_environment": {"RESTIC_REST_USERNAME": "host"}, "mail_backup_schedule": "daily", "mail_backup_check_schedule": "weekly",
    "mail_backup_randomized_delay": "1h", "mail_backup_metrics_file": "/var/lib/x.prom", "mail_backup_keep_for": "30d",
    "mail_backup_gone_after": "", "mail_backup_check_percent": 10, "mail_backup_upload_limit": 0, "dovecot_mailboxes": {},
    "mail_retention_policies": [
        {"name": "year", "mailboxes": ["*"], "keep_for": "1y"}, {"name": "trash", "mailboxes": ["T"], "keep_for": "30d"},
    ],
}
REFUSED = {
    "a password that is guessed": ({"mail_backup_password": "secret"}, "mail_backup_password: must have at least 16"),
    "a pruner's password that is guessed": ({"mail_backup_pruner_password": "secret"}, "mail_backup_pruner_password: must have"),
    "no escrow": ({"mail_backup_escrow": " "}, "mail_backup_escrow: say where"),
    "a relative path": ({"mail_backup_repository": "backup/host"}, "is neither an absolute path nor"),
    "a line break": ({"mail_backup_environment": {"AWS_KEY": "a\nB=c"}}, "mail_backup_environment: AWS_KEY"),
    "the password twice": ({"mail_backup_environment": {"RESTIC_PASSWORD": "x"}}, "RESTIC_PASSWORD: set by mail_backup_password"),
    "an absurd duration": ({"mail_backup_keep_for": "forever"}, "mail_backup_keep_for: 'forever' is not a duration"),
    "a promise that is broken": ({"mail_backup_gone_after": "1y"}, "policy 'year' is gone from all backups only after 396d"),
    "a promise without a policy": ({"mail_backup_gone_after": "1y", "mail_retention_policies": []}, "nothing is ever gone"),
    "a CA that is not there": ({"mail_backup_ca_file": "/nowhere/ca.crt"}, "mail_backup_ca_file: there is no file /nowhere/ca.crt"),
    "a CA that nobody makes": (
        {"mail_backup_ca_file": "/made/later/ca.crt", "mail_tls_source": "given"}, "mail_backup_ca_file: there is no file",
    ),
    "no share": ({"mail_backup_check_percent": 0}, "not a share in percent"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """By the variable's name."""
    news, saying = REFUSED[case]
    found = preflight.faults({**GOOD, **news}, {})
    assert len(found) == 1
    assert saying in found[0]


@pytest.mark.parametrize("news", [
    {}, {"mail_backup_gone_after": "2y"}, {"mail_backup_repository": "", "mail_backup_password": ""},
    {"mail_backup_ca_file": "/made/later/ca.crt"},
])
def test_good(news):
    """A promise that holds, no backup at all, and the kit's own CA before the first run has made it."""
    assert preflight.faults({**GOOD, **news}, {}) == []
