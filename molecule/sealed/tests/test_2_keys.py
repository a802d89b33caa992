"""The life of a key: passwords change, are forgotten, are given to a phone and taken back, and the mail stays readable."""

from __future__ import annotations

import imaplib
import json
import shlex
import threading

import clients
import lane
import pytest
from scanning import message

pytestmark = pytest.mark.requirement("REST-3")

ADA, BOB, EVE = "ada@letterlock.test", "bob@letterlock.test", "eve@letterlock.test"
RING = "/var/lib/letterlock/keys/accounts/letterlock.test/{}.json"
PASSWORDS = ["x" * 1000, "pä:ss wörd = {PLAIN}", "ends with a blank "]
IDENTITY = lane.FOLDER / "passwords" / "age.txt"


def opens(keys, user: str, password: str) -> bool:
    """Tell whether *password* lets *user* in, and then reads all the mail there is."""
    if not keys.lets_in(user, password):
        return False
    found = keys.texts(user, password)
    assert found
    assert all(b"Subject: " in text for text in found)
    return True


@pytest.fixture
def own(mail, keys):
    """Return the password of EVE, whose mail is there; whatever a test did to it, it is as it was afterwards."""
    password = mail.accounts[EVE]
    mail.deliver(EVE, message("kept"))
    before = keys.host.check_output(f"cat {RING.format('eve')}")
    yield password
    keys.host.check_output(f"printf %s {shlex.quote(before)} >{RING.format('eve')}")
    keys.done("show")
    assert opens(keys, EVE, password)


@pytest.mark.parametrize("password", PASSWORDS)
def test_the_password_changes(keys, own, password):
    """To any that a client can send; an open session goes on, and the old one opens nothing."""
    with clients.imap(keys.mail.host, keys.mail.ca_file, EVE, own) as session:
        session.select("INBOX")
        keys.done(f"password {EVE}", own, password)
        assert session.fetch("1", "(BODY.PEEK[])")[0] == "OK"
    assert b"Subject: kept" in utf8_login(keys.mail, EVE, password)
    assert not opens(keys, EVE, own)


def utf8_login(mail, user: str, password: str) -> bytes:
    """Return the newest message, for a password that imaplib's login may be unable to send."""
    client = imaplib.IMAP4_SSL(mail.host["address"], mail.host["imaps_port"], ssl_context=clients.tls_context(mail.ca_file))
    client.authenticate("PLAIN", lambda _: f"\0{user}\0{password}".encode())
    client.select("INBOX", readonly=True)
    text = client.fetch("*", "(BODY.PEEK[])")[1][0][1]
    client.logout()
    return text


def test_no_password_is_changed_by_a_guess(keys, own):
    """Nor to nothing, to two lines, or to more than a client can send."""
    for lines in (("guess", "new"), (own, ""), (own,), (own, "x" * 1025), ("", "new")):
        refused = keys.run(f"password {EVE}", *lines)
        assert refused.rc == 2, refused
    assert keys.run("password nobody@letterlock.test", "a", "b").rc == 2
    assert opens(keys, EVE, own)


def test_two_changes_at_once(keys, own):
    """One after the other: one password is the account's, and it opens the mail."""
    ran = []
    changes = [
        threading.Thread(target=lambda new=new: ran.append((new, keys.run(f"password {EVE}", own, new).rc))) for new in ("first", "second")
    ]
    for change in changes:
        change.start()
    for change in changes:
        change.join()
    keys.done("show")
    assert sorted(code for _, code in ran) == [0, 2]
    assert [opens(keys, EVE, new) for new, _ in ran] == [code == 0 for _, code in ran]


def test_a_crash_in_the_middle_of_a_change(keys, own):
    """Between the keyring and what Dovecot reads: the old password opens, and from the next command on the new one."""
    slots = "/var/lib/letterlock/keys/dovecot"
    keys.host.check_output(f"rm -rf /root/before && cp -a {slots} /root/before")
    keys.done(f"password {EVE}", own, "new")
    keys.host.check_output(f"rm -rf {slots} && cp -a /root/before {slots}")
    keys.done("status")
    assert opens(keys, EVE, own)
    keys.done("show")
    assert opens(keys, EVE, "new")
    assert not opens(keys, EVE, own)


