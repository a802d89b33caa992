"""What the lock lets through."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("install", Path(__file__).resolve().parents[1] / "install.py")
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)
LOCK = {"podman": ("4.3.1-8", "aa")}


def test_the_locked_version_passes():
    """With its hash."""
    assert install.compare({"podman": ("4.3.1-8", "aa", "")}, LOCK, strict=True) == []


@pytest.mark.parametrize(
    ("planned", "strict"),
    [({"podman": ("4.3.1-8", "bb", "")}, False), ({"podman": ("4.3.1-7", "aa", "")}, False), ({"other": ("1", "aa", "")}, False),
     ({"podman": ("4.3.1-9", "cc", "")}, True), ({"libc6": ("2", "aa", "1")}, True)],
)
def test_what_the_lock_does_not_know_is_refused(planned, strict):
    """Another hash, an older version, another package; under strict an update, too."""
    with pytest.raises(install.Refused):
        install.compare(planned, LOCK, strict=strict)


def test_updates_of_the_signed_archive_are_named():
    """Debian removes a version from its mirrors as soon as an update replaces it."""
    planned = {"podman": ("4.3.1-9", "cc", ""), "libc6": ("2", "aa", "1")}
    assert install.compare(planned, LOCK, strict=False) == ["libc6 1 -> 2 (was installed before)", "podman 4.3.1-8 -> 4.3.1-9"]


def test_the_lock_holds_what_is_asked_for():
    """Every package of debian.in is in debian.txt, with a whole hash."""
    lock = install.read_lock(install.HERE / "debian.txt")
    assert set(install.names(install.HERE / "debian.in")) - set(lock) <= {"util-linux"}
    assert all(len(sha256) == 64 for _, sha256 in lock.values())
