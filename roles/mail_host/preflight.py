"""Which hosts the kit serves."""

from __future__ import annotations

# (os-release ID, VERSION_ID) -> the Dovecot that the release carries.
SUPPORTED = {("debian", "12"): "2.3", ("debian", "13"): "2.4"}


def faults(_variables: dict, host: dict) -> list[str]:
    """Return a fault when the host's release, or its Dovecot, is not one that the kit serves."""
    release = host["release"]
    series = SUPPORTED.get((release["id"], release["version"]))
    known = ", ".join(f"{name.capitalize()} {version} (Dovecot {dovecot})" for (name, version), dovecot in SUPPORTED.items())
    if series is None:
        return [f"the host runs {release['id'] or 'an unknown system'} {release['version']}: the kit serves {known}"]
    version = host["dovecot"]["version"]
    if version and not version.startswith(tuple(f"{value}." for value in SUPPORTED.values())):
        return [f"the host has or would get Dovecot {version}: the kit serves {known}; look at its apt sources"]
    return []
