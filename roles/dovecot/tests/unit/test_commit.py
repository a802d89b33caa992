"""The transaction's parts that need no host."""

from __future__ import annotations

from pathlib import Path

import pytest
from roles_loader import ROLES, load

action = load("dovecot/action_plugins/dovecot_commit.py")
module = load("dovecot/library/dovecot_commit.py", "dovecot_commit_module")
preflight = load("dovecot/preflight.py")


def test_fragments_come_base_first_and_raw_settings_last():
    """2.4 wants its version before everything; the escape hatch must win."""
    roles = [ROLES / name for name in ("mail_host", "mail_tls", "mail_accounts", "dovecot")]
    for series in ("2.3", "2.4"):
        fragments, others = action.find_templates(roles, series)
        names = [path.name for path in fragments]
        assert names == ["dovecot.conf.j2", "tls.conf.j2", "accounts.conf.j2", "sessions.conf.j2", "zz-settings.conf.j2"]
        assert all(path.parent.name in (series, "common") for path in fragments)
        assert "accounts.passdb.j2" in [path.name for path in others]


def test_a_line_is_traced_to_its_fragment():
    """A fault is named by the variable or the template that it comes from."""
    text, sources = action.join_fragments([("a/dovecot.conf", "x = 1\ny = 2\n"), ("b/zz-settings.conf", "z = 3\n")])
    lines = text.splitlines()
    assert module.source_of(lines.index("y = 2") + 1, sources) == "a/dovecot.conf"
    said = module.explain("Unknown setting: mail_fsnc", lines.index("z = 3") + 1, "z = 3", sources, ["mail_fsync"])
    assert said == "dovecot_settings: Unknown setting: mail_fsnc; did you mean mail_fsync? (line 7: z = 3)"


def test_variables_of_the_older_dialect_are_refused_in_the_newer(tmp_path):
    """2.4 would deliver every account into one directory named %d/%n."""
    (tmp_path / "dovecot.conf").write_text("mail_home = /srv/%d/%n\n# 100%d\nx = %{user}\ny = 50%%a\n")
    assert len(module.variable_faults(str(tmp_path), "2.4")) == 1
    assert module.variable_faults(str(tmp_path), "2.3") == []


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [("protocols = imap lmtp\n", "protocols = imap pop3 lmtp\n", False), ("  port = 24\n", "  port = 25\n", False),
     ("mail_fsync = always\nlisten = *\n", "mail_fsync = optimized\nlisten = *\n", True)],
)
def test_a_changed_listener_is_noticed(before, after, same):
    """It needs a restart; everything else a reload."""
    assert (module.listeners(before) == module.listeners(after)) is same


def test_a_service_differs_with_the_files_that_it_names():
    """By their whole name, wherever in a line it stands."""
    unit = "[Service]\nExecStartPre=install /etc/letterlock/dovecot/current/a.secret /run/x\nExecStart=x /etc/x/current/b.conf\n"
    old = {"x.service": unit, "a.secret": "1", "b.conf": "1", "b.conf.other": "1"}
    assert not module.differs("x.service", old, {**old, "b.conf.other": "2"})
    for name in ("a.secret", "b.conf", "x.service"):
        assert module.differs("x.service", old, {**old, name: f"{unit}#"})
    assert module.differs("x.service", {}, old)


def test_what_is_started_and_what_something_else_starts():
    """A timer, and a service of multi-user.target; not what the timer starts."""
    tree = {"a.timer": "[Timer]\n", "a.service": "[Service]\n", "b.service": "[Install]\nWantedBy=multi-user.target\n", "c.conf": ""}
    assert sorted(module.started_units(tree)) == ["a.timer", "b.service"]


def test_changed_accounts():
    """Accounts that both have, with another hash; not those that came or went."""
    old, new = "# x\na@t:1::\nb@t:1::\nc@t:1::\n", "# y\na@t:1::\nb@t:2::\nd@t:1::\n"
    assert module.changed_accounts(old, new) == ["b@t"]


def test_release_ids_depend_on_content_alone():
    """The same tree has the same name on every host and day."""
    assert module.release_id({"a": "1", "b": "2"}) == module.release_id({"b": "2", "a": "1"})
    assert module.release_id({"a": "1"}) != module.release_id({"a": "2"})


def test_hashes_stay_out_of_diffs(tmp_path):
    """accounts.passdb is masked whether it changes, comes or goes."""
    release = tmp_path / "release"
    release.mkdir()
    (release / "accounts.passdb").write_text("ada@t:{ARGON2ID}old::\n")
    for tree in ({"accounts.passdb": "ada@t:{ARGON2ID}new::\n"}, {}):
        diffs = module.release_diffs(str(release), tree)
        assert diffs
        assert "ARGON2ID" not in str(diffs)


@pytest.mark.parametrize(
    "name", ["ssl", "mail_fsync", "auth_allow_cleartext", "disable_plaintext_auth", "auth_debug_passwords", "protocols"]
)
def test_promises_can_not_be_broken_by_the_hatch(name):
    """Each is refused with its reason."""
    assert f"{name} may not be set here: " in preflight.settings_faults([{"name": name, "value": "x"}])[0]


@pytest.mark.parametrize("value", ["a\nssl = no", "a }", "x {"])
def test_a_value_can_not_leave_its_line_or_section(value):
    """One setting is one setting."""
    assert preflight.settings_faults([{"name": "login_greeting", "value": value}])
    assert preflight.settings_faults([{"name": "login_greeting", "value": "%{user} is fine"}]) == []


def test_every_template_has_both_dialects():
    """A fragment in one dialect only would be lost on the other release."""
    for role in Path(ROLES).iterdir():
        dialects = [sorted(path.name for path in (role / "templates/dovecot" / series).glob("*")) for series in ("2.3", "2.4")]
        assert dialects[0] == dialects[1]
