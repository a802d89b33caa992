"""An account's keys open with its passwords and with nothing else, whatever becomes of them."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict

import pytest
from cryptography.hazmat.primitives import serialization
from letterlock import keyring
from letterlock.keyring import OWN, Credential, Keyring, WrongSecret

ADA = "ada@example.org"
# Long, UTF-8, and with what ends a field elsewhere.
PASSWORDS = ["geheim", "", "x" * 1000, "pä:ss wörd\t=", "{PLAIN}$1$"]


@pytest.fixture(scope="module")
def made() -> tuple[str, str]:
    """Return the text of a keyring that `geheim` opens, and its recovery key; to make one takes a while."""
    ring = Keyring.make(ADA, "geheim", "{ARGON2ID}x", [])
    recovery_key = ring.new_recovery_key(ring.opened("geheim")[1])
    return json.dumps(asdict(ring)), recovery_key


@pytest.fixture
def ring(made, tmp_path) -> Keyring:
    """Return that keyring, read from its file."""
    (tmp_path / "ada.json").write_text(made[0])
    return Keyring.read(tmp_path / "ada.json")


def test_the_password_opens_it_and_no_other(ring):
    """Nor does a part of it, nothing, or the hash; and another account's same password is another secret."""
    credential, keys = ring.opened("geheim")
    assert credential.name == OWN
    assert [keyring.public_of(key) for key in keys.values()] == [ring.pairs[0].public]
    for wrong in ("gehei", "", "GEHEIM", "geheim ", "{ARGON2ID}x"):
        with pytest.raises(WrongSecret):
            ring.opened(wrong)
    assert keyring.secret_of(ADA, "geheim") != keyring.secret_of("bob@example.org", "geheim")


@pytest.mark.parametrize("password", PASSWORDS)
def test_any_password_can_be_the_new_one(ring, password):
    """And the old one opens nothing any more."""
    ring.set_password(ring.opened("geheim")[1], password, "{ARGON2ID}y")
    assert ring.opened(password)[0].hash == "{ARGON2ID}y"
    assert len(ring.credentials) == 1
    if password != PASSWORDS[0]:
        with pytest.raises(WrongSecret):
            ring.opened("geheim")


def test_it_is_kept_for_root_alone(ring, tmp_path):
    """And is the same when it is read again."""
    ring.write(tmp_path / "again.json")
    assert Keyring.read(tmp_path / "again.json") == ring
    assert (tmp_path / "again.json").stat().st_mode & 0o777 == 0o600


def test_a_forgotten_password_is_reset_by_the_recovery_key(ring, made):
    """However that is typed; a wrong one resets nothing."""
    with pytest.raises(WrongSecret):
        ring.recovered(keyring.new_recovery_key())
    ring.set_password(ring.recovered(made[1].lower().replace("-", " ")), "new", "{ARGON2ID}y")
    assert ring.opened("new")
    assert len(made[1].replace("-", "")) == 32


def test_app_passwords_come_and_go(ring):
    """Each with its own copy, networks and protocols; the account's own password is none of them."""
    _, keys = ring.opened("geheim")
    ring.put(Credential("phone", "{ARGON2ID}p", 1, {}, ["192.0.2.0/24"], ["imap"]), keys, "of the phone")
    assert ring.opened("of the phone")[0].name == "phone"
    assert ring.opened("geheim")[0].name == OWN
    (_, own), (_, phone) = ring.passdb_lines("2.3")
    assert "allow_nets" not in own
    assert phone.endswith(" allow_nets=192.0.2.0/24")
    ring.revoke("phone")
    for name in ("phone", OWN):
        with pytest.raises(KeyError):
            ring.revoke(name)
    with pytest.raises(WrongSecret):
        ring.opened("of the phone")


