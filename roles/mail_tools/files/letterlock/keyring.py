"""The keys that an account's mail is encrypted with, and for each of its passwords a copy of them that it opens.

A private key is PKCS#8 (RFC 5958), encrypted by scrypt (RFC 7914) with a secret that
Dovecot, too, makes of the password that somebody logs in with: so that it opens in that
session and nowhere else. Nothing that this writes tells a key or a password.
docs/decisions/0015-mail-that-its-user-alone-opens.md
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from letterlock.age import sealed_text
from letterlock.doveadm import ENVIRONMENT
from letterlock.ledger import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# 16 MiB: the most that OpenSSL opens by itself.
SCRYPT_N = 1 << 14
WRAP_SECONDS = 60
# Of a recovery key, which a person copies by hand: octets, and letters between dashes.
RECOVERY_OCTETS, RECOVERY_GROUP = 20, 4
# The credential that is the account's own password.
OWN = "password"
# The states of an account: its mail is encrypted, or not yet or no longer, or on its way.
SEALED, CLEAR, MOVING = "sealed", "clear", "moving"
PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)
# {identity of a pair: its private key}
Keys = dict[str, ec.EllipticCurvePrivateKey]


class WrongSecret(Exception):
    """A password or recovery key opens none of the keys that it should."""


def secret_of(account: str, password: str) -> str:
    """Return what opens the copies for *password*: the same as Dovecot makes of it on both versions.

    >>> secret_of("ada@example.org", "geheim") == hashlib.sha256(b"ada@example.orggeheim").hexdigest()
    True
    """
    return hashlib.sha256(f"{account}{password}".encode("utf-8", "surrogateescape")).hexdigest()


def new_recovery_key() -> str:
    """Return a recovery key: 160 bits, in letters and digits that are not taken for each other."""
    text = base64.b32encode(secrets.token_bytes(RECOVERY_OCTETS)).decode()
    return "-".join(text[at : at + RECOVERY_GROUP] for at in range(0, len(text), RECOVERY_GROUP))


def recovery_secret(recovery_key: str) -> str:
    """Return what opens the copy for a recovery key, however it was typed.

    >>> recovery_secret("abcd efgh") == recovery_secret("ABCD-EFGH")
    True
    """
    return "".join(char for char in recovery_key.upper() if char.isalnum())


def wrap(private: ec.EllipticCurvePrivateKey, secret: str) -> str:
    """Return *private* as a PEM that *secret* opens; raise OSError."""
    reader, writer = os.pipe()
    try:
        # The secret in a pipe, which holds it whole; the key by standard input. Neither is in an argument or on a disk.
        os.write(writer, secret.encode() + b"\n")
        os.close(writer)
        done = subprocess.run(
            ["openssl", "pkcs8", "-topk8", "-scrypt", "-scrypt_N", str(SCRYPT_N), "-passout", f"fd:{reader}"],
            input=pem_of(private), capture_output=True, pass_fds=[reader], timeout=WRAP_SECONDS, check=False, env=ENVIRONMENT,
        )
    finally:
        os.close(reader)
    if done.returncode:
        raise OSError(f"openssl pkcs8: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()


def unwrap(pem: str, secret: str) -> ec.EllipticCurvePrivateKey:
    """Return the private key in *pem*; raise WrongSecret."""
    try:
        return serialization.load_pem_private_key(pem.encode(), secret.encode())
    except ValueError as error:
        # OpenSSL can't tell a wrong secret from a torn file.
        raise WrongSecret("it opens no key, or the copy is damaged") from error


def pem_of(private: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key as a PEM that is not encrypted."""
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_of(private: ec.EllipticCurvePrivateKey) -> str:
    """Return the public half as a PEM."""
    return private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass
class Pair:
    """A pair of keys. Times are seconds since the epoch."""

    public: str
    made: int
    # The private key as the recovery key opens it, where there is one.
    recovery: str = ""
    curve: str = "P-256"

    @property
    def identity(self) -> str:
        """A short name for it."""
        return hashlib.sha256(self.public.encode()).hexdigest()[:16]

    @property
    def jwk(self) -> str:
        """The public key as a JWK (RFC 7517). Dovecot reads it at each delivery, a PEM by OpenSSL's search for a decoder.

        With Debian 12's OpenSSL 3.0 that search is a tenth of what a delivery takes.
        """
        key = serialization.load_pem_public_key(self.public.encode())
        octets, point = (key.key_size + 7) // 8, key.public_numbers()
        x, y = (base64.urlsafe_b64encode(number.to_bytes(octets, "big")).rstrip(b"=").decode() for number in (point.x, point.y))
        return json.dumps({"kty": "EC", "crv": self.curve, "x": x, "y": y, "use": "enc"})


