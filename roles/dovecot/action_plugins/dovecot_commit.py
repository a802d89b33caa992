"""Render a whole release of Dovecot's configuration and hand it to the host as one transaction.

Every role of the play takes part by convention:

  templates/dovecot/SERIES/*.conf.j2   its fragment in the dialect 2.3 or 2.4
  templates/dovecot/common/*.conf.j2   a fragment that both dialects share
  templates/release/*.j2               a file of its own in the release; systemd's units are linked and started
  templates/release/_*.j2              what those include

Fragments become one dovecot.conf, the dovecot role's base first and what is
named zz-* last. A template that renders to nothing leaves nothing behind.
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

import argon2
from ansible.plugins.action import ActionBase

SUFFIX = ".j2"
# A random password needs no slow hash; these are the least that libsodium takes.
PROBE_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


def find_templates(roles: list[Path], series: str) -> tuple[list[Path], list[Path]]:
    """Return the templates of (fragments, other files) that *roles* bring for the dialect *series*."""
    fragments, others = [], []
    for role in roles:
        for folder in (series, "common"):
            fragments += sorted((role / "templates" / "dovecot" / folder).glob("*.conf.j2"))
        others += sorted(path for path in (role / "templates" / "release").glob("*.j2") if not path.name.startswith("_"))
    # The base first, raw settings last, and the order of the play between them.
    fragments.sort(key=lambda path: (path.name != "dovecot.conf.j2", path.name.startswith("zz-")))
    return fragments, others


def join_fragments(fragments: list[tuple[str, str]]) -> tuple[str, list[list]]:
    r"""Join [(source, text)] into one file; return it and [[first line, source]].

    >>> join_fragments([("a", "x = 1\n"), ("b", "y = 2\n")])[1]
    [[3, 'a'], [6, 'b']]
    """
    lines, sources = [], []
    for source, text in fragments:
        lines += [f"# ---- {source}", ""] if not lines else ["", f"# ---- {source}"]
        sources.append([len(lines) + 1, source])
        lines += text.strip("\n").splitlines()
    return "\n".join(lines) + "\n", sources


class ActionModule(ActionBase):
    """The controller's half of `dovecot_commit`."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Render, add the probe's credentials, and run the module."""
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        series = arguments.pop("series")
        folder = Path(task_vars["role_path"]).parent
        roles = [folder / name for name in task_vars["ansible_play_role_names"]]
        fragments, others = find_templates(roles, series)
        host_tree = self._shared_loader_obj.action_loader.get(
            "host_tree", task=self._task, connection=self._connection, play_context=self._play_context,
            loader=self._loader, templar=self._templar, shared_loader_obj=self._shared_loader_obj,
        )

        def render(path: Path) -> str:
            return host_tree.render(str(path), task_vars)

        rendered = [(f"{path.relative_to(folder)}".removesuffix(SUFFIX), render(path)) for path in fragments]
        config, sources = join_fragments([(source, text) for source, text in rendered if text.strip()])
        files = {"dovecot.conf": config}
        for path in others:
            text = render(path)
            if text.strip():
                files[path.name.removesuffix(SUFFIX)] = text
        password = secrets.token_urlsafe(24)
        payload = {
            **arguments, "series": series, "files": files, "sources": sources,
            "probe_password": password, "probe_hash": "{ARGON2ID}" + PROBE_HASHER.hash(password),
        }
        encoded = base64.b64encode(json.dumps(payload).encode()).decode()
        result.update(self._execute_module("dovecot_commit", {"payload": encoded}, task_vars=task_vars))
        result.pop("invocation", None)
        return result
