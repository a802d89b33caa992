"""What a verification came to, per host and requirement: as JSON, SARIF and one HTML page, and what changed since the last one."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import catalogue
import jinja2
from evidence import without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

PROVEN, VIOLATED, NOT_PROVEN, NOT_CLAIMED = "proven", "violated", "not proven", "not claimed"
STATES = (VIOLATED, NOT_PROVEN, PROVEN, NOT_CLAIMED)
# How a test says that it does not concern the host.
UNCLAIMED = "not claimed: "
ELSEWHERE = "no test of it only reads; the kit's own scenarios prove it"
SHOWN_OF_A_TEST = ("test", "file", "says", "outcome", "seconds", "evidence")
HISTORY_KEPT = 100
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def state_of(tests: list[dict], *, claimed: bool) -> tuple[str, str]:
    """Return the state of one requirement on one host, and why it is no better, from what its *tests* came to."""
    if not claimed:
        return NOT_CLAIMED, "the inventory does not claim it"
    asked = [test for test in tests if not (test["outcome"] == "skipped" and test["why"].startswith(UNCLAIMED))]
    if not tests:
        return NOT_PROVEN, ELSEWHERE
    if not asked:
        return NOT_CLAIMED, tests[0]["why"].removeprefix(UNCLAIMED)
    for outcome, state in (("failed", VIOLATED), ("skipped", NOT_PROVEN)):
        for test in asked:
            if test["outcome"] == outcome:
                return state, test["why"].removeprefix("not proven: ")
    return PROVEN, ""


def nearness(figure: dict) -> float:
    """Return how near a figure is to its limit: 1 is at it, more is past it."""
    if figure["most"]:
        return figure["value"] / figure["most"]
    return figure["least"] / max(figure["value"], 0.1) if figure["least"] else 0.0


def make(hosts: list[dict], tests: list[dict], about: dict) -> dict:
    """Return the report of *hosts*, as their inventory declares them, from what the *tests* came to."""
    known = catalogue.read()
    found = []
    for host in hosts:
        own = [test for test in tests if test["host"] == host["name"]]
        requirements = []
        for number, requirement in known.requirements.items():
            concerned = [test for test in own if number in test["requirements"]]
            state, why = state_of(concerned, claimed=not host["claims"] or number in host["claims"])
            requirements.append({
                "number": number, "area": known.areas[requirement.area], "says": requirement.says, "state": state,
                "why": without_secrets(why, []), "tests": [
                    {**{name: test[name] for name in SHOWN_OF_A_TEST}, "why": without_secrets(test["why"], [])} for test in concerned
                ],
            })
        figures = [json.loads(text) for text in sorted({text for test in own for text in test["figures"]})]
        found.append({
            "name": host["name"], "profile": host["profile"], "requirements": requirements,
            "figures": sorted(figures, key=nearness, reverse=True),
        })
    return {**about, "hosts": found}


def violations(made: dict) -> list[tuple[str, str, str]]:
    """Return (host, requirement, why) of all that is violated."""
    return [
        (host["name"], each["number"], each["why"]) for host in made["hosts"] for each in host["requirements"] if each["state"] == VIOLATED
    ]


def states(made: dict) -> dict[str, str]:
    """Return {"host requirement": state}."""
    return {f"{host['name']} {each['number']}": each["state"] for host in made["hosts"] for each in host["requirements"]}


def changes(before: dict | None, made: dict) -> list[dict]:
    """Return what is otherwise than in the report *before*, if there was one."""
    earlier = states(before) if before else {}
    return [
        {"what": what, "was": earlier[what], "is": state} for what, state in states(made).items() if earlier.get(what, state) != state
    ]


def last(folder: Path) -> dict | None:
    """Return the last report in *folder*."""
    files = sorted((folder / "history").glob("*.json"))
    return json.loads(files[-1].read_text()) if files else None


def sarif(made: dict) -> dict:
    """Return the report as SARIF 2.1.0: a result for each requirement that is not proven.

    https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
    """
    levels = {VIOLATED: "error", NOT_PROVEN: "note"}
    known = catalogue.read()
    return {"$schema": SARIF, "version": "2.1.0", "runs": [{
        "tool": {"driver": {"name": "letterlock verify", "semanticVersion": made["kit"], "rules": [
            {"id": number, "shortDescription": {"text": each.says}, "fullDescription": {"text": each.why}}
            for number, each in known.requirements.items()
        ]}},
        "results": [
            {
                "ruleId": each["number"], "level": levels[each["state"]], "kind": "fail" if each["state"] == VIOLATED else "open",
                "message": {"text": f"{host['name']}: {each['says']} {each['why']}"},
                "locations": [{"logicalLocations": [{"name": host["name"], "kind": "resource"}]}],
            }
            for host in made["hosts"] for each in host["requirements"] if each["state"] in levels
        ],
    }]}


def write(made: dict, folder: Path) -> None:
    """Write the report in all its forms to *folder*, and keep it in the history there."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    made["changes"] = changes(last(folder), made)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(made["begun"]))
    history = folder / "history"
    history.mkdir(mode=0o750, exist_ok=True)
    text = json.dumps(made, indent=2)
    (history / f"{stamp}.json").write_text(text)
    for old in sorted(history.glob("*.json"))[:-HISTORY_KEPT]:
        old.unlink()
    (folder / "report.json").write_text(text)
    (folder / "report.sarif").write_text(json.dumps(sarif(made), indent=2))
    (folder / "report.html").write_text(page(made, folder))


def page(made: dict, folder: Path) -> str:
    """Return the report as a page that needs nothing but itself."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["moment"] = lambda seconds: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    runs = [json.loads(file.read_text()) for file in sorted((folder / "history").glob("*.json"))[-20:]]
    return environment.get_template("report.html.j2").render(
        made=made, states=STATES, areas=list(catalogue.read().areas.values()),
        counts=counts(made), violations=violations(made), runs=[(run["begun"], counts(run)) for run in runs],
    )


def counts(made: dict) -> Counter:
    """Return how many requirements are in which state, over all hosts."""
    return Counter(states(made).values())


def summary(made: dict) -> Iterator[str]:
    """Yield what people want to know first."""
    for host in made["hosts"]:
        found = Counter(each["state"] for each in host["requirements"])
        yield f"{host['name']}: " + ", ".join(f"{found[state]} {state}" for state in STATES)
    for host, number, why in violations(made):
        yield f"VIOLATED {host} {number}: {why.splitlines()[0] if why else ''}"
    for change in made["changes"]:
        yield f"since the last run: {change['what']} was {change['was']} and is {change['is']}"
