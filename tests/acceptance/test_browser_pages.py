"""Every page in a browser: hostile texts run no script, axe-core finds nothing serious, nothing is from elsewhere."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.browsers import PAIR, Browser, Site, axe, browser, findings, site
from tests.factories import v2_event
from tests.processes import until
from tests.unit.test_alertmanager import POSTED

pytestmark = pytest.mark.slow

# The name of a window stays when another page is opened.
RUNS = "top.name=7"
HOSTILE = (
    f"</script><script>{RUNS}</script><img src=x onerror='{RUNS}'>\"><svg onload={RUNS}>"
    f"<b hx-on:load='{RUNS}' hx-get='/setup' hx-trigger='load'>{{{{7*7}}}}</b>"
)
ADDRESS = f"javascript:{RUNS}"
IN_ADDRESS = quote(HOSTILE, safe="")
GROUP = "hostile-group"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A receiver full of what attackers send: in texts, tags, numbers, codes, headers, bodies and answers of a sink."""
    with site(tmp_path_factory.mktemp("hostile")) as started:
        started.webhook.status, started.webhook.text = 422, HOSTILE
        fields = {
            "text": HOSTILE,
            "tag": HOSTILE,
            "from": HOSTILE,
            "to": [HOSTILE],
            "owner": HOSTILE,
            "media": [ADDRESS, HOSTILE],
            "applicationId": HOSTILE,
        }
        for number, message_id in enumerate((HOSTILE, "hostile-1", "hostile-2")):
            message = {**fields, "id": message_id}
            failed = v2_event(message_id, "message-failed", errorCode=4720 + number, description=HOSTILE, to=HOSTILE)
            started.receive({**failed, "carrierName": HOSTILE, "message": failed["message"] | message})
        group = {**fields, "id": GROUP, "to": [HOSTILE, ADDRESS]}
        for to, kind in ((HOSTILE, "message-sending"), (ADDRESS, "message-delivered")):
            event = v2_event(GROUP, kind, to=to, description=HOSTILE)
            started.receive({**event, "message": event["message"] | group})
        started.receive({"type": HOSTILE, "description": HOSTILE, "message": {**fields, "id": HOSTILE}})
        started.receive(body=f'["{HOSTILE}'.encode())
        user, _, password = PAIR.partition(":")
        started.api.post(
            f"/callbacks/bandwidth/v1?x={IN_ADDRESS}",
            content=HOSTILE.encode(),
            auth=(user, password),
            headers={"Authorization": "", "User-Agent": HOSTILE, "Content-Type": HOSTILE},
        )
        alert = {**POSTED["alerts"][0], "annotations": {"summary": HOSTILE}, "labels": {"alertname": HOSTILE}}
        started.api.post("/api/alerts/alertmanager", json={**POSTED, "alerts": [alert]}).raise_for_status()
        until(lambda: started.api.get("/api/status").json()["journal"]["pending"] == 0)
        until(lambda: sum(started.sink()["deadLetters"].values()) >= 2)
        yield started


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("empty"), lambda _: "") as started:
        yield started


def paths(stage: Site) -> list[str]:
    """All pages, with what the stage has."""
    found = [
        "/",
        "/messages",
        "/callbacks",
        "/callbacks?outcome=any",
        "/alerts",
        "/alerts?status=any",
        "/sinks",
        "/dead-letters",
        "/statistics",
        "/setup",
    ]
    found += [
        "/tags",
        "/statistics?by=from,carrierName,applicationId",
        "/statistics?by=hour&fromDateTime=2025",
        "/docs",
    ]
    found += ["/nowhere", "/docs/sinks", "/messages/nobody", "/messages?q=nothing", "/messages?deliveryCode=abc"]
    found += [f"/messages/{quote(message['id'], safe='')}" for message in stage.api.get("/api/messages").json()]
    found += [f"/alerts/{alert['id']}" for alert in stage.api.get("/api/alerts").json()]
    found += [f"/callbacks/{callback['id']}" for callback in stage.api.get("/api/callbacks").json()]
    found += [f"/sinks/{sink['name']}" for sink in stage.api.get("/api/sinks").json()]
    found += [f"/dead-letters?sink={sink['name']}" for sink in stage.api.get("/api/sinks").json()]
    return found


