"""Each profile, as an inventory picks it, makes hosts that prove all it claims."""

from __future__ import annotations

import dataclasses
import json
import secrets

import lane
import pytest
import yaml
from verifying import ELSEWHERE, RUNS

pytestmark = pytest.mark.requirement("OPS-5")

PROFILES = lane.PROJECT / "inventories" / "profiles"
# Two for each of the hosts, which are tested side by side.
CHOSEN = ["dropbox", "sealed", "archive", "standard"]
# What an inventory has to say itself where it picks a profile, and this scenario's does not.
OWN = {"archive": {"mail_backup_pruned_by": "store", "mail_backup_pruner_password": secrets.token_urlsafe()}}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_profile_holds_what_it_claims(name, host, mail, site, verifier):
    """Deployed, used, and verified with an account: nothing is violated, and all is proven that can be proven by reading."""
    if CHOSEN.index(name) % len(mail.side_by_side) != sorted(mail.side_by_side).index(mail.host["name"]):
        pytest.skip("on the other host")
    inventory = verifier.folder / "inventory"
    variables = inventory / "group_vars" / "mail_hosts"
    variables.mkdir(parents=True)
    (variables / "00_profile.yml").symlink_to(PROFILES / f"{name}.yml")
    (variables / "own.yml").write_text(json.dumps(OWN.get(name, {})))
    (inventory / "hosts.yml").write_text("mail_hosts:\n")
    chosen = f"--inventory={inventory}"
    deployed = site.run(chosen)
    assert deployed.code == 0, deployed.output
    for user in mail.accounts:
        mail.deliver(user, b"Subject: comes in\r\n\r\nand stays\r\n")
    for run in RUNS:
        host.check_output(f"letterlock {run}")
    verified = dataclasses.replace(verifier, chosen=[*verifier.chosen, chosen]).run()
    claims = set(yaml.safe_load((PROFILES / f"{name}.yml").read_text())["mail_host_claims"])
    assert verified.why("violated") == {}
    assert claims - set(verified.why("proven")) == claims & ELSEWHERE, verified.why("not proven") | verified.why("not claimed")
    assert not claims & set(verified.why("not claimed"))
