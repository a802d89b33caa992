"""Let unit tests import modules as a host does: module_utils of a role under ansible.module_utils."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROLES = Path(__file__).resolve().parent


def load(path: str, name: str | None = None):
    """Import the file *path* (below roles/) as the module *name*."""
    file = ROLES / path
    name = name or f"{file.parts[-3]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# The package that mail_tools installs on hosts.
sys.path.insert(0, str(ROLES / "mail_tools" / "files"))

load("mail_host/module_utils/letterlock_files.py", "ansible.module_utils.letterlock_files")
sys.modules["roles_loader"] = sys.modules[__name__]
