"""Day-2 changes take hold at once and lose nothing."""

from __future__ import annotations

import imaplib
import smtplib
import socket
import ssl

import argon2
import clients
import messages
import pytest
from conftest import wait_for

pytestmark = pytest.mark.requirement("OPS-3")


def serial(mail, port: str = "imaps_port") -> str:
    """Return the certificate that the running server shows, by a handshake."""
    context = clients.tls_context(mail.ca_file)
    with socket.create_connection((mail.host["address"], mail.host[port]), timeout=10) as plain, context.wrap_socket(
        plain, server_hostname=mail.host["address"]
    ) as stream:
        return stream.getpeercert()["serialNumber"]


def uidls(mail) -> list[bytes]:
    """Return the maildrop's unique ids."""
    with clients.pop3(*mail.login()) as client:
        return [line.split()[1] for line in client.uidl()[1]]


def assert_ended(client: imaplib.IMAP4_SSL) -> None:
    """Fail unless the host has ended the session; the first command may still meet its farewell."""
    for _ in range(3):
        try:
            client.noop()
        except (imaplib.IMAP4.abort, OSError):
            return
    pytest.fail("the session goes on")


def is_open(mail, port: str) -> bool:
    """Tell whether a TLS session can be had on the port."""
    try:
        with socket.create_connection((mail.host["address"], mail.host[port]), timeout=5) as plain:
            ssl.create_default_context(cafile=mail.ca_file).wrap_socket(plain, server_hostname=mail.host["address"]).close()
    except OSError:
        return False
    return True


@pytest.mark.requirement("SURF-1")
def test_a_protocol_goes_and_comes_back_with_the_mail(host, mail, site):
    """Switched off it is removed and closed; switched on again the same mail is there under the same ids."""
    mail.deliver(mail.user, messages.multipart())
    before = uidls(mail)
    site.converge(dovecot_protocols=["imap"])
    assert not host.package("dovecot-pop3d").is_installed
    assert not is_open(mail, "pop3s_port")
    assert site.converge(dovecot_protocols=["imap"]).changed(mail.host["name"]) == 0
    site.converge(dovecot_protocols=["pop3"])
    assert not host.package("dovecot-imapd").is_installed
    assert not is_open(mail, "imaps_port")
    site.converge()
    assert uidls(mail) == before
    assert messages.multipart() in [clients.without_trace(found) for found in clients.imap_messages(*mail.login())]


@pytest.mark.requirement("TLS-4")
def test_a_changed_certificate_is_what_the_running_server_shows(host, mail, site):
    """Renewal before the end, and a changed list of names, both end in a new handshake."""
    first = serial(mail)
    keys = host.check_output("sha256sum /etc/letterlock/tls/*/key.pem").splitlines()
    renewed = site.converge(mail_tls_renew_before_days=91, mail_tls_days=92)
    assert serial(mail) != first, renewed.output
    assert serial(mail, "pop3s_port") == serial(mail)
    names = [f"{mail.host['name']}.letterlock.test", mail.host["address"], "another.letterlock.test"]
    second = serial(mail)
    site.converge(mail_tls_names=names)
    assert serial(mail) != second
    assert host.check_output("sha256sum /etc/letterlock/tls/*/key.pem").splitlines() != keys
    site.converge()


@pytest.mark.requirement("AUTH-3")
def test_an_account_that_is_disabled_or_removed_loses_its_sessions(host, mail, site):
    """At once: open sessions end, new ones are refused; mail stays until the operator says to delete it."""
    name, password = "guest@letterlock.test", "a guest's password"
    accounts = [{"name": user, "password": secret} for user, secret in mail.accounts.items()]
    guest = {"name": name, "password": password}
    login = (mail.host, mail.ca_file, name, password)
    site.converge(mail_accounts_users=[*accounts, guest])
    mail.deliver(name, messages.empty_body())

    for state in ("disabled", "absent"):
        site.converge(mail_accounts_users=[*accounts, guest])
        client = imaplib.IMAP4_SSL(
            mail.host["address"], mail.host["imaps_port"], ssl_context=clients.tls_context(mail.ca_file), timeout=30
        )
        client.login(name, password)
        client.select()
        with clients.imap(*mail.login()) as other:
            site.converge(mail_accounts_users=[*accounts, {**guest, "state": state}])
            assert_ended(client)
            assert other.noop()[0] == "OK"
        with pytest.raises(imaplib.IMAP4.error), clients.imap(*login):
            pass
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        mail.deliver(name, messages.empty_body())

    home = "/srv/mail/letterlock.test/guest"
    assert host.file(home).is_directory
    gone = {"name": name, "state": "absent", "delete_mail": True}
    check = site.run("--check", "--diff", mail_accounts_users=[*accounts, gone])
    assert home in check.output
    assert host.file(home).is_directory
    site.converge(mail_accounts_users=[*accounts, gone])
    assert not host.file(home).exists
    assert f"erased {home}" in host.check_output("journalctl --identifier letterlock --no-pager")
    assert site.converge(mail_accounts_users=[*accounts, gone]).changed(mail.host["name"]) == 0
    site.converge()