@dataclass
class Credential:
    """A password: its hash, and a copy of each private key, by the pair's identity, that it opens."""

    name: str
    hash: str
    made: int
    wraps: dict[str, str]
    # From where it may be used; from anywhere if none is named.
    networks: list[str] = field(default_factory=list)
    # By which protocols; by all if none is named.
    protocols: list[str] = field(default_factory=list)


@dataclass
class Keyring:
    """All keys of one account, the newest pair first: new mail is for that one."""

    account: str
    pairs: list[Pair]
    credentials: list[Credential]
    # All private keys, sealed to the operator's recipients, and these.
    escrow: str = ""
    recipients: list[str] = field(default_factory=list)
    # The hash of the password that it was made with, by which a deployment knows that the inventory still has that one.
    begun: str = ""
    # How new mail is written, or that nobody and nothing comes in meanwhile.
    state: str = "sealed"

    # ---- on the disk

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return the one in *file*; raise OSError or ValueError."""
        raw = json.loads(file.read_text())
        return cls(**{
            **raw, "pairs": [Pair(**pair) for pair in raw["pairs"]], "credentials": [Credential(**each) for each in raw["credentials"]],
        })

    def write(self, file: Path) -> None:
        """Write it to *file* in one step: a crash leaves this one or the one before."""
        write_durably(file, json.dumps(asdict(self), indent=1).encode(), 0o600)

    # ---- keys

    @classmethod
    def make(cls, account: str, password: str, password_hash: str, recipients: list[str]) -> Self:
        """Return a new one that *password* opens, and in escrow who has a key of the *recipients*, age's; raise NotSealed."""
        ring = cls(account, [], [], recipients=recipients, begun=password_hash)
        keys = ring.with_new_pair({})
        ring.put(Credential(OWN, password_hash, ring.pairs[0].made, {}), keys, password)
        return ring

    def with_new_pair(self, keys: Keys) -> Keys:
        """Put a new pair before all others; return the private *keys* with its own. Raises NotSealed."""
        # The one curve of Dovecot's that works in 2.3 and 2.4 and that all else knows, too.
        private = ec.generate_private_key(ec.SECP256R1())
        self.pairs.insert(0, Pair(public_of(private), int(time.time())))
        keys = {self.pairs[0].identity: private, **keys}
        self.seal(keys)
        return keys

    def seal(self, keys: Keys) -> None:
        """Put all *keys* in escrow, where the operator has one."""
        self.escrow = sealed_text(self.recipients, b"".join(map(pem_of, keys.values()))) if self.recipients else ""

    def opened(self, password: str) -> tuple[Credential, Keys]:
        """Return the credential that *password* is, and the private keys that it opens; raise WrongSecret."""
        secret = secret_of(self.account, password)
        for credential in self.credentials:
            try:
                keys = {identity: unwrap(pem, secret) for identity, pem in credential.wraps.items()}
            except WrongSecret:
                continue
            if set(map(public_of, keys.values())) != {pair.public for pair in self.pairs}:
                raise WrongSecret(f"{self.account}: the copies of {credential.name} are not of this account's keys")
            return credential, keys
        raise WrongSecret(f"{self.account}: the password opens no key")

    def recovered(self, recovery_key: str) -> Keys:
        """Return the private keys, all of which the recovery key opens; raise WrongSecret."""
        if not self.pairs[0].recovery:
            raise WrongSecret(f"{self.account}: has no recovery key")
        try:
            return {pair.identity: unwrap(pair.recovery, recovery_secret(recovery_key)) for pair in self.pairs}
        except WrongSecret:
            raise WrongSecret(f"{self.account}: the recovery key does not open its keys") from None

    def from_escrow(self, text: str) -> Keys:
        """Return the private keys in *text*, which is what the escrow's holder opened; raise WrongSecret."""
        found = {}
        for pem in PEM.findall(text):
            try:
                private = serialization.load_pem_private_key(pem.encode(), None)
                found[Pair(public_of(private), 0).identity] = private
            except (ValueError, TypeError) as error:
                raise WrongSecret(f"{self.account}: what came from the escrow is no private key: {error}") from error
        missing = {pair.identity for pair in self.pairs} - found.keys()
        if missing:
            raise WrongSecret(f"{self.account}: what came from the escrow lacks the keys {', '.join(sorted(missing))}")
        return {pair.identity: found[pair.identity] for pair in self.pairs}

    def new_recovery_key(self, keys: Keys) -> str:
        """Return a new recovery key for *keys*, which nobody keeps; the one before opens nothing any more."""
        recovery_key = new_recovery_key()
        for pair in self.pairs:
            pair.recovery = wrap(keys[pair.identity], recovery_secret(recovery_key))
        return recovery_key

    # ---- passwords

    def put(self, credential: Credential, keys: Keys, password: str) -> None:
        """Add *credential*, or put it in the place of the one of its name, with copies of *keys* that *password* opens."""
        secret = secret_of(self.account, password)
        credential.wraps = {identity: wrap(private, secret) for identity, private in keys.items()}
        names = [each.name for each in self.credentials]
        if credential.name in names:
            self.credentials[names.index(credential.name)] = credential
        else:
            self.credentials.append(credential)

    def set_password(self, keys: Keys, password: str, password_hash: str) -> None:
        """Let *password* be the account's own, whose *keys* somebody has opened."""
        self.put(Credential(OWN, password_hash, int(time.time()), {}), keys, password)

    def revoke(self, name: str) -> None:
        """Forget the app password *name*; raise KeyError."""
        if name == OWN or name not in [each.name for each in self.credentials]:
            raise KeyError(name)
        self.credentials = [each for each in self.credentials if each.name != name]

    def renamed(self, account: str, password: str) -> Self:
        """Return the keyring of the same keys for the new name *account*, which the copies are bound to; raise WrongSecret."""
        credential, keys = self.opened(password)
        ring = type(self)(account, self.pairs, [], self.escrow, self.recipients, self.begun)
        ring.put(credential, keys, password)
        return ring

    def rotate(self, password: str) -> tuple[str, list[str]]:
        """Make a new pair for the mail to come; return a new recovery key, and which other passwords ended.

        What those are is not known here, so that none of them could have a copy of the new key. Raises WrongSecret or NotSealed.
        """
        credential, keys = self.opened(password)
        keys = self.with_new_pair(keys)
        ended = [each.name for each in self.credentials if each is not credential]
        self.credentials = [credential]
        self.put(credential, keys, password)
        return self.new_recovery_key(keys), ended

    # ---- for Dovecot

    def userdb_fields(self, series: str) -> str:
        """Return what the userdb says of the account on Dovecot *series*, 2.3 or 2.4: the public half alone.

        An account that is moving has none, so that no mail comes in.
        """
        if self.state == MOVING:
            return ""
        if self.state == CLEAR:
            return {"2.3": "userdb_mail_crypt_save_version=0", "2.4": "userdb_crypt_write_algorithm="}[series]
        name = {"2.3": "mail_crypt_global_public_key=", "2.4": "crypt_global_public_key_file=inline:"}[series]
        return f"userdb_{name}{one_line(self.pairs[0].jwk)}"

    def passdb_lines(self, series: str) -> Iterator[tuple[Credential, str]]:
        """Yield (credential, its line of a passwd-file for Dovecot *series*)."""
        for credential in self.credentials:
            wraps = [credential.wraps[pair.identity] for pair in self.pairs if pair.identity in credential.wraps]
            if series == "2.3":
                fields = [
                    f"userdb_mail_crypt_global_private_key{number if number > 1 else ''}={one_line(pem)}"
                    for number, pem in enumerate(wraps, 1)
                ]
            else:
                names = [f"key{number}" for number in range(1, len(wraps) + 1)]
                fields = [f"userdb_crypt_global_private_key={','.join(names)}", *(
                    f"userdb_crypt_global_private_key/{name}/crypt_private_key_file=inline:{one_line(pem)}"
                    for name, pem in zip(names, wraps, strict=True)
                )]
            if self.state == MOVING:
                fields.append("nologin")
            if credential.networks:
                fields.append(f"allow_nets={','.join(credential.networks)}")
            yield credential, f"{self.account}:{credential.hash}::::::{' '.join(fields)}"


def one_line(key: str) -> str:
    """Return a PEM or JWK as Dovecot takes it in one line."""
    return base64.b64encode(key.encode()).decode()