def test_a_forgotten_password_by_the_recovery_key(keys, own):
    """Which is printed once; a wrong one opens nothing, and a newer one ends it."""
    key = keys.done(f"recovery {EVE}", own)[-1]
    assert keys.run(f"reset {EVE} --recovery", "WRONG-KEYS", "new").rc == 2
    keys.done(f"reset {EVE} --recovery", key.lower(), "new")
    assert opens(keys, EVE, "new")
    assert not opens(keys, EVE, own)
    keys.done(f"recovery {EVE}", "new")
    assert keys.run(f"reset {EVE} --recovery", key, "newer").rc == 2


def test_a_forgotten_password_by_the_escrow(keys, own):
    """Its holder opens the keys where their identity is, off the host."""
    sealed = keys.done(f"escrow {EVE}")
    assert sealed[0] == "-----BEGIN AGE ENCRYPTED FILE-----"
    # On a machine that is not the mail host: here another host of the lab, with the identity for these seconds.
    opened = keys.host.check_output(
        f"umask 077; cat >/run/escrow.txt <<'END'\n{IDENTITY.read_text()}END\n"
        "age --decrypt --identity /run/escrow.txt <<'END'\n" + "\n".join(sealed) + "\nEND\nrm /run/escrow.txt",
    )
    assert keys.run(f"reset {EVE} --escrow", "new", "not a key").rc == 2
    assert keys.run(f"reset {BOB} --escrow", "new", *opened.splitlines()).rc == 2
    keys.done(f"reset {EVE} --escrow", "new", *opened.splitlines())
    assert opens(keys, EVE, "new")


def test_a_forgotten_password_without_either(host, keys, own):
    """Nothing opens, and what says so is clear."""
    ring = json.loads(host.check_output(f"cat {RING.format('eve')}"))
    host.check_output(f"printf %s {shlex.quote(json.dumps({**ring, 'escrow': '', 'recipients': []}))} >{RING.format('eve')}")
    assert "nothing in escrow" in keys.run(f"escrow {EVE}").stderr
    refused = keys.run(f"reset {EVE} --recovery", "ABCD", "new")
    assert "no recovery key" in refused.stderr
    assert "neither recovery key nor escrow" in keys.run(f"status {EVE}").stdout
    assert own


def test_app_passwords(keys, own):
    """Each with its own copy of the key; one ends without the others, and none of them changes the password."""
    phone, laptop = (keys.done(f"app-password {EVE} {name}", own)[-1] for name in ("phone", "laptop"))
    assert opens(keys, EVE, phone)
    assert opens(keys, EVE, laptop)
    assert opens(keys, EVE, own)
    assert keys.run(f"password {EVE}", phone, "taken over").rc == 2
    assert keys.run(f"app-password {EVE} phone", own).rc == 2
    assert keys.run(f"app-password {EVE} third", "guess").rc == 2
    keys.done(f"revoke {EVE} phone")
    assert not opens(keys, EVE, phone)
    assert opens(keys, EVE, laptop)
    assert keys.run(f"revoke {EVE} phone").rc == 2
    assert keys.run(f"revoke {EVE} password").rc == 2
    names = [each["name"] for each in json.loads("\n".join(keys.done(f"status {EVE} --json")))[0]["passwords"]]
    assert names == ["password", "laptop"]


def test_an_app_password_for_one_protocol(keys, own):
    """Is none for the other."""
    password = keys.done(f"app-password {EVE} fetcher --protocol pop3", own)[-1]
    assert clients.pop3_messages(keys.mail.host, keys.mail.ca_file, EVE, password)
    assert not keys.lets_in(EVE, password)
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        keys.texts(EVE, password)


def test_an_app_password_for_some_networks(keys, own):
    """Opens nothing elsewhere, and does not keep out who has the right password."""
    here = keys.done(f"app-password {EVE} here --network 0.0.0.0/0", own)[-1]
    elsewhere = keys.done(f"app-password {EVE} home --network 203.0.113.0/24 --network 2001:db8::/32", own)[-1]
    assert keys.texts(EVE, here)
    assert keys.lets_in(EVE, elsewhere, address="203.0.113.7")
    assert keys.lets_in(EVE, elsewhere, address="2001:db8::1")
    assert not keys.lets_in(EVE, elsewhere, address="198.51.100.1")
    assert opens(keys, EVE, own)


