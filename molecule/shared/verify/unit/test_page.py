"""The report as people see it: in Debian's Chromium, headless, on a screen, a phone and paper, by day and by night."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path

import catalogue
import pytest
import report
from selenium import webdriver

WIDTHS = {"screen": 1280, "phone": 360}
HEIGHT = 900
SCHEMES = ["light", "dark"]
AXE = (files("axe_core_python") / "axe.min.js").read_text()
# https://www.deque.com/axe/core-documentation/api-documentation/#axe-core-tags
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
MAIL_CHART = "Oldest mail that remains, by mailbox"
FIGURES = [
    {"chart": MAIL_CHART, "what": f"{'a' * 40}@example.org, Trash (trash)", "value": 29.5, "unit": "days",
     "most": 30.0, "least": None},
    {"chart": MAIL_CHART, "what": "bob@example.org, INBOX (inbox)", "value": 500.0, "unit": "days", "most": 365.0,
     "least": None},
    {"chart": "Certificates, time left", "what": "imap", "value": 60, "unit": "days", "most": None, "least": 7},
]
SCREENSHOTS = Path(__file__).resolve().parents[4] / ".lab" / "results" / "screenshots"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Return the address of a report on two hosts, in which every state occurs, after another run in which none was violated."""
    folder = tmp_path_factory.mktemp("report")
    numbers = list(catalogue.read().requirements)
    for begun, outcomes in ((1_795_000_000.0, ("passed",)), (1_795_086_400.0, ("passed", "failed", "skipped"))):
        tests = [
            {
                "test": f"test_{number}", "file": "test_x.py", "host": host, "outcome": outcomes[index % len(outcomes)],
                "why": "port 143 is open\nit answers\n" + "x" * 300, "seconds": 0.1, "requirements": [number], "says": "It holds.",
                "figures": [json.dumps(each) for each in FIGURES],
                "evidence": [{"command": f"openssl s_client -connect {'mail' * 30}:993", "code": 0, "answer": "<b>CONNECTED</b>\n" * 5}],
            }
            for host in ("mail1", "mail2") for index, number in enumerate(numbers[:-3])
        ]
        hosts = [{"name": name, "claims": numbers[1:], "profile": "standard"} for name in ("mail1", "mail2")]
        about = {"begun": begun, "seconds": 3.0, "kit": "1", "inventory": "inventories/production"}
        report.write(report.make(hosts, tests, about), folder)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    """Return Chromium, without a network."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(params=[(name, scheme) for name in WIDTHS for scheme in SCHEMES], ids="-".join)
def page(request, browser, address):
    """Return the browser with the report, of a width and in a colour scheme; a picture of it is kept."""
    width, scheme = request.param
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": WIDTHS[width], "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width == "phone",
    })
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(address)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
    (SCREENSHOTS / f"{width}-{scheme}.png").write_bytes(base64.b64decode(picture))
    return browser


def test_it_is_accessible(page):
    """Axe finds nothing, with all that can be opened open."""
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; });")
    page.execute_script(AXE)
    found = page.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run({runOnly: {type: 'tag', values: arguments[0]}}).then(done);", RULES,
    )
    assert [(each["id"], [node["html"][:150] for node in each["nodes"][:3]]) for each in found["violations"]] == []
    assert len(found["passes"]) > 20


def test_it_fits(page):
    """Nothing has to be moved sideways to be read, on a phone either."""
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; });")
    assert page.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_it_asks_nothing_of_the_network(page):
    """Not one request but for the file itself, and no error."""
    asked = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {each["params"]["request"]["url"].split("#")[0] for each in asked if each["method"] == "Network.requestWillBeSent"}
    assert urls <= {page.current_url}
    assert page.get_log("browser") == []


def test_it_says_first_what_is_violated(page):
    """Each line leads to the requirement, which is open, with its evidence."""
    links = page.find_elements("css selector", "main > ul a")
    assert links
    links[0].click()
    (target,) = page.find_elements("css selector", "details:target")
    assert target.get_attribute("open")
    assert "port 143 is open" in target.text
    assert "s_client" in target.text


def test_it_is_operated_by_keyboard(page):
    """What is closed opens without a mouse."""
    summary = page.find_element("css selector", "details:not([open]) > summary")
    page.execute_script("arguments[0].focus()", summary)
    summary.send_keys("\ue007")
    assert summary.find_element("xpath", "..").get_attribute("open")


def test_it_is_printed_with_its_evidence(browser, address, tmp_path):
    """On paper nothing can be opened, so all is open."""
    browser.get(address)
    printed = browser.print_page()
    assert len(printed) > 10_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = browser.execute_script("return [...document.querySelectorAll('details pre')].filter((each) => !each.checkVisibility()).length")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == 0
