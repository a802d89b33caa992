"""The catalogue tells of tests that lack, and profiles claim what there is."""

from __future__ import annotations

import ast

import catalogue
import pytest
import yaml

PROFILES = sorted((catalogue.PROJECT / "inventories" / "profiles").glob("*.yml"))


def test_faults_are_told():
    """A requirement without a test, a test without one, a name that there is not."""
    known = catalogue.read()
    tests = {"molecule/x/tests/test_x.py": {"test_a": ["TLS-1", "TLS-99"], "test_b": []}}
    found = list(catalogue.faults(known, tests, set()))
    assert "TLS-2: no test proves it" in found
    assert "molecule/x/tests/test_x.py: test_a: there is no requirement TLS-99" in found
    assert "molecule/x/tests/test_x.py: test_b: it names no requirement" in found
    assert "TLS-1: there is no variable dovecot_protocols" in found
    assert not any(each.startswith("TLS-1: no test") for each in found)


def test_marks_are_read(tmp_path):
    """A test's own count, or else its file's."""
    file = tmp_path / "test_x.py"
    file.write_text(
        'pytestmark = pytest.mark.requirement("A-1")\n\ndef test_a():\n    pass\n\n'
        '@pytest.mark.requirement("B-1", "B-2")\n@pytest.mark.parametrize("x", [1])\ndef test_b(x):\n    pass\n'
    )
    assert ast.parse(file.read_text())
    assert catalogue.tests_in(file) == {"test_a": ["A-1"], "test_b": ["B-1", "B-2"]}


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_profiles(file):
    """Each claims what is in the catalogue, once, and sets what the roles know."""
    found = yaml.safe_load(file.read_text())
    claims = found["mail_host_claims"]
    assert len(claims) == len(set(claims))
    assert set(claims) <= catalogue.read().requirements.keys()
    assert found.keys() <= catalogue.known_variables()
    assert found["mail_host_profile"] == file.stem


def test_there_are_profiles():
    """For those four needs."""
    assert [file.stem for file in PROFILES] == ["archive", "dropbox", "sealed", "standard"]