def test_rotation(keys, own):
    """New mail is for the new key; the password reads old and new, and app passwords end and say so."""
    phone = keys.done(f"app-password {EVE} phone", own)[-1]
    said = keys.done(f"rotate {EVE}", own)
    assert any("app password phone has ended" in line for line in said)
    keys.mail.deliver(EVE, message("after the rotation"))
    texts = keys.texts(EVE, own)
    assert b"Subject: kept" in texts[-2]
    assert b"Subject: after the rotation" in texts[-1]
    assert not opens(keys, EVE, phone)
    with clients.imap(keys.mail.host, keys.mail.ca_file, EVE, own) as client:
        client.select("INBOX")
        client.store("*", "+FLAGS", "(\\Deleted)")
        client.expunge()
    keys.done(f"reset {EVE} --recovery", said[-1], "new")
    assert opens(keys, EVE, "new")


@pytest.mark.parametrize("damage", ["the copy", "the public key", "all of it"])
def test_a_damaged_keyring(host, keys, own, damage):
    """Nothing is stored in clear and nothing is lost; the other accounts notice nothing."""
    ring = json.loads(host.check_output(f"cat {RING.format('eve')}"))
    pair = ring["pairs"][0]
    if damage == "the copy":
        wraps = ring["credentials"][0]["wraps"]
        wraps[next(iter(wraps))] = next(iter(wraps.values())).replace("A", "B")
    elif damage == "the public key":
        pair["public"] = json.loads(host.check_output(f"cat {RING.format('ada')}"))["pairs"][0]["public"]
    text = "{" if damage == "all of it" else json.dumps(ring)
    before = keys.files(EVE)
    host.check_output(f"printf %s {shlex.quote(text)} >{RING.format('eve')}")
    keys.done("show")
    if damage == "the copy":
        # What comes in is for the right key, and read when the copy is mended.
        keys.mail.deliver(EVE, message("meanwhile"))
        with pytest.raises(imaplib.IMAP4.error):
            keys.texts(EVE, own)
    else:
        with pytest.raises(clients.smtplib.SMTPException, match="451"):
            keys.mail.deliver(EVE, message("meanwhile"))
        assert not keys.lets_in(EVE, own)
    assert len(keys.files(EVE)) == len(before) + (damage == "the copy")
    for file in keys.files(EVE):
        assert host.run(f"grep -a -q CRYPTED {file}").rc == 0
    assert keys.texts(ADA, keys.mail.accounts[ADA])


@pytest.mark.requirement("SEC-1", "SEC-2")
def test_secrets_are_roots_alone(host, keys, own):
    """No password and no private key in a command line, the journal, or a file that others can read."""
    watch = "for _ in $(seq 200); do cat /proc/[0-9]*/cmdline 2>/dev/null; echo; sleep 0.005; done >/root/seen"
    # What is typed comes from a file, because the tests' own shell would show it.
    host.check_output(f"umask 077; printf '%s\\n' {shlex.quote(own)} brand-new-password >/root/typed")
    change = f"(sleep 0.3; letterlock keys password {EVE} </root/typed >/root/said 2>&1)"
    host.check_output(f"{change} & {watch}; wait; rm /root/typed")
    assert "is changed" in host.check_output("cat /root/said")
    assert host.check_output("grep -a -c letterlock /root/seen") != "0"
    for secret in (own, "brand-new-password"):
        assert host.run(f"grep -a -c -F {secret} /root/seen").stdout.strip() == "0"
        assert host.run(f"journalctl --no-pager --since '-1 hour' | grep -c -F {secret}").stdout.strip() == "0"
        assert not host.run(f"grep -r -l -F {secret} /var/lib/letterlock /etc/letterlock /run/letterlock").stdout
    modes = host.check_output("find /var/lib/letterlock/keys ! -name lock -printf '%U:%m %p\\n'").splitlines()
    assert all(mode.split()[0] in ("0:600", "0:640", "0:700", "0:750", "0:711") for mode in modes), modes
    assert not host.run("runuser -u vmail -- find /var/lib/letterlock/keys -type f").stdout


def test_clock_and_locale_change_nothing(host, keys, own):
    """Of what a password opens."""
    typed = shlex.quote(f"{own}\npässword\n")
    host.check_output(f"printf %s {typed} | faketime -f +400d env LC_ALL=tr_TR.ISO-8859-9 letterlock keys password {EVE}")
    keys.done("show")
    assert b"Subject: kept" in utf8_login(keys.mail, EVE, "pässword")
