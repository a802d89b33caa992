#!/usr/bin/env python3
"""Write the README's reference of variables from the roles' argument_specs.

Usage: reference.py [--check]

With --check nothing is written: the README must say what the specs say, and
each role's defaults/main.yml must hold the very defaults that its specs name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
BEGIN, END = "<!-- reference: begin, written by `make docs` -->", "<!-- reference: end -->"


def readable(text: str) -> str:
    """Return a description with Ansible's markup (C(), O()) as Markdown."""
    return re.sub(r"[CO]\(([^)]*)\)", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def shown(option: dict) -> str:
    """Return the default as a cell."""
    if option.get("required"):
        return "required"
    default = option.get("default")
    if default is None:
        return ""
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return "see defaults/main.yml"
    text = yaml.safe_dump(default, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return f"`{text}`".replace("|", "\\|")


def rows(options: dict, prefix: str = "") -> list[str]:
    """Return the table's rows, suboptions below their option."""
    lines = []
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        choices = f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}." if "choices" in option else ""
        lines.append(f"| `{prefix}{name}` | {kind} | {shown(option)} | {readable(option['description'])}{choices} |")
        lines += rows(option.get("options", {}), f"{prefix}{name}.")
    return lines


def specs() -> dict[str, dict]:
    """Return {role: its main entry point}."""
    files = sorted((PROJECT / "roles").glob("*/meta/argument_specs.yml"))
    return {file.parts[-3]: yaml.safe_load(file.read_text())["argument_specs"]["main"] for file in files}


def reference() -> str:
    """Return the whole reference."""
    parts = [BEGIN]
    for role, spec in specs().items():
        parts += ["", f"### {role}", "", readable(" ".join(spec["description"])), ""]
        if spec["options"]:
            parts += ["| variable | type | default | what it does |", "|---|---|---|---|", *rows(spec["options"])]
    return "\n".join([*parts, "", END])


def drift() -> list[str]:
    """Return where defaults and specs differ."""
    found = []
    for role, spec in specs().items():
        file = PROJECT / "roles" / role / "defaults" / "main.yml"
        defaults = (yaml.safe_load(file.read_text()) if file.is_file() else None) or {}
        named = {name: option["default"] for name, option in spec["options"].items() if "default" in option}
        found += [f"{role}: {name} is in defaults and not in argument_specs" for name in defaults if name not in spec["options"]]
        found += [f"{role}: the default of {name} is not in defaults" for name in named if name not in defaults]
        found += [
            f"{role}: {name} is {defaults[name]!r} in defaults and {named[name]!r} in argument_specs"
            for name in named.keys() & defaults.keys() if defaults[name] != named[name]
        ]
    return found


def main() -> int:
    """Write the reference, or say what differs."""
    text = README.read_text()
    wanted = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: reference(), text, flags=re.DOTALL)
    faults = drift()
    if "--check" not in sys.argv[1:]:
        README.write_text(wanted)
    elif wanted != text:
        faults.append("README.md: the reference of variables is out of date; run `make docs`")
    print("\n".join(faults), end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
