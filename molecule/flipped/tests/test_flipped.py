"""The other choices hold as well as the defaults."""

from __future__ import annotations

import imaplib
import shlex
from pathlib import Path

import clients
import messages
import pytest

pytestmark = pytest.mark.requirement("OPS-3")

# Speaks LMTP on the host's own unix socket, as an MTA there would.
LMTP = "import smtplib,sys; c=smtplib.LMTP('/run/dovecot/lmtp'); print(c.sendmail('s@example.org',[sys.argv[1]],sys.stdin.buffer.read()))"


def deliver(host, recipient: str, message: bytes):
    """Deliver over the unix socket."""
    command = f"python3 -c {shlex.quote(LMTP)} {recipient}"
    return host.run(f"printf %s {shlex.quote(message.decode())} | {command}")


@pytest.mark.requirement("LOSS-2")
def test_delivery_over_the_unix_socket(host, mail):
    """Mail comes in through the socket, lies in a Maildir and comes back over both protocols."""
    message = messages.multipart()
    assert deliver(host, mail.user, message).rc == 0
    for reader in (clients.imap_messages, clients.pop3_messages):
        assert message in [clients.without_trace(found) for found in reader(*mail.login())]
    local, domain = mail.user.split("@")
    assert host.check_output(f"find /srv/post/{domain}/{local}/Maildir -path '*/new/*' -o -path '*/cur/*' -type f")
    assert host.file("/srv/post").user == "post"
    assert host.check_output("stat --format '%U %G %a' /run/dovecot/lmtp") == "root mail 660"


@pytest.mark.requirement("LOSS-2")
def test_a_message_over_the_limit_is_refused(mail):
    """IMAP's APPEND is held to dovecot_message_size_max, too."""
    with clients.imap(*mail.login()) as client:
        assert client.append("INBOX", None, None, messages.with_attachment(21 * 1024 * 1024))[0] == "NO"


@pytest.mark.requirement("AUTH-1", "AUTH-3")
def test_given_hash_and_disabled_account(host, mail):
    """A given hash opens its account; a disabled account gets mail and no session; an absent one gets neither."""
    with clients.imap(mail.host, mail.ca_file, "hash@letterlock.test", "a hash was given") as client:
        assert client.select()[0] == "OK"
    with pytest.raises(imaplib.IMAP4.error), clients.imap(mail.host, mail.ca_file, "off@example.test", "nothing opens it"):
        pass
    assert deliver(host, "off@example.test", messages.empty_body()).rc == 0
    refused = deliver(host, "gone@example.test", messages.empty_body())
    assert refused.rc != 0
    assert "550" in refused.stderr


@pytest.mark.requirement("SURF-3")
def test_folders_and_capabilities(mail):
    """Only the named folders are there, and what is hidden is not offered."""
    with clients.imap(*mail.login()) as client:
        names = {line.decode().rsplit(" ", 1)[1].strip('"') for line in client.list()[1]}
        capabilities = set(client.capability()[1][0].decode().split())
    assert names == {"INBOX", "Sent", "Ablage"}
    assert not capabilities & {"NOTIFY", "CATENATE", "COMPRESS=DEFLATE"}
    assert "MOVE" in capabilities


@pytest.mark.requirement("TLS-4")
def test_the_given_certificate_is_served(host, mail):
    """The chain is the operator's, and its key lies under a name of its own, root's alone."""
    given = Path(mail.ca_file).parent / f"{mail.host['name']}.crt"
    assert host.file("/etc/letterlock/dovecot/current/certificate.pem").content_string.strip() == given.read_text().strip()


def test_raw_settings_reach_dovecot(host):
    """The escape hatch is rendered for the series that it names."""
    assert "3 mins" in host.check_output("doveconf -f protocol=imap imap_idle_notify_interval")
    assert "g" in host.check_output("doveconf pop3_uidl_format")


@pytest.mark.requirement("LOSS-1")
def test_stale_maildir_locks_are_gone_after_a_start(host, mail):
    """What a power cut leaves doesn't block a mailbox for two minutes."""
    local, domain = mail.user.split("@")
    lock = f"/srv/post/{domain}/{local}/Maildir/dovecot-uidlist.lock"
    host.check_output(f"touch {lock}")
    host.check_output("systemctl restart dovecot")
    assert not host.file(lock).exists
