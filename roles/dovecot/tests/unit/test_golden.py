"""Golden renderings of both dialects: a change of a template shows as a change of what is deployed.

`LETTERLOCK_GOLDEN=write pytest roles/dovecot/tests/unit/test_golden.py` writes them anew.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parent / "golden"
ROLE = GOLDEN.parents[2]
PROJECT = ROLE.parents[1]
VARIABLES = {
    "lmtp": GOLDEN / "lmtp.yml",
    "flipped": PROJECT / "molecule/flipped/inventory/group_vars/mail_hosts/dovecot.yml",
}


@pytest.mark.parametrize("version", ["2.3.19.1", "2.4.1"])
@pytest.mark.parametrize("case", VARIABLES)
def test_rendering(case, version, tmp_path):
    """What the templates give is what was agreed on."""
    extra = {"render_role": ROLE, "render_variables": VARIABLES[case], "render_to": tmp_path, "render_version": version}
    command = ["ansible-playbook", "-i", "localhost,", str(Path(__file__).parent / "render.yml")]
    for name, value in extra.items():
        command += ["-e", f"{name}={value}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = GOLDEN / case / version[:3]
    rendered = {path.name: path.read_text() for path in tmp_path.iterdir() if path.read_text().strip()}
    if os.environ.get("LETTERLOCK_GOLDEN") == "write":
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in rendered.items():
            (folder / name).write_text(text)
    assert rendered == {path.name: path.read_text() for path in folder.iterdir()}
