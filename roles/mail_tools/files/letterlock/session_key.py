"""Reading mail with the key of a session: what Dovecot knows of a user who has just logged in, handed to a doveadm of its own.

By a configuration in memory, so that neither the key nor what opens it is an argument or on
a disk. docs/decisions/0015-mail-that-its-user-alone-opens.md
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock.keyring import pem_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from letterlock.keyring import Keyring

CONFIGURATION = Path("/etc/dovecot/dovecot.conf")
# Dovecot 2.3's names of the keys and of what opens them; and 2.4's, each in a group that has a name.
FLAT = re.compile(r"mail_crypt_global_private_key\d*(_password)?")
GROUPED = re.compile(r"crypt_global_private_key/(\w+)/(crypt_private_key_file|crypt_private_key_password)")
# The first lines of 2.4's configuration have to be the first here, too.
VERSIONS = re.compile(r"^dovecot_(?:config|storage)_version = .*$", re.MULTILINE)


def settings_of(fields: Mapping[str, str]) -> str:
    r"""Return the settings in Dovecot's language that give a process the keys among a user's *fields*; nothing where there are none.

    >>> settings_of({"uid": "5000", "mail_crypt_global_private_key": "QQ==", "mail_crypt_global_private_key_password": "x"})
    'plugin {\n  mail_crypt_global_private_key = QQ==\n  mail_crypt_global_private_key_password = x\n}\n'
    """
    flat = [f"  {name} = {value}\n" for name, value in fields.items() if FLAT.fullmatch(name)]
    text = "plugin {\n" + "".join(flat) + "}\n" if flat else ""
    groups: dict[str, list[str]] = {}
    for name, value in fields.items():
        found = GROUPED.fullmatch(name)
        # Dovecot is told of more groups than an account has keys.
        if found and found.group(1) in fields.get("crypt_global_private_key", "").split(","):
            groups.setdefault(found.group(1), []).append(f"  {found.group(2)} = {value}\n")
    return text + "".join(f"crypt_global_private_key {name} {{\n{''.join(lines)}}}\n" for name, lines in groups.items())


def settings_with(pems: list[bytes], series: str) -> str:
    r"""Return the settings that give a process private keys, as PEM that is not encrypted, in the dialect of Dovecot *series*.

    >>> settings_with([b"a", b"b"], "2.3")
    'plugin {\n  mail_crypt_global_private_key = YQ==\n  mail_crypt_global_private_key2 = Yg==\n}\n'
    """
    keys = {f"key{number}": base64.b64encode(pem).decode() for number, pem in enumerate(pems, 1)}
    if series == "2.3":
        return settings_of({f"mail_crypt_global_private_{name.removesuffix('1')}": key for name, key in keys.items()})
    groups = {f"crypt_global_private_key/{name}/crypt_private_key_file": f"inline:{key}" for name, key in keys.items()}
    return settings_of({"crypt_global_private_key": ",".join(keys), **groups})


def settings_for(ring: Keyring, password: str, series: str) -> str:
    """Return the settings that give a process the keys in *ring* that *password* opens; raise WrongSecret."""
    return settings_with([pem_of(private) for private in ring.opened(password)[1].values()], series)


@contextlib.contextmanager
def configured(settings: str) -> Iterator[tuple[list[str], list[int]]]:
    """Lend (arguments for doveadm, descriptors that it inherits): it reads with *settings*, or as always where there are none."""
    if not settings:
        yield [], []
        return
    versions = "".join(f"{line}\n" for line in VERSIONS.findall(CONFIGURATION.read_text()))
    with os.fdopen(os.memfd_create("settings"), "wb") as file:
        file.write(f"{versions}!include {CONFIGURATION}\n{settings}".encode())
        file.flush()
        # For who starts programs that inherit all there is.
        os.set_inheritable(file.fileno(), True)
        yield ["-c", f"/proc/self/fd/{file.fileno()}"], [file.fileno()]
