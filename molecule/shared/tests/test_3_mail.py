"""Mail that is taken in is given back unharmed; mail that is not is refused with a reason."""

from __future__ import annotations

import smtplib
import socket

import clients
import messages
import pytest

pytestmark = pytest.mark.requirement("LOSS-2")

BIG_ATTACHMENT_BYTES = 50 * 1024 * 1024


@pytest.fixture(autouse=True)
def _needs_lmtp(declared):
    """Deliver over TCP where the scenario has it; elsewhere test_socket_delivery covers delivery."""
    if not declared["lmtp_port"]:
        pytest.skip("this scenario delivers over the unix socket only")


def read_back(mail, declared: dict, user: str | None = None) -> dict[str, list[bytes]]:
    """Return the account's messages by protocol."""
    readers = {"imap": clients.imap_messages, "pop3": clients.pop3_messages}
    return {protocol: readers[protocol](*mail.login(user)) for protocol in declared["protocols"]}


def test_real_messages_come_back_byte_for_byte(mail, declared):
    """Multipart, megabytes, UTF-8 headers, 8 bit, long lines, an empty body: over each protocol as they were sent."""
    handful = messages.handful()
    for message in handful.values():
        mail.deliver(mail.user, message)
    for protocol, stored in read_back(mail, declared).items():
        bare = [clients.without_trace(message) for message in stored]
        for name, message in handful.items():
            assert message in bare, f"{protocol}: {name}"


def test_an_attachment_of_50_mb_goes_through(mail, declared):
    """70 MB on the wire, byte for byte."""
    message = messages.with_attachment(BIG_ATTACHMENT_BYTES)
    mail.deliver("grace@example.test", message)
    for protocol, stored in read_back(mail, declared, "grace@example.test").items():
        assert message in [clients.without_trace(found) for found in stored], protocol


def test_over_quota_is_a_clear_refusal(mail):
    """The answer is permanent and says why; the account's other mail is untouched."""
    with pytest.raises(smtplib.SMTPException) as refusal:
        mail.deliver("small@letterlock.test", messages.with_attachment())
    assert "552" in str(refusal.value), refusal.value
    assert "uota" in str(refusal.value), refusal.value
    mail.deliver("small@letterlock.test", messages.empty_body())


@pytest.mark.requirement("LOSS-2")
@pytest.mark.parametrize("recipient", ["nobody@letterlock.test", "ada@elsewhere.example", "letterlock-probe@localhost"])
def test_unknown_recipients_are_refused(mail, recipient):
    """What is not an account gets a 550, never a mailbox."""
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refusal:
        mail.deliver(recipient, messages.empty_body())
    assert refusal.value.recipients[recipient][0] == 550


@pytest.mark.requirement("TLS-6")
def test_lmtp_speaks_tls_only(mail):
    """A client that forgets TLS gets no greeting."""
    with socket.create_connection((mail.host["address"], mail.host["lmtp_port"]), timeout=10) as plain:
        plain.sendall(b"LHLO client\r\n")
        assert b"220" not in plain.recv(1000)


@pytest.mark.requirement("TLS-6")
def test_lmtp_is_reached_from_named_networks_only(host, mail, declared):
    """The host's own loopback is no named network: the same port that takes our mail drops its packets."""
    result = host.run(f"timeout 4 bash -c '</dev/tcp/127.0.0.1/{declared['lmtp_port']}'")
    assert result.rc == 124, result
    mail.deliver(mail.user, messages.empty_body())


def test_special_use_folders(mail, declared):
    """Clients find Drafts, Sent, Trash, Junk and Archive by their use, and names in UTF-8 work."""
    if "imap" not in declared["protocols"]:
        return
    with clients.imap(*mail.login()) as client:
        listed = b"\n".join(line for line in client.list()[1] if line).decode()
        for mailbox in declared["mailboxes"]:
            assert any(mailbox["special_use"] in line and mailbox["name"] in line for line in listed.splitlines()), listed
        name = '"Gr&APwA3w-e"'
        assert client.create(name)[0] == "OK"
        assert client.append(name, None, None, messages.utf8_headers())[0] == "OK"
        assert client.select(name)[1] == [b"1"]
        assert client.search(None, "TEXT", "Umlauten")[1] == [b"1"]
        client.close()
        assert client.delete(name)[0] == "OK"


def test_stored_mail_is_compressed(host, mail, declared):
    """Two megabytes of one line take a small part of that on the disk, and come back whole."""
    local, domain = mail.user.split("@")
    octets = f"du --summarize --bytes {declared['mail_root']}/{domain}/{local} | cut -f1"
    head = b"From: sender@example.org\r\nSubject: compresses well\r\n\r\n"
    message = head + b"the same line again and again\r\n" * 65536
    mail.deliver(mail.user, messages.empty_body())
    before = int(host.check_output(octets))
    mail.deliver(mail.user, message)
    assert int(host.check_output(octets)) - before < len(message) // 10
    for protocol, stored in read_back(mail, declared).items():
        assert message in [clients.without_trace(found) for found in stored], protocol
