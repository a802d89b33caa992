"""Keys by playbook; an account that gets another name, and one whose keys are destroyed."""

from __future__ import annotations

import clients
import pytest
from scanning import message

pytestmark = pytest.mark.requirement("REST-3")

ADA, BOB, EVE, EVA = "ada@letterlock.test", "bob@letterlock.test", "eve@letterlock.test", "eva@letterlock.test"
PLAYBOOK = "playbooks/keys.yml"


def test_the_playbook_says_how_it_stands(site):
    """Of all hosts, and changes nothing; what needs an account insists on one."""
    run = site.run(playbook=PLAYBOOK)
    assert run.code == 0, run.output
    assert f"{ADA}: keys" in run.output
    assert " changed=0 " in run.output
    refused = site.run(playbook=PLAYBOOK, keys_command="rotate")
    assert refused.code != 0
    assert "rotate needs keys_account" in refused.output
    refused = site.run(playbook=PLAYBOOK, keys_command="rotate", keys_account=ADA)
    assert "rotate asks for password" in refused.output, refused.output


@pytest.mark.requirement("SEC-2", "REST-3")
def test_the_playbook_changes_passwords(site, mail, keys, tmp_path):
    """A secret is in no output of it; what is told once is in a file that its operator alone reads."""
    own = mail.accounts[EVE]
    mail.deliver(EVE, message("kept"))
    run = site.run("-vvv", "--diff", playbook=PLAYBOOK, keys_command="password", keys_account=EVE, keys_secrets=[own, "by-the-playbook"])
    assert run.code == 0, run.output
    assert "by-the-playbook" not in run.output.replace("--extra-vars", "")
    run = site.run(
        playbook=PLAYBOOK, keys_command="app-password", keys_account=EVE, keys_options=["phone"], keys_secrets=["by-the-playbook"],
        keys_output=str(tmp_path / "keys"),
    )
    assert run.code == 0, run.output
    (file,) = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    phone = file.read_text().splitlines()[-1]
    assert phone not in run.output
    assert keys.texts(EVE, phone)
    run = site.run(playbook=PLAYBOOK, keys_command="password", keys_account=EVE, keys_secrets=["by-the-playbook", own])
    assert run.code == 0, run.output
    assert keys.texts(EVE, own)


def test_another_name(host, mail, keys, site):
    """Its mail comes along and opens by the same password; the old name is nobody's."""
    own = mail.accounts[EVE]
    before = keys.texts(EVE, own)
    assert keys.run(f"rename {EVE} {EVA}", "guess").rc == 2
    assert keys.run(f"rename {EVE} {BOB}", own).rc == 2
    keys.done(f"rename {EVE} {EVA}", own)
    accounts = [{"name": EVA if name == EVE else name, "password": password} for name, password in mail.accounts.items()]
    names = {"mail_accounts_users": accounts, "mail_crypt_accounts": [ADA, BOB, EVA]}
    site.converge(**names)
    assert keys.texts(EVA, own) == before
    mail.deliver(EVA, message("to the new name"))
    assert b"Subject: to the new name" in keys.texts(EVA, own)[-1]
    assert not keys.lets_in(EVE, own)
    with pytest.raises(clients.smtplib.SMTPException, match="550"):
        mail.deliver(EVE, message("to the old one"))
    assert site.converge(**names).changed(mail.host["name"]) == 0
    keys.done(f"rename {EVA} {EVE}", own)
    site.converge()
    assert len(keys.texts(EVE, own)) == len(before) + 1
    assert not host.run("grep -r -l eva@ /var/lib/letterlock/keys").stdout


def test_keys_are_destroyed(host, mail, keys):
    """And with them the mail: nobody logs in, what comes in is deferred, and the ledger says so. The others notice nothing."""
    mail.deliver(BOB, message("to be lost"))
    assert keys.run(f"discard {BOB} --confirm {ADA}").rc == 2
    assert keys.texts(BOB, mail.accounts[BOB])
    keys.done(f"discard {BOB} --confirm {BOB}")
    assert not keys.lets_in(BOB, mail.accounts[BOB])
    with pytest.raises(clients.smtplib.SMTPException, match="451"):
        mail.deliver(BOB, message("too late"))
    assert keys.files(BOB)
    assert "NO KEYS" in keys.run(f"status {BOB}").stdout
    assert '"action":"discarded"' in host.check_output("cat /var/lib/letterlock/ledger/*.jsonl").replace(" ", "")
    mail.deliver(ADA, message("as before"))
    assert b"Subject: as before" in keys.texts(ADA, mail.accounts[ADA])[-1]