def test_rotation_keeps_what_opens_old_mail(ring, made):
    """New mail is for the new pair; the password and the new recovery key open both, and app passwords end."""
    _, keys = ring.opened("geheim")
    ring.put(Credential("phone", "{ARGON2ID}p", 1, {}), keys, "of the phone")
    old = ring.pairs[0].public
    recovery_key, ended = ring.rotate("geheim")
    assert ended == ["phone"]
    assert [pair.public == old for pair in ring.pairs] == [False, True]
    assert len(ring.opened("geheim")[1]) == 2
    assert len(ring.recovered(recovery_key)) == 2
    with pytest.raises(WrongSecret):
        ring.recovered(made[1])
    (_, line), = ring.passdb_lines("2.3")
    assert "userdb_mail_crypt_global_private_key=" in line
    assert "userdb_mail_crypt_global_private_key2=" in line
    (_, line), = ring.passdb_lines("2.4")
    assert "userdb_crypt_global_private_key=key1,key2 " in line
    assert base64.b64encode(ring.pairs[0].jwk.encode()).decode() in ring.userdb_fields("2.4")


def test_the_public_key_as_a_jwk(ring):
    """It is the same key, and its coordinates are as long as the curve says (RFC 7518, 6.2.1.2)."""
    jwk = json.loads(ring.pairs[0].jwk)
    x, y = (base64.urlsafe_b64decode(jwk[name] + "=") for name in "xy")
    assert (jwk["kty"], jwk["crv"], len(x), len(y)) == ("EC", "P-256", 32, 32)
    point = serialization.load_pem_public_key(ring.pairs[0].public.encode()).public_numbers()
    assert (int.from_bytes(x, "big"), int.from_bytes(y, "big")) == (point.x, point.y)


def test_a_copy_of_another_key_is_refused(ring):
    """The password opens it, but mail is encrypted for another one."""
    other = Keyring.make(ADA, "geheim", "x", [])
    ring.credentials[0].wraps = {ring.pairs[0].identity: next(iter(other.credentials[0].wraps.values()))}
    with pytest.raises(WrongSecret, match="not of this account's keys"):
        ring.opened("geheim")


def test_a_damaged_copy_opens_nothing(ring):
    """And nothing is made of it."""
    identity, pem = next(iter(ring.credentials[0].wraps.items()))
    ring.credentials[0].wraps[identity] = pem.replace(pem.splitlines()[2], "A" * len(pem.splitlines()[2]))
    with pytest.raises(WrongSecret):
        ring.opened("geheim")


def test_nothing_tells_a_key_or_a_password(ring, made):
    """Neither the file nor what Dovecot gets; every private key there is encrypted by scrypt."""
    whole = made[0] + "".join(line for series in ("2.3", "2.4") for _, line in ring.passdb_lines(series))
    for secret in ("geheim", keyring.secret_of(ADA, "geheim"), made[1], "BEGIN PRIVATE KEY", "BEGIN EC PRIVATE KEY"):
        assert secret not in whole
    scrypt = bytes.fromhex("06092b06010401da47040b")  # its object identifier
    pems = [*ring.credentials[0].wraps.values(), ring.pairs[0].recovery]
    for pem in pems:
        assert "BEGIN ENCRYPTED PRIVATE KEY" in pem
        assert scrypt in base64.b64decode("".join(pem.splitlines()[1:-1]))
    assert hashlib.sha256(ring.pairs[0].public.encode()).hexdigest().startswith(ring.pairs[0].identity)


def test_the_escrow_holds_all_keys(monkeypatch):
    """What its holder opens sets a new password; what is not all of it, or another's, does not."""
    # age itself is asked on the hosts.
    monkeypatch.setattr(keyring, "sealed_text", lambda recipients, secret: f"{recipients} {secret.decode()}")
    ring = Keyring.make(ADA, "geheim", "x", ["age1x"])
    first = ring.escrow
    ring.rotate("geheim")
    assert ring.escrow.count("BEGIN PRIVATE KEY") == 2
    ring.set_password(ring.from_escrow(ring.escrow), "new", "y")
    assert len(ring.opened("new")[1]) == 2
    for wrong in ("", "x", first, first.replace("M", "N", 3)):
        with pytest.raises(WrongSecret):
            ring.from_escrow(wrong)


def test_without_escrow_or_recovery_key_nothing_opens():
    """Nor does an empty recovery key."""
    ring = Keyring.make(ADA, "geheim", "x", [])
    assert ring.escrow == ""
    with pytest.raises(WrongSecret, match="no recovery key"):
        ring.recovered("")
