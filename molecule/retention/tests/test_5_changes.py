"""Changed policies, bad input, erasure, and a role that is switched off."""

from __future__ import annotations

import os
import pty
import subprocess

import clients
import pytest
from lane import FOLDER, PROJECT

pytestmark = pytest.mark.requirement("OPS-1")

ADA = "ada@letterlock.test"
LEAVING = "leaving@letterlock.test"


def policy(**raw: object) -> list[dict]:
    """Return a list of one policy."""
    return [{"name": "p", "mailboxes": ["INBOX"], "keep_for": "30d", **raw}]


REFUSED = {
    "an unknown special use": (policy(mailboxes=["\\Trsh"]), "did you mean \\Trash?"),
    "a misspelt folder": (policy(mailboxes=["Trassh"]), "did you mean Trash?"),
    "an absurd duration": (policy(keep_for="-1d"), "is not a duration such as 24h, 30d, 12w or 1y"),
    "shorter than its own grace": (policy(keep_for="1d", pop3={"expunge_after": "2d"}), "before its grace has passed"),
    "an account that doesn't exist": (policy(accounts=["adda@letterlock.test"]), "did you mean ada@letterlock.test?"),
    "a contradiction": (
        [{"name": name, "pop3": {"after_fetch": name}} for name in ("keep", "expunge")], "contradict each other on POP3",
    ),
}


@pytest.mark.any_format
@pytest.mark.parametrize("case", REFUSED)
def test_bad_policies_are_refused(host, mail, site, case):
    """By name, before anything changes."""
    policies, saying = REFUSED[case]
    before = host.check_output("readlink /etc/letterlock/dovecot/current")
    run = site.run(mail_retention_policies=policies)
    assert run.code != 0
    assert saying in run.output, run.output
    assert run.changed(mail.host["name"]) == 0
    assert host.check_output("readlink /etc/letterlock/dovecot/current") == before


@pytest.mark.any_format
def test_a_hold_on_nobody_is_refused(site):
    """So is a day that is none."""
    run = site.run(mail_retention_holds=[{"name": "x", "accounts": ["nobody@letterlock.test"], "saved_since": "soon"}])
    assert run.code != 0
    assert "there is no account nobody@letterlock.test" in run.output, run.output
    assert "'soon' is not a day" in run.output


@pytest.mark.any_format
def test_a_schedule_that_is_none_is_refused(host, site):
    """Before the swap: the old timer waits on."""
    before = host.check_output("readlink /etc/letterlock/dovecot/current")
    run = site.run(mail_retention_schedule="nonsense")
    assert run.code != 0
    assert "OnCalendar=nonsense is no moment that systemd knows" in run.output, run.output
    assert host.check_output("readlink /etc/letterlock/dovecot/current") == before
    assert host.check_output("systemctl is-active letterlock-retention.timer") == "active"


@pytest.mark.requirement("RET-5")
def test_a_policy_that_became_stricter_needs_somebody_to_look(store, site):
    """Even one message; a looser one doesn't."""
    store.save(ADA, "Trash", 20, "strict")
    store.run()
    assert "strict" in store.subjects(ADA, "Trash")
    holds = [{"name": "case-2", "accounts": ["part@letterlock.test"], "addresses": ["witness@example.org"]}]
    site.converge(mail_retention_policies=[{"name": "trash", "mailboxes": ["\\Trash"], "keep_for": "10d"}], mail_retention_holds=holds)
    refused = store.letterlock("retention run")
    assert refused.rc == 2, refused
    assert "the policies let more go" in refused.stderr
    assert "strict" in store.subjects(ADA, "Trash")
    site.converge(mail_retention_policies=[{"name": "trash", "mailboxes": ["\\Trash"], "keep_for": "60d"}], mail_retention_holds=holds)
    assert store.letterlock("retention run").rc == 0
    assert "strict" in store.subjects(ADA, "Trash")
    site.converge()


# Mail is sealed with a public key; the private one is nowhere.
SEALED = [
    {"name": "mail_plugins", "value": "quota zlib acl lazy_expunge mail_crypt", "dovecot": "2.3"},
    {"section": "plugin", "name": "mail_crypt_global_public_key", "value": "</etc/letterlock/test.pub", "dovecot": "2.3"},
    {"section": "plugin", "name": "mail_crypt_save_version", "value": "2", "dovecot": "2.3"},
    {"section": "mail_plugins", "name": "mail_crypt", "value": "yes", "dovecot": "2.4"},
    {"name": "crypt_global_public_key_file", "value": "/etc/letterlock/test.pub", "dovecot": "2.4"},
]


