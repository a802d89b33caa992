"""The host goes from Debian 12 to 13, and its mail from Dovecot 2.3 to 2.4; docs/operations.md has these steps."""

from __future__ import annotations

import pytest
from scanning import message

EVE = "eve@letterlock.test"
UPGRADE = """
systemctl mask --now dovecot.service
sed -i s/bookworm/trixie/ /etc/apt/sources.list
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
apt-get --yes --quiet --option Dpkg::Options::=--force-confold full-upgrade >/root/upgrade.log 2>&1
"""


@pytest.mark.requirement("LOSS-4", "REST-3")
def test_the_next_release_opens_the_mail_with_the_same_keys(host, mail, keys, site, reboot):
    """With the password that opened it before, the same messages under the same UIDs; new mail is for the same key."""
    if mail.host["name"] != "deb12":
        pytest.skip("there is no newer release for this host")
    own = mail.accounts[EVE]
    mail.deliver(EVE, message("from before"))
    before, pairs = keys.texts(EVE, own), keys.done(f"status {EVE}")
    uids = host.check_output(f"doveadm -f tab fetch -u {EVE} 'uid guid flags date.saved' mailbox INBOX")
    host.check_output(UPGRADE)
    reboot()
    host.check_output("systemctl unmask dovecot.service")
    assert host.check_output("cat /etc/debian_version").startswith("13")
    site.converge()
    assert host.check_output("dovecot --version").startswith("2.4")
    assert keys.texts(EVE, own) == before
    assert host.check_output(f"doveadm -f tab fetch -u {EVE} 'uid guid flags date.saved' mailbox INBOX") == uids
    assert keys.done(f"status {EVE}") == pairs
    mail.deliver(EVE, message("from after"))
    assert b"Subject: from after" in keys.texts(EVE, own)[-1]
    assert all(host.run(f"grep -a -q CRYPTED {file}").rc == 0 for file in keys.files(EVE))
    assert site.converge().changed(mail.host["name"]) == 0
    assert host.check_output("systemctl --failed --no-legend --plain") == ""
