#!/usr/bin/env python3
"""The catalogue of requirements: read docs/catalogue.yml, find the tests that prove each, write docs/requirements.md.

Usage: catalogue.py [--check]

A test names what it proves: `@pytest.mark.requirement("TLS-1")`, or for all tests of a
file `pytestmark = pytest.mark.requirement("TLS-1")`. With --check nothing is written: a
requirement without a test, a test without a requirement, an unknown name and a document
that says something else are faults.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[3]
SOURCE = PROJECT / "docs" / "catalogue.yml"
DOCUMENT = PROJECT / "docs" / "requirements.md"
MARK = "requirement"
HEAD = """# Requirements

What Letterlock lets you require of a mail host, why, what makes it so, and which tests prove it. `make verify` asks a host and
reports by these numbers. Written by `make docs` from [catalogue.yml](catalogue.yml) and from what the tests say of themselves.
"""


@dataclass(frozen=True)
class Requirement:
    """One requirement: its number, the sentence, the reason with its sources, and {role: variables} that make it so."""

    number: str
    says: str
    why: str
    sources: list[str]
    by: dict[str, list[str]]

    @property
    def area(self) -> str:
        """The area's own number."""
        return self.number.partition("-")[0]


@dataclass(frozen=True)
class Catalogue:
    """All requirements by number, the areas' names, and where the sources are."""

    areas: dict[str, str]
    sources: dict[str, str]
    requirements: dict[str, Requirement]

    def link(self, source: str) -> str:
        """Return a source, such as "RFC 8314 section 3", as Markdown."""
        name = max((name for name in self.sources if source.startswith(name)), key=len)
        return f"[{source}]({self.sources[name]})"


def read(file: Path = SOURCE) -> Catalogue:
    """Return the catalogue; raise KeyError or TypeError when *file* is no catalogue."""
    raw = yaml.safe_load(file.read_text())
    return Catalogue(raw["areas"], raw["sources"], {
        number: Requirement(number, each["says"], each["why"], each["source"], each["by"]) for number, each in raw["requirements"].items()
    })


def marked(decorators: list[ast.expr]) -> Iterator[str]:
    """Yield the requirements that *decorators*, or a value of pytestmark, name."""
    for node in decorators:
        for call in [part for part in ast.walk(node) if isinstance(part, ast.Call)]:
            if isinstance(call.func, ast.Attribute) and call.func.attr == MARK:
                yield from (argument.value for argument in call.args if isinstance(argument, ast.Constant))


def tests_in(file: Path) -> dict[str, list[str]]:
    """Return {test: the requirements that it names, or its file for all} of one file."""
    module = ast.parse(file.read_text())
    marks = [
        node.value for node in module.body
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
    ]
    for_all = list(marked(marks))
    return {
        node.name: [*marked(node.decorator_list)] or for_all for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def all_tests() -> dict[str, dict[str, list[str]]]:
    """Return {file, from the project on: {test: requirements}} of the tests of hosts."""
    files = sorted(PROJECT.glob("molecule/*/tests/test_*.py")) + sorted(PROJECT.glob("molecule/shared/verify/tests/test_*.py"))
    return {str(file.relative_to(PROJECT)): tests_in(file) for file in files}


def faults(catalogue: Catalogue, tests: dict[str, dict[str, list[str]]], variables: set[str]) -> Iterator[str]:
    """Yield what is wrong with the catalogue, the tests' marks, or the *variables* that it names."""
    proven = {number for found in tests.values() for numbers in found.values() for number in numbers}
    yield from (f"{number}: no test proves it" for number in catalogue.requirements.keys() - proven)
    for file, found in tests.items():
        for name, numbers in found.items():
            yield from (f"{file}: {name}: there is no requirement {number}" for number in numbers if number not in catalogue.requirements)
            if not numbers:
                yield f"{file}: {name}: it names no requirement"
    for number, requirement in catalogue.requirements.items():
        if requirement.area not in catalogue.areas:
            yield f"{number}: there is no area {requirement.area}"
        for role, names in requirement.by.items():
            if not (PROJECT / "roles" / role).is_dir():
                yield f"{number}: there is no role {role}"
            yield from (f"{number}: there is no variable {name}" for name in names if name not in variables)
        yield from (
            f"{number}: {source}: there is no address for it" for source in requirement.sources
            if not any(source.startswith(name) for name in catalogue.sources)
        )


def known_variables() -> set[str]:
    """Return the names of all variables of all roles."""
    files = PROJECT.glob("roles/*/meta/argument_specs.yml")
    return {name for file in files for name in yaml.safe_load(file.read_text())["argument_specs"]["main"].get("options", {})}


def code(names: list[str]) -> str:
    """Return names as Markdown."""
    return ", ".join(f"`{name}`" for name in names)


def document(catalogue: Catalogue, tests: dict[str, dict[str, list[str]]]) -> str:
    """Return docs/requirements.md."""
    by_number: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for file, found in tests.items():
        for numbers in found.values():
            for number in numbers:
                by_number[number][file] += 1
    parts = [HEAD]
    for area, title in catalogue.areas.items():
        parts.append(f"\n## {title}\n")
        for number, each in catalogue.requirements.items():
            if each.area != area:
                continue
            made = "; ".join(": ".join([f"`{role}`", *([code(names)] if names else [])]) for role, names in each.by.items())
            proofs = ", ".join(f"[{file.removeprefix('molecule/')}](../{file}) ({count})" for file, count in by_number[number].items())
            parts.append(
                f"### {number}\n\n**{each.says}**\n\n{each.why} ({', '.join(map(catalogue.link, each.sources))})\n\n"
                f"- Made so by {made}\n- Proven by {proofs}\n"
            )
    return "\n".join(parts)


def main() -> int:
    """Write the document, or check it; return the exit code."""
    catalogue, tests = read(), all_tests()
    found = sorted(faults(catalogue, tests, known_variables()))
    text = document(catalogue, tests)
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        found.append(f"{DOCUMENT.relative_to(PROJECT)} says something else than {SOURCE.name} and the tests: run `make docs`")
    for fault in found:
        print(fault)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