@pytest.mark.requirement("RET-1", "REST-1")
def test_sealed_mail_goes_without_its_key(host, store, site):
    """Only dates, sizes and flags are looked at; what can't be read expires all the same, and is recorded."""
    host.check_output("openssl ecparam -name prime256v1 -genkey -noout | openssl pkey -pubout -out /etc/letterlock/test.pub")
    site.converge(dovecot_settings=SEALED)
    store.save(ADA, "Junk", 31, "sealed-old")
    store.save(ADA, "Junk", 1, "sealed-young")
    unreadable = host.run(f"doveadm fetch -u {ADA} text mailbox Junk ALL")
    assert "Private key not available" in unreadable.stderr, unreadable
    store.run()
    assert host.check_output(f"doveadm -f tab fetch -u {ADA} uid mailbox Junk ALL | tail -n +2 | wc -l") == "1"
    assert [line["mailbox"] for line in store.ledger() if line["kind"] == "expunge"][-1] == "Junk"
    host.check_output(f"doveadm expunge -u {ADA} mailbox Junk ALL")
    site.converge()


def erase(mail, account: str, confirmation: str, *arguments: str) -> tuple[int, str]:
    """Run the operator's playbook, type the answers to its questions, and return (exit code, output)."""
    scenario = os.environ["MOLECULE_SCENARIO_DIRECTORY"]
    inventories = [f"{PROJECT}/inventories/lab", f"{PROJECT}/molecule/shared/inventory", f"{scenario}/inventory"]
    command = ["ansible-playbook", *(f"--inventory={path}" for path in inventories)]
    command += [f"--limit={mail.host['name']}", *arguments, f"{PROJECT}/playbooks/erase_account.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": f"{PROJECT}/ansible.cfg", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    terminal, other_end = pty.openpty()
    try:
        os.write(terminal, f"{account}\n{confirmation}\n".encode())
        done = subprocess.run(
            command, env=environment, cwd=PROJECT, text=True, check=False, stdin=other_end, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=300, start_new_session=True,
        )
    finally:
        os.close(terminal)
        os.close(other_end)
    return done.returncode, done.stdout


@pytest.mark.requirement("RET-6")
def test_erasure(host, store, mail, declared):
    """Not unconfirmed, not while the account exists, not under hold; then all of it goes, and the ledger says so."""
    store.save(LEAVING, "INBOX", 0, "private")
    store.save(LEAVING, "Sent", 0, "more")
    home = f"{declared['mail_root']}/letterlock.test/leaving"
    for account, confirmation, saying in (
        (LEAVING, "someone@letterlock.test", "its name was not confirmed"),
        (LEAVING, LEAVING, "it still exists"),
        ("part@letterlock.test", "part@letterlock.test", "it is under a legal hold"),
    ):
        code, said = erase(mail, account, confirmation)
        assert code != 0
        assert saying in said, said
        assert host.file(home).is_directory
    users = [{"name": user, "password": mail.accounts[user]} for user in mail.accounts if user != LEAVING]
    gone = FOLDER / f"erase-{mail.host['name']}.json"
    gone.write_text(clients.json.dumps({"mail_accounts_users": [*users, {"name": LEAVING, "state": "absent"}]}))
    try:
        code, said = erase(mail, LEAVING, LEAVING, "--extra-vars", f"@{gone}")
    finally:
        gone.unlink()
    assert code == 0, said
    assert "copies in backups:" in said
    assert not host.file(home).exists
    assert not host.check_output(f"find {declared['mail_root']} -name '.letterlock-erased*'")
    assert host.run(f"grep -q {LEAVING} /var/lib/letterlock/oldest.json").rc != 0
    erased = [line for line in store.ledger() if line["kind"] == "erase"]
    assert erased[-1]["account"] == LEAVING
    assert erased[-1]["files"] > 0
    assert store.letterlock("ledger verify").rc == 0


@pytest.mark.any_format
@pytest.mark.requirement("OPS-3")
def test_a_role_that_is_switched_off_leaves_nothing_behind(host, mail, site):
    """No unit, no relay, no plugin; and it comes back."""
    site.converge(mail_retention_policies=[], mail_retention_holds=[])
    assert host.run("systemctl cat letterlock-retention.timer letterlock-fetched.path").rc != 0
    assert not host.check_output("find /etc/systemd/system -name 'letterlock-*'")
    assert not host.check_output("systemctl list-units --all --no-legend 'letterlock-*.timer' 'letterlock-*.path'")
    configuration = host.check_output("cat /etc/letterlock/dovecot/current/dovecot.conf")
    assert "pop3-session" not in configuration
    assert "lazy_expunge" not in configuration
    with clients.pop3(*mail.login(ADA)) as client:
        assert client.stat()
    assert site.converge(mail_retention_policies=[], mail_retention_holds=[]).changed(mail.host["name"]) == 0
    site.converge()
    assert host.check_output("systemctl is-active letterlock-fetched.path") == "active"


@pytest.mark.any_format
@pytest.mark.requirement("OPS-3")
def test_nothing_to_do_changes_nothing(site, mail):
    """A second run, and check mode after it."""
    assert site.converge().changed(mail.host["name"]) == 0
    run = site.run("--check", "--diff")
    assert run.code == 0
    assert run.changed(mail.host["name"]) == 0, run.output
