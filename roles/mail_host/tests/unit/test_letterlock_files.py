"""The base of host_tree and of the transaction: compare truly, write atomically, mask secrets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from ansible.module_utils import letterlock_files as files

if TYPE_CHECKING:
    from pathlib import Path


def bring(entry: dict) -> dict | None:
    """Do what the module does for one entry; return the diff."""
    found = files.read_state(entry["path"])
    diff = files.difference(entry, found)
    if diff:
        files.apply_entry(entry, found)
    return diff


@pytest.fixture
def entry(tmp_path: Path) -> dict:
    """Return a file that is not there yet."""
    return {"path": str(tmp_path / "file"), "state": "file", "content": "one\n", "mode": "0640"}


def test_a_file_is_written_once(entry):
    """The second time nothing differs."""
    assert bring(entry)["after"].endswith("one\n")
    assert bring(entry) is None
    assert oct(os.stat(entry["path"]).st_mode)[-3:] == "640"  # noqa: PTH116  # as the module does


def test_a_changed_mode_is_a_difference_of_its_own(entry):
    """The diff says mode and no content."""
    bring(entry)
    diff = files.difference({**entry, "mode": "0600"}, files.read_state(entry["path"]))
    assert diff["before"] == "# mode: 0640\n"
    assert diff["after"] == "# mode: 0600\n"


def test_a_secret_is_masked_on_both_sides(entry):
    """Neither the old nor the new secret is in the diff, and a change still shows."""
    entry["secret"] = True
    bring(entry)
    diff = files.difference({**entry, "content": "two\n"}, files.read_state(entry["path"]))
    assert "one" not in str(diff)
    assert "two" not in str(diff)
    assert diff["before"] != diff["after"]


def test_a_refused_candidate_leaves_the_old_file(entry, tmp_path):
    """The validating command sees the candidate; what it refuses is gone without a trace."""
    bring(entry)
    with pytest.raises(files.Fault, match="refused by"):
        bring({**entry, "content": "bad\n", "validate": "grep -q good %s"})
    assert (tmp_path / "file").read_text() == "one\n"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208  # as the module does
    assert bring({**entry, "content": "good\n", "validate": "grep -q good %s"})


def test_links_directories_and_absences(tmp_path):
    """Each state is reached, and reached once."""
    directory = {"path": str(tmp_path / "a/b"), "state": "directory", "mode": "0700"}
    link = {"path": str(tmp_path / "link"), "state": "link", "target": "a/b"}
    for wanted in (directory, link, {**link, "target": "a"}, {"path": str(tmp_path / "link"), "state": "absent"}):
        assert bring(wanted)
        assert bring(wanted) is None
    assert bring({"path": str(tmp_path / "a"), "state": "absent"})
    assert not (tmp_path / "a").exists()


def test_a_directory_in_a_files_place_is_not_thrown_away(entry, tmp_path):
    """What was not asked for is not deleted."""
    (tmp_path / "file" / "precious").mkdir(parents=True)
    with pytest.raises(files.Fault, match="move it away first"):
        bring(entry)
    assert (tmp_path / "file" / "precious").is_dir()


def test_unknown_owner(entry):
    """A run fails by name; check mode before the packages are there does not."""
    entry["owner"] = "no-such-user"
    with pytest.raises(files.Fault, match="no user 'no-such-user'"):
        bring(entry)
    assert files.difference(entry, files.read_state(entry["path"]), strict=False)