@pytest.mark.requirement("RET-5")
def test_a_ceiling_stops_a_mass_erasure(host, mail, site):
    """More accounts at once than mail_accounts_erase_max are refused, whatever typo asked for it."""
    accounts = [{"name": user, "password": secret} for user, secret in mail.accounts.items()]
    for user in mail.accounts:
        mail.deliver(user, messages.empty_body())
    run = site.run(mail_accounts_users=[{"name": account["name"], "state": "absent", "delete_mail": True} for account in accounts],
                   mail_accounts_erase_max=1)
    assert run.code != 0
    assert "mail_accounts_erase_max" in run.output
    assert host.file("/srv/mail/letterlock.test/ada").is_directory


@pytest.mark.requirement("AUTH-3")
def test_a_changed_password_ends_the_sessions_of_the_old_one(mail, site):
    """The old password opens nothing, and whoever was in with it is out."""
    changed = "an altogether new password"
    accounts = [{"name": user, "password": secret} for user, secret in mail.accounts.items()]
    accounts[0] = {**accounts[0], "password": changed}
    client = imaplib.IMAP4_SSL(mail.host["address"], mail.host["imaps_port"], ssl_context=clients.tls_context(mail.ca_file))
    client.login(mail.user, mail.accounts[mail.user])
    site.converge(mail_accounts_users=accounts)
    assert_ended(client)
    with pytest.raises(imaplib.IMAP4.error), clients.imap(*mail.login()):
        pass
    with clients.imap(mail.host, mail.ca_file, mail.user, changed) as again:
        assert again.select()[0] == "OK"
    site.converge()
    wait_for(lambda: uidls(mail))


@pytest.mark.requirement("OPS-2")
def test_a_change_while_accounts_are_asked_for_all_the_time(host, mail, site):
    """As where mail comes in: auth, which looks for a new account once a second, has just looked when the probe logs in."""
    host.check_output(f"systemd-run --quiet --unit busy sh -c 'for n in $(seq 6000); do doveadm user {mail.user}; sleep 0.05; done'")
    try:
        for number in (11, 12):
            site.converge(dovecot_settings=[{"name": "mail_max_keyword_length", "value": str(number * 10)}])
        accounts = [{"name": user, "password": secret, "quota": "5G"} for user, secret in mail.accounts.items()]
        site.converge(mail_accounts_users=accounts)
    finally:
        host.check_output("systemctl stop busy")
    site.converge()


@pytest.mark.requirement("SEC-2")
def test_secrets_reach_no_process_list(host, mail, site):
    """While a password is changed, no process on the host has it, or its hash, among its arguments."""
    secret = "to-be-seen-nowhere"
    accounts = [{"name": user, "password": password} for user, password in mail.accounts.items()]
    process = site.start(mail_accounts_users=[*accounts, {"name": "guest@letterlock.test", "password": secret}])
    seen = ""
    while process.poll() is None:
        seen += host.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "python3" in seen
    for text in (seen, output, host.check_output("journalctl --no-pager --output cat")):
        assert secret not in text
        assert "$argon2id$" not in text
    site.converge()


@pytest.mark.requirement("AUTH-4")
def test_two_thousand_sessions_at_once(host, mail, site):
    """Logged in, each in processes of its own; the distribution's default stops at 100 and lets the next one hang."""
    wanted, user, password = 2000, "many@letterlock.test", "many"
    # The cheapest hash there is: 2,000 logins at the default's cost would measure ARGON2ID.
    cheap = "{ARGON2ID}" + argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(password)
    accounts = [{"name": name, "password": secret} for name, secret in mail.accounts.items()]
    site.converge(
        mail_accounts_users=[*accounts, {"name": user, "password_hash": cheap}], mail_accounts_argon2id_memory_minimum=8,
        dovecot_sessions_per_account_and_address=wanted,
    )
    context = clients.tls_context(mail.ca_file)
    opened = []
    try:
        for _ in range(wanted):
            client = imaplib.IMAP4_SSL(mail.host["address"], mail.host["imaps_port"], ssl_context=context, timeout=60)
            opened.append(client)
            client.login(user, password)
        assert len(opened) == wanted
        assert int(host.check_output("pgrep --count --full --exact 'dovecot/imap'")) >= wanted
        # The first still answers, and another account still gets in.
        assert opened[0].noop()[0] == "OK"
        with clients.imap(*mail.login()) as client:
            assert client.select()[0] == "OK"
    finally:
        for client in opened:
            client.shutdown()
    wait_for(lambda: int(host.run("pgrep --count --full dovecot/imap").stdout) < 100, 60)
    site.converge()
