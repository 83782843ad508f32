"""What support, developers and operators do on the pages, in a real browser, on data from the sandbox."""

import asyncio
import csv
import io
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from receiver import clock, tags
from receiver.storage.database import Database
from tests.browsers import ADMIN, CONFIG, PAIR, READER, Browser, Site, axe, browser, findings, site
from tests.databases import with_slow_rows
from tests.factories import callback as raw_callback
from tests.factories import v2_event
from tests.processes import PATIENT, serving, until
from tests.processing import process
from tests.rows import insert, message
from tests.servers import on_postgres
from tests.unit.test_alertmanager import POSTED

INVALID = "+15552024720"
PATHS = (
    "/",
    "/messages",
    "/callbacks",
    "/alerts",
    "/sinks",
    "/sinks/crm",
    "/dead-letters",
    "/statistics",
    "/setup",
    "/tags",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[Site]:
    """A receiver with messages of the sandbox: delivered, failed, contradicted, awaited, to a group, and inbound."""
    key = 'tag_keys = ["k1:tag-secret-of-the-shop"]'
    with site(tmp_path_factory.mktemp("shop"), lambda webhook: f"{key}\n{webhook.sink()}") as started:
        for number in range(3):
            started.send(f"+1919555000{number}", tag=f"order {number}")
        started.send(INVALID, tag="order 4712")
        started.send("+15552090007", tag="contradicted")
        started.send("+15552090005", tag="waiting")
        started.send("+19195554321", "+19195554322", INVALID, tag="a group")
        reply = {"from": INVALID, "to": "+19195551212", "text": "who is this?"}
        started.sandbox.post("/sandbox/inbound", json=reply).raise_for_status()
        started.settle()
        yield started


@pytest.fixture
def desk(chromium: Browser, shop: Site) -> Iterator[Browser]:
    """The browser at the shop, signed in with an admin token. A page that complains in the console fails the test."""
    chromium.base_url = shop.server.url
    chromium.emulate()
    chromium.sign_in()
    chromium.complaints()
    yield chromium
    chromium.emulate()
    assert chromium.complaints() == []


# --- support ---


def test_support_finds_what_became_of_a_message(desk: Browser, shop: Site) -> None:
    """The short journey of the default suite: from the number as a customer reads it out to the text of the ticket."""
    desk.requested_hosts()
    desk.one("input[name=q]").send_keys("(555) 202-4720", Keys.ENTER)
    until(lambda: desk.path.startswith("/messages?q="))
    rows = desk.all("main tbody tr")
    assert len(rows) == 3
    rows[-1].find_element("css selector", "a").click()
    until(lambda: desk.all("#ticket"))
    heading = desk.one("h1").text
    assert heading.startswith("Not delivered")
    assert "4720" in heading
    assert "Between the same two numbers" in desk.text
    times = desk.all("main time")
    assert times
    for shown in times:
        assert shown.get_attribute("title").endswith(" UTC")
        assert "UTC" not in shown.text
    address = desk.driver.current_url
    desk.press("Copy as text")
    desk.until_reads("Copied")
    ticket = desk.one("#ticket").text
    assert ticket.splitlines()[0].startswith(f"Message {shop.sent[3]}")
    assert "Timeline:" in ticket
    desk.press("as received")
    assert "INVALID" in desk.one("pre").text.upper()
    desk.press("Sign out")
    # A colleague follows the link.
    desk.driver.get(address)
    desk.one("#token").send_keys(READER, Keys.ENTER)
    until(lambda: desk.driver.current_url == address)
    assert desk.one("h1").text == heading
    assert desk.requested_hosts() <= {shop.server.url.removeprefix("http://"), "data:"}


@pytest.mark.slow
def test_support_filters_and_shares_what_is_filtered(desk: Browser, shop: Site) -> None:
    desk.open("/messages")
    desk.press("Filters")
    desk.fill("deliveryCode", "4720")
    desk.press("Filter")
    until(lambda: "deliveryCode=4720" in desk.path)
    assert {row.text.splitlines()[-1] for row in desk.all("main tbody .status")} <= {"failed", "partial"}
    address = desk.one("a[download]").get_attribute("href")
    answer = httpx2.get(str(address), cookies={"receiver_session": session(desk)}, **PATIENT)
    ids = {row["id"] for row in csv.DictReader(io.StringIO(answer.text))}
    assert len(ids) == len(desk.all("main tbody tr")) == 2
    desk.open("/messages?deliveryCode=abc")
    assert desk.one("[name=deliveryCode][aria-invalid]").is_displayed()
    desk.open("/messages?q=nothing-like-this")
    assert "No message matches" in desk.text


def session(desk: Browser) -> str:
    return str(desk.driver.get_cookie("receiver_session")["value"])


@pytest.mark.slow
def test_a_message_of_a_group_and_a_contradiction_are_explained(desk: Browser, shop: Site) -> None:
    desk.open("/messages?q=contradicted")
    desk.one("main tbody a").click()
    desk.until_reads("The failure counts, whichever came first")
    desk.open("/messages?q=a+group")
    desk.one("main tbody a").click()
    desk.until_reads("Delivered to some recipients")
    assert len(desk.all("#message .table:first-of-type tbody tr")) >= 3
    assert "+19195554322" in desk.text


@pytest.mark.slow
def test_an_open_message_follows_its_callbacks_and_loses_nothing_of_the_reader(desk: Browser, shop: Site) -> None:
    sending = v2_event("live-1", "message-sending", message={"id": "live-1", "tag": "live"})
    shop.receive(sending)
    until(lambda: shop.sink()["lag"] == 0)
    desk.open("/messages/live-1")
    until(lambda: desk.all("#message details"))
    desk.one("#message details summary").click()
    desk.run("document.querySelector('#message summary').focus()")
    desk.run("getSelection().selectAllChildren(document.querySelector('#message code'))")
    shop.receive(v2_event("live-1", "message-delivered", message={"id": "live-1", "tag": "live"}))
    until(lambda: desk.one("h1").text == "Delivered")
    assert desk.one("#message details").get_attribute("open") is not None
    assert desk.run("return document.activeElement.tagName") == "SUMMARY"
    assert desk.run("return getSelection().toString()") == "live-1"
    times = [shown.text for shown in desk.all("#message time")]
    assert times
    assert not [text for text in times if "UTC" in text]


# --- developers


@pytest.mark.slow
def test_a_developer_sets_up_and_sees_the_first_callback(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with site(tmp_path_factory.mktemp("new"), lambda _: "") as new:
        chromium.base_url = new.server.url
        chromium.emulate()
        chromium.sign_in()
        assert "No callback has come yet" in chromium.text
        chromium.press("Set-up")
        chromium.until_reads("Waiting for your first callback")
        urls = [element.text for element in chromium.all("code[id^=url]")]
        assert f"{new.server.url}/callbacks/bandwidth/v2" in urls
        chromium.press("With user and password")
        assert f"http://{PAIR}@" in chromium.one("code[id^=user]").text
        new.send("+19195550001")
        chromium.until_reads("Callbacks come in.")
        # The refresh closes nothing that was opened.
        assert chromium.one("code[id^=user]").is_displayed()
        assert chromium.one("#seen .good").is_displayed()
        assert chromium.complaints() == []


@pytest.mark.slow
def test_a_developer_reprocesses_quarantined_callbacks_after_a_tag_key_was_added(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, new_key = tmp_path_factory.mktemp("signed"), "tag-secret-of-the-new-program"
    with site(folder, lambda _: 'tag_policy = "require"\ntag_keys = ["k1:tag-secret-of-the-old-program"]\n') as signed:
        message_id = signed.send("+19195550001", tag=tags.sign("order 4711", new_key, kid="k2"))
        signed.settle()
        chromium.base_url = signed.server.url
        chromium.emulate()
        chromium.sign_in(path="/callbacks")
        until(lambda: chromium.all("main tbody tr"))
        chromium.one("main tbody a").click()
        chromium.until_reads("Why it is in quarantine")
        assert message_id in chromium.one("pre").text
        config = folder / "receiver.toml"
        config.write_text(config.read_text("utf-8").replace('program"]', f'program", "k2:{new_key}"]'), "utf-8")
        signed.server.process.send_signal(signal.SIGHUP)

        def is_accepted() -> bool:
            chromium.press("Process it again")
            return "It was processed again, and is accepted" in chromium.text

        until(is_accepted)
        chromium.one(f"main a[href*='{message_id}']").click()
        until(lambda: chromium.one("h1").text == "Delivered")
        assert "valid" in chromium.text
        check_tags(chromium)
        assert chromium.complaints() == []


def check_tags(chromium: Browser) -> None:
    """Signs a value on the page of tags, and checks the tag as it is and cut."""
    chromium.open("/tags")
    chromium.fill("value", "order 4712")
    chromium.press("Sign")
    until(lambda: chromium.all("#signed"))
    tag = chromium.one("#signed").text
    chromium.fill("tag", tag)
    chromium.press("Check")
    chromium.until_reads("The value is order 4712")
    chromium.fill("tag", tag[:-2])
    chromium.press("Check")
    chromium.until_reads("forged")


# --- operators


@pytest.mark.slow
def test_an_operator_sees_a_sink_down_and_requeues_dead_letters(desk: Browser, shop: Site) -> None:
    desk.open("/sinks/crm")
    shop.webhook.status = 503
    shop.send("+19195557001")
    until(lambda: "down" in desk.one("#sink .status").text, 90)
    desk.press("Test")
    desk.until_reads("The sink")
    shop.webhook.status = 422
    until(lambda: sum(shop.sink()["deadLetters"].values()) >= 1, 90)
    shop.send("+19195557002")
    until(lambda: sum(shop.sink()["deadLetters"].values()) >= 2, 90)
    shop.webhook.status = 200
    desk.open("/dead-letters?sink=crm")
    desk.press("Count what would be requeued")
    desk.until_reads("of crm would be published again")
    assert sum(shop.sink()["deadLetters"].values()) >= 2
    desk.press("Requeue these")
    desk.until_reads("dead letters requeued.")
    until(lambda: sum(shop.sink()["deadLetters"].values()) == 0, 90)


@pytest.mark.slow
def test_an_operator_stops_the_work_on_many_dead_letters(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("many")
    with site(folder) as many:
        many.receive(v2_event("m1"))
        until(lambda: many.sink()["lastSuccessTime"])
        many.api.post("/api/sinks/crm/pause").raise_for_status()
        # A step of half a second has at most 25 batches of 500, with the pauses between them: twenty steps at least.
        database = folder / "receiver-data" / "receiver.db"
        add_dead_letters(database, 250_000)
        chromium.base_url = many.server.url
        chromium.emulate()
        chromium.sign_in(path="/dead-letters?sink=crm")
        chromium.press("Count what would be dropped")
        chromium.until_reads("250,000 dead letters of crm would be removed for good")
        assert dead_letters(database) == 250_000
        chromium.press("Drop these 250,000 for good")
        until(lambda: progress(chromium) > 0)
        first = progress(chromium)
        chromium.run("document.querySelector('#stop').focus()")
        until(lambda: progress(chromium) > first)
        # The steps follow by themselves, and take neither the focus nor show the button of a page without scripts.
        assert chromium.run("return document.activeElement.id") == "stop"
        assert not can_go_on(chromium)
        # A step that fails waits for a person, who can go on.
        chromium.offline(True)
        until(lambda: can_go_on(chromium))
        chromium.offline(False)
        before = progress(chromium)
        chromium.press("Go on")
        until(lambda: progress(chromium) > before)
        chromium.run("document.querySelector('#stop').focus()")
        chromium.keys(Keys.ENTER)
        until(lambda: progress(chromium) == 0)
        assert chromium.path == "/dead-letters?sink=crm"
        assert 0 < dead_letters(database) < 250_000
        # The only complaint is that of htmx about the network.
        assert {"Failed to fetch" in complaint for complaint in chromium.complaints()} == {True}


def progress(opened: Browser) -> int:
    """How far the work on the page is; 0 without any."""
    return int(opened.run("return document.querySelector('#result progress')?.value ?? 0"))


def can_go_on(opened: Browser) -> bool:
    return bool(opened.run("return document.querySelector('[data-go-on]')?.checkVisibility() ?? false"))


def add_dead_letters(database: Path, number: int) -> None:
    """As many copies of the last event, which the sink `crm` has refused."""
    numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {number})"
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(events)")]
        changed = {"position": "position + n", "id": "id || '-' || n"}
        values = ", ".join(changed.get(name, name) for name in names)
        newest = "FROM events, numbers WHERE position = (SELECT max(position) FROM events)"
        connection.execute(f"{numbers} INSERT INTO events ({', '.join(names)}) SELECT {values} {newest}")
        connection.execute(
            "INSERT INTO dead_letters (sink, position, event_id, reason, detail, attempts, first_at, died_at, "
            "ordering_key) SELECT 'crm', position, id, 'refused', 'status 422', 1, received_at, received_at, id "
            "FROM events WHERE id LIKE '%-%' ORDER BY position DESC LIMIT ?",
            [number],
        )


def dead_letters(database: Path) -> int:
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        return int(connection.execute("SELECT count(*) FROM dead_letters").fetchone()[0])


@pytest.mark.slow
def test_an_operator_acknowledges_mutes_and_resolves_an_alert_of_another_program(desk: Browser, shop: Site) -> None:
    shop.api.post("/api/alerts/alertmanager", json=POSTED).raise_for_status()
    desk.open("/")
    desk.press("Alerts fire")
    desk.press("ProbeFailure")
    until(lambda: desk.all("#alert"))
    desk.run("window.refreshes = 0; document.addEventListener('htmx:after:swap', () => window.refreshes++)")
    desk.one("#for").send_keys("8 hours")
    until(lambda: desk.run("return window.refreshes") >= 1)
    assert desk.one("#for").get_attribute("value") == "8h"
    desk.press("Mute")
    desk.until_reads("nobody is notified that it fires")
    assert "Muted until" in desk.text
    desk.press("End the mute")
    desk.until_reads("not muted any more")
    desk.press("Acknowledge")
    desk.until_reads("The alert is acknowledged.")
    assert not desk.has("Acknowledge")
    desk.press("Resolve")
    desk.until_reads("The alert is resolved.")
    assert not desk.has("Resolve")
    assert "Nobody" in desk.text
    [alert] = shop.api.get("/api/alerts", params={"name": "ProbeFailure"}).json()
    assert (alert["status"], alert["acknowledgedTime"] is not None) == ("resolved", True)


@pytest.mark.slow
def test_an_operator_counts_by_what_the_form_offers(desk: Browser, shop: Site) -> None:
    desk.open("/statistics")
    Select(desk.one("[name=by]")).select_by_visible_text("Status")
    Select(desk.one("[name=by2]")).select_by_visible_text("Direction")
    desk.press("Count")
    until(lambda: "by2=direction" in desk.path and desk.all("main tbody tr"))
    heads = [head.text for head in desk.all("main th")]
    assert heads[:3] == ["Status", "Direction", "Deliveries"]
    address = str(desk.one("a[download]").get_attribute("href"))
    answer = httpx2.get(address, cookies={"receiver_session": session(desk)}, **PATIENT)
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["status"], row["direction"]) for row in rows] == [
        tuple(cell.text for cell in row.find_elements("css selector", "td")[:2]) for row in desk.all("main tbody tr")
    ]


@contextmanager
def signed_in(chromium: Browser, folder: Path, database_url: str, path: str) -> Iterator[None]:
    """A receiver on this database, with the browser on one of its pages."""
    (folder / "receiver.toml").write_text(CONFIG, "utf-8")
    with serving(folder, settings={"DATABASE_URL": database_url}) as server:
        chromium.base_url = server.url
        chromium.emulate()
        chromium.sign_in(path=path)
        yield


@pytest.mark.slow
def test_a_long_search_goes_on_by_itself_until_somebody_stops_it(
    chromium: Browser, tmp_path: Path, postgres_url: str
) -> None:
    async def stock() -> None:
        database = Database(postgres_url)
        now = clock.now()
        await insert(database, *(message(f"m{n:03}", at=now - timedelta(hours=n)) for n in range(120)))
        await database.close()

    asyncio.run(stock())
    with_slow_rows(postgres_url, "messages", 0.008)
    with signed_in(chromium, tmp_path, postgres_url, "/messages?from=9195550001&size=1000"):
        rows = "return document.querySelectorAll('#rows tr').length"
        until(lambda: chromium.run(rows) > 0)
        assert not can_go_on(chromium)
        # Steps come while somebody holds the button.
        before = chromium.run(rows)
        ActionChains(chromium.driver).click_and_hold(chromium.one("[data-stop]")).perform()
        until(lambda: chromium.run(rows) > before)
        ActionChains(chromium.driver).release().perform()
        until(lambda: can_go_on(chromium))
        assert chromium.run("return document.activeElement.textContent") == "Search on"
        stopped = chromium.run(rows)
        assert 0 < stopped < 120
        time.sleep(0.5)  # the next step would have come within 0.3 s
        assert chromium.run(rows) == stopped
        assert findings(chromium, axe()) == []
        # The table has the columns of the rows to come.
        assert [head.text for head in chromium.all("main th")][-1] == "Text"
        chromium.press("Search on")
        # A tab that nobody sees goes on, too.
        chromium.run("Object.defineProperty(document, 'hidden', { value: true })")
        chromium.until_reads("120 messages found.")
        ids = [str(link.get_attribute("href")) for link in chromium.all("#rows a")]
        assert [address.partition("messages/")[2][:4] for address in ids] == [f"m{n:03}" for n in range(120)]
        assert chromium.run("return document.querySelectorAll('#rows td:not([data-label])').length") == 0
        assert chromium.path == "/messages?from=9195550001&size=1000"
        assert not can_go_on(chromium)
        # A step that fails waits for a person, who can go on.
        chromium.open("/messages?from=9195550001&size=1000")
        until(lambda: chromium.run(rows) > 0)
        chromium.offline(True)
        until(lambda: can_go_on(chromium))
        chromium.offline(False)
        chromium.press("Search on")
        chromium.until_reads("120 messages found.")
        assert {"Failed to fetch" in complaint for complaint in chromium.complaints()} == {True}
        # So does a step that is answered with an error.
        chromium.open("/messages?from=9195550001&size=1000")
        until(lambda: chromium.run(rows) > 0)
        on_postgres(postgres_url, "ALTER VIEW messages RENAME TO away")
        until(lambda: can_go_on(chromium))
        assert "The numbers are not refreshed" in chromium.text
        assert not chromium.one("[data-stop]").is_displayed()
        on_postgres(postgres_url, "ALTER VIEW away RENAME TO messages")
        chromium.press("Search on")
        chromium.until_reads("120 messages found.")
        assert "The numbers are not refreshed" not in chromium.text


@pytest.mark.slow
def test_numbers_that_take_long_come_after_their_page(chromium: Browser, tmp_path: Path, postgres_url: str) -> None:
    async def stock() -> None:
        database = Database(postgres_url)
        for hours in (0, 1, *range(1000, 31_000, 1000)):
            created = (clock.now() - timedelta(hours=hours)).isoformat()
            await process(database, raw_callback([v2_event(f"m{hours}", message={"id": f"m{hours}", "time": created})]))
        await database.close()

    asyncio.run(stock())
    with_slow_rows(postgres_url, "statistics", 0.2)
    with signed_in(chromium, tmp_path, postgres_url, "/statistics?by=hour&fromDateTime=3h"):
        until(lambda: chromium.all(".chart canvas"))
        assert len(chromium.all("#counts .table tbody tr")) == 2
        # These take longer than a statement may.
        chromium.open("/statistics?by=from,status&fromDateTime=2019")
        chromium.press("Stop")
        chromium.until_reads("Show the numbers")
        assert findings(chromium, axe()) == []
        time.sleep(5)  # the answer would have come after four seconds
        assert "Counting…" in chromium.text
        # What is wrong with them is shown in their place.
        chromium.press("Show the numbers")
        chromium.until_reads("The search takes too long")
        assert "Counting…" not in chromium.text
        chromium.open("/")
        chromium.until_reads("Counting the deliveries of the last days")
        chromium.until_reads("Deliveries of the last 24 hours")
        until(lambda: chromium.all(".chart canvas"))
        assert chromium.complaints() == []


@pytest.mark.slow
def test_an_operator_pauses_a_sink_and_cancels_a_replay(desk: Browser, shop: Site) -> None:
    desk.open("/sinks/crm")
    desk.press("Pause")
    desk.until_reads("The sink is paused")
    until(lambda: shop.sink()["state"] == "paused")
    desk.fill("from", "beginning")
    desk.press("Count first")
    desk.until_reads("would be published again")
    desk.press("Publish these")
    desk.until_reads("as soon as the sink is resumed")
    until(lambda: desk.all("#sink progress"))
    desk.fill("messageIds", "half-typed")
    # Two refreshes of the live part: what is typed stays.
    desk.run("window.refreshes = 0; document.addEventListener('htmx:after:swap', () => window.refreshes++)")
    until(lambda: desk.run("return window.refreshes") >= 2)
    assert desk.one("[name=messageIds]").get_attribute("value") == "half-typed"
    desk.press("Cancel")
    desk.until_reads("The replay is cancelled")
    desk.press("Resume")
    desk.until_reads("The sink goes on")


@pytest.mark.slow
def test_a_read_token_sees_everything_and_can_do_nothing(desk: Browser, shop: Site) -> None:
    desk.sign_in(READER)
    for path in PATHS:
        desk.open(path)
        assert desk.one("h1").is_displayed(), path
        for words in ("Pause", "Test", "Requeue", "Count", "Process", "With user", "Acknowledge", "Mute"):
            assert (words == "Count" and path == "/statistics") or not desk.has(words), (path, words)
    answer = httpx2.get(f"{shop.server.url}/setup", cookies={"receiver_session": session(desk)}, **PATIENT)
    assert PAIR.partition(":")[2] not in answer.text


@pytest.mark.slow
def test_the_overview_says_when_it_is_not_refreshed(desk: Browser, shop: Site) -> None:
    desk.open("/")
    assert not desk.one("#stale").is_displayed()
    before = desk.one(".tiles").text
    desk.offline(True)
    until(lambda: desk.one("#stale").is_displayed())
    assert desk.one(".tiles").text == before
    desk.offline(False)
    until(lambda: not desk.one("#stale").is_displayed())
    # The only complaint is that of htmx about the network.
    assert {"Failed to fetch" in complaint for complaint in desk.complaints()} == {True}


# --- everybody


@pytest.mark.slow
def test_a_message_is_found_with_the_keyboard_alone(chromium: Browser, shop: Site) -> None:
    chromium.base_url = shop.server.url
    chromium.driver.delete_all_cookies()
    chromium.open("/messages")
    chromium.keys(ADMIN, Keys.ENTER)
    until(lambda: chromium.path == "/messages")
    chromium.one("body").send_keys(Keys.TAB)
    assert chromium.driver.switch_to.active_element.text == "Skip to the content"
    chromium.keys(Keys.ENTER)
    focused = []
    for _ in range(20):
        chromium.keys(Keys.TAB)
        element = chromium.driver.switch_to.active_element
        focused.append(element.tag_name)
        if "messages/" in (element.get_attribute("href") or ""):
            break
    # The content begins with the filters; the message follows without a detour over the navigation.
    assert focused[0] == "summary"
    outline = chromium.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    chromium.keys(Keys.ENTER)
    until(lambda: chromium.all("#ticket"))


@pytest.mark.slow
def test_an_address_that_is_no_page_leads_back(desk: Browser, shop: Site) -> None:
    desk.open("/mesages/x")
    assert desk.one("h1").text == "Nothing is here"
    desk.one("input[name=q]").send_keys("order 4712", Keys.ENTER)
    until(lambda: desk.path.startswith("/messages?q="))
    desk.open("/mesages/x")
    desk.one("main p a").click()
    until(lambda: desk.path == "/messages")


@pytest.mark.slow
def test_escape_closes_the_filters_and_leaves_the_focus_on_them(desk: Browser, shop: Site) -> None:
    desk.open("/messages")
    desk.press("Filters")
    desk.one("main [name=from]").send_keys("+1", Keys.ESCAPE)
    assert not desk.one("main [name=from]").is_displayed()
    assert desk.run("return document.activeElement.tagName") == "SUMMARY"
    desk.keys(Keys.ENTER)
    assert desk.one("main [name=from]").get_attribute("value") == "+1"


@pytest.mark.slow
def test_the_tag_of_a_message_is_checked_from_its_page(desk: Browser, shop: Site) -> None:
    desk.open("/messages?q=order+4712")
    desk.one("main tbody a").click()
    until(lambda: desk.all("#ticket"))
    desk.press("check")
    until(lambda: desk.path.startswith("/tags"))
    filled = [desk.one(f"main [name={name}]").get_attribute("value") for name in ("tag", "from", "to")]
    assert filled == ["order 4712", "+19195551212", INVALID]
    desk.press("Check")
    desk.until_reads("unsigned")


@pytest.mark.slow
def test_no_table_is_cut_off_at_a_desk(desk: Browser, shop: Site) -> None:
    for path in (*PATHS, "/callbacks?outcome=any", f"/messages/{shop.sent[3]}", "/statistics?by=hour,status"):
        desk.open(path)
        for table in desk.all("main .table"):
            assert desk.run("return arguments[0].scrollWidth <= arguments[0].clientWidth", table), path


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone(desk: Browser, shop: Site) -> None:
    desk.emulate(width=360, height=740)
    for path in (*PATHS, "/docs", f"/messages/{shop.sent[3]}", "/statistics?by=hour", "/docs/sinks"):
        desk.open(path)
        assert desk.run("return document.documentElement.scrollWidth") <= 360, path
    desk.open("/messages")
    row = desk.one("main tbody tr")
    assert row.size["width"] <= 360
    assert row.find_element("css selector", ".status").location["x"] < 360


@pytest.mark.slow
def test_everything_but_what_is_live_works_without_scripts(desk: Browser, shop: Site) -> None:
    desk.emulate(scripts=False)
    desk.open("/messages?q=order+4712")
    assert "UTC" in desk.one("main time").text
    desk.one("main tbody a").click()
    until(lambda: desk.all("#ticket"))
    desk.open("/sinks/crm")
    desk.press("Test")
    desk.until_reads("The sink can be reached")


@pytest.mark.slow
def test_wrong_token_is_refused_and_sign_out_ends_the_session(chromium: Browser, shop: Site) -> None:
    chromium.base_url = shop.server.url
    chromium.driver.delete_all_cookies()
    chromium.open("/sinks")
    chromium.one("#token").send_keys("wrong", Keys.ENTER)
    chromium.until_reads("This token is not accepted")
    chromium.one("#token").send_keys(ADMIN, Keys.ENTER)
    until(lambda: chromium.path == "/sinks")
    chromium.press("Sign out")
    until(lambda: chromium.path == "/login")
    chromium.driver.back()
    chromium.driver.refresh()
    assert chromium.one("h1").text == "Sign in"