def attacks() -> list[str]:
    """Addresses that an attacker sends to somebody who is signed in."""
    found = [f"/{page}/{IN_ADDRESS}" for page in ("messages", "callbacks", "sinks", "docs")]
    names = ("q", "from", "to", "status", "deliveryCode", "tagPrefix", "by", "outcome", "reason", "sink", "messageId")
    for page in ("messages", "callbacks", "dead-letters", "statistics"):
        found += [f"/{page}?" + "&".join(f"{name}={IN_ADDRESS}" for name in (*names, HOSTILE))]
        found += [f"/{page}?fromDateTime={IN_ADDRESS}", f"/{page}?cursor={IN_ADDRESS}", f"/{page}?q={ADDRESS}"]
    return [*found, f"/tags?tag={IN_ADDRESS}&from={IN_ADDRESS}", f"/docs?q={IN_ADDRESS}", f"/{IN_ADDRESS}"]


def assert_nothing_ran(opened: Browser, path: str) -> None:
    assert opened.run("return top.name") == "", path
    assert opened.all("main img, main svg, main [hx-on\\:load]") == [], path
    for link in opened.run(
        "return [...document.querySelectorAll('[href], [src], [action]')].map(e => e.href ?? e.src)"
    ):
        assert not str(link).lower().startswith("javascript:"), path
    assert opened.complaints() == [], path


def test_hostile_texts_run_no_script_on_any_page(chromium: Browser, hostile: Site) -> None:
    chromium.base_url = hostile.server.url
    chromium.sign_in()
    chromium.requested_hosts()
    chromium.complaints()
    opened = [*paths(hostile), *attacks()]
    for path in opened:
        chromium.open(path)
        for details in chromium.all("details:not([open]) summary"):
            details.click()
        assert_nothing_ran(chromium, path)
    assert chromium.requested_hosts() <= {hostile.server.url.removeprefix("http://"), "data:"}


@pytest.mark.parametrize("goal", [HOSTILE, ADDRESS, "//evil.example/", "https://evil.example/", "\\\\evil.example"])
def test_a_hostile_goal_of_the_sign_in_leads_to_the_start(chromium: Browser, hostile: Site, goal: str) -> None:
    chromium.base_url = hostile.server.url
    chromium.complaints()
    chromium.sign_in(path=f"/login?next={quote(goal, safe='')}")
    until(lambda: chromium.all("h1"))
    assert chromium.driver.current_url.startswith(hostile.server.url)
    assert chromium.run("return top.name") == ""
    assert chromium.complaints() == []


def test_a_page_in_which_a_script_would_run_is_noticed(chromium: Browser, hostile: Site) -> None:
    """The policy stops an inline script, the console says so, and the test of all pages would fail."""
    chromium.base_url = hostile.server.url
    chromium.sign_in(path="/messages")
    chromium.complaints()
    chromium.run("document.querySelector('main').insertAdjacentHTML('beforeend', arguments[0])", HOSTILE)
    until(lambda: any("Content Security Policy" in complaint for complaint in chromium.complaints()))
    assert chromium.run("return top.name") == ""


# --- accessibility


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 360)])
@pytest.mark.parametrize("stage", ["hostile", "empty"])
def test_axe_finds_nothing_serious_on_any_page(
    chromium: Browser, request: pytest.FixtureRequest, stage: str, scheme: str, width: int
) -> None:
    on: Site = request.getfixturevalue(stage)
    source = axe()
    chromium.base_url = on.server.url
    chromium.emulate(scheme=scheme, width=width)
    try:
        chromium.driver.delete_all_cookies()
        chromium.open("/login")
        found = {"/login": findings(chromium, source)}
        chromium.sign_in()
        for path in paths(on):
            chromium.open(path)
            found[path] = findings(chromium, source)
    finally:
        chromium.emulate()
    assert {path: serious for path, serious in found.items() if serious} == {}
