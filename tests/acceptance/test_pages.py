"""The pages as a browser requests them: sign-in, forms of other sites, hostile texts, and the pages for support."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import quote

import httpx2
import markupsafe
import pytest
from httpx2 import AsyncClient, Response
from msgspec.structs import replace
from sqlalchemy import func, literal, select
from starlette.applications import Starlette
from starlette.routing import Mount

from receiver import clock
from receiver.domain.alerts import RuleType
from receiver.models.columns import UTCDateTime
from receiver.models.events import EVENTS
from receiver.models.parameters import MessagePlace, message_cursor
from receiver.models.queries import DeadLetterQuery
from receiver.models.sinks import DEAD_LETTERS, RETRIES
from receiver.models.statistics_query import DIMENSIONS
from receiver.pages import messages as pages_of_messages
from receiver.pages import statistics
from receiver.pages.statistics import LABELS
from receiver.pages.visit import with_times
from receiver.storage import database as databases
from receiver.storage import dead_letters, sinks
from receiver.storage import statistics as stored_statistics
from receiver.storage.database import Database
from receiver.storage.journal import first_id
from receiver.storage.message_search import Patience
from receiver.storage.processor import Settling
from tests import alerting
from tests.databases import locked, with_slow_rows
from tests.factories import callback as raw_callback
from tests.factories import v2_event
from tests.processing import append, process
from tests.rows import inbound, insert, message, minutes
from tests.waiting import eventually
from tests.web import ADMIN, READER, application, client

pytestmark = pytest.mark.anyio

HTML = {"accept": "text/html"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"


@asynccontextmanager
async def browser(app: Any, token: str | None = ADMIN, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client with a session, as a browser has one after its sign-in."""
    async with client(app, HTML) as opened:
        if token is not None:
            answer = await opened.post("/login", data={"token": token})
            assert answer.status_code == 303, answer.text
        yield opened


@pytest.fixture
async def pages(database: Database) -> AsyncIterator[AsyncClient]:
    async with browser(application(database)) as opened:
        yield opened


def csrf_of(page: Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found is not None
    return found[1]


# --- sign-in ---


async def test_a_page_without_a_session_leads_to_the_sign_in_and_back(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        answer = await visitor.get("/messages", params={"q": "9195554321"})
        assert answer.status_code == 303
        login = await visitor.get(str(answer.url.join(answer.headers["location"])))
        assert 'name="token"' in login.text
        goal = re.search(r'name="next" value="([^"]+)"', login.text)
        assert goal is not None
        signed_in = await visitor.post("/login", data={"token": ADMIN, "next": goal[1]})
        assert signed_in.headers["location"] == "./messages?q=9195554321"


@pytest.mark.parametrize(
    "goal",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "../x",
        "javascript:x",
        "<b>",
        "m\u00fcll",
        "a b",
    ],
)
async def test_a_sign_in_leads_to_no_other_site(database: Database, goal: str) -> None:
    async with browser(application(database), None) as visitor:
        answer = await visitor.post("/login", data={"token": ADMIN, "next": goal})
        assert answer.headers["location"] == "./"


async def test_a_wrong_token_is_refused_and_throttled(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        answers = [await visitor.post("/login", data={"token": "wrong"}) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]
        assert int(answers[-1].headers["retry-after"]) > 0
        assert "wrong" not in answers[0].text


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        answer = await visitor.post("/login", data={"token": ADMIN})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("receiver_session=")
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "Secure" not in cookie
        visitor.base_url = httpx2.URL("https://receiver.example")
        assert "; Secure" in (await visitor.post("/login", data={"token": ADMIN})).headers["set-cookie"]


async def test_signing_out_ends_the_session(pages: AsyncClient) -> None:
    csrf = csrf_of(await pages.get("/messages"))
    answer = await pages.post("/logout", data={"csrf": csrf})
    assert answer.status_code == 303
    assert (await pages.get("/messages")).status_code == 303


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/callbacks", "/callbacks/bandwidth", "/callbacks/v2"])
async def test_a_program_with_a_wrong_callback_url_is_not_led_to_a_page(
    database: Database, method: str, path: str
) -> None:
    async with client(application(database), {}) as bandwidth:
        answer = await bandwidth.request(method, path, json=[v2_event("m1")])
        assert answer.status_code == 404


async def test_a_session_is_no_token_of_the_api(pages: AsyncClient) -> None:
    assert (await pages.get("/api/messages")).status_code == 401


async def test_without_api_auth_the_pages_need_no_session(database: Database) -> None:
    async with browser(application(database, tokens=None), None) as visitor:
        visitor.base_url = httpx2.URL("http://localhost")
        assert (await visitor.get("/messages")).status_code == 200


# --- forms of other sites ---


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)
async def test_a_form_of_another_site_is_refused(pages: AsyncClient, headers: dict[str, str]) -> None:
    csrf = csrf_of(await pages.get("/messages"))
    for path in ("/logout", "/login"):
        answer = await pages.post(path, data={"csrf": csrf, "token": ADMIN}, headers=headers)
        assert answer.status_code == 403, path
    assert (await pages.get("/messages")).status_code == 200


async def test_a_form_without_the_secret_of_the_session_is_refused(pages: AsyncClient) -> None:
    for data in ({}, {"csrf": "0" * 64}, {"csrf": "\u00e4"}):
        assert (await pages.post("/logout", data=data)).status_code == 403
    assert (await pages.get("/messages")).status_code == 200


# --- what a browser is told ---


async def test_a_page_allows_no_scripts_but_its_own_and_is_not_cached(pages: AsyncClient) -> None:
    answer = await pages.get("/messages")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"


async def test_a_page_loads_nothing_from_elsewhere(pages: AsyncClient) -> None:
    page = await pages.get("/messages")
    addresses = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) >= 4
    for address in addresses:
        assert "//" not in address
        answer = await pages.get(str(page.url.join(address)))
        assert answer.status_code == 200, address
        if "static/" in address:
            assert "immutable" in answer.headers["cache-control"]
    assert "<style" not in page.text
    assert "style=" not in page.text


async def test_pages_work_under_a_prefix(database: Database) -> None:
    await insert(database, message(id="with/slash"))
    app = Starlette(routes=[Mount("/sms", application(database))])
    async with client(app, {}) as visitor:
        signed_in = await visitor.post("/sms/login", data={"token": ADMIN, "next": "messages"})
        assert signed_in.url.join(signed_in.headers["location"]).path == "/sms/messages"
        assert "Path=/sms" in signed_in.headers["set-cookie"]
        page = await visitor.get("/sms/messages")
        [link] = re.findall(r'href="([^"]*with%2Fslash[^"]*)"', page.text)
        one = await visitor.get(str(page.url.join(link.replace("&amp;", "&"))))
        assert one.status_code == 200
        [home] = re.findall(r'class="home" href="([^"]+)"', one.text)
        assert one.url.join(home).path == "/sms/"


# --- messages ---


@pytest.mark.parametrize("typed", ["(919) 555-4321", "919-555-4321", "+1 919 555 4321", "9195554321"])
async def test_one_box_finds_a_number_in_any_spelling(database: Database, pages: AsyncClient, typed: str) -> None:
    await process(database, raw_callback([v2_event("found", to="+19195554321")]))
    answer = await pages.get("/messages", params={"q": typed})
    assert "messages/found?" in answer.text


async def test_empty_fields_of_the_filters_are_no_filters(database: Database, pages: AsyncClient) -> None:
    await process(database, raw_callback([v2_event("m1")]))
    answer = await pages.get("/messages?q=&from=&status=delivered&deliveryCode=&fromDateTime=")
    assert answer.status_code == 200
    assert "messages/m1?" in answer.text


async def test_a_wrong_filter_is_named_at_its_field(pages: AsyncClient) -> None:
    answer = await pages.get("/messages?deliveryCode=abc&from=no+number+at+all+123456789012345678901234567890")
    assert answer.status_code == 400
    assert answer.text.count('aria-invalid="true"') == 2
    assert 'value="abc"' in answer.text


def further(page: Response) -> str | None:
    """The address at which a page goes on that is not complete."""
    found = re.search(r'data-go-on href="([^"]+)"', page.text)
    return str(page.url.join(unescape(found[1]))) if found is not None else None


@pytest.mark.slow
async def test_a_search_that_takes_too_long_says_how_to_narrow_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filters stay on the page, and no visitor is shown the same failure for the time that results are shared."""
    monkeypatch.setattr(databases, "STATEMENT_SECONDS", 0.2)
    patience = Patience(whole=0.05, in_spans=0.05, one_span=0.05)
    for name in ("_OF_PAGE", "_OF_STEP"):
        monkeypatch.setattr(pages_of_messages, name, patience)
    database = Database(postgres_url)
    await insert(database, message("m1"), message("m2"))
    sentence = "The search takes too long: give a shorter time, or a filter that fewer match."
    async with browser(application(database)) as visitor:
        for address, value, table in (
            ("/messages?applicationId=shop&to=%2B19195551212", "shop", "deliveries"),
            ("/statistics?by=from&applicationId=shop", "shop", "statistics"),
            ("/callbacks?messageId=m-1", "m-1", "callbacks"),
        ):
            async with locked(postgres_url, table):
                page = await visitor.get(address)
                while (following := further(page)) is not None:
                    page = await visitor.get(following)
                assert (page.status_code, page.headers["retry-after"]) == (503, "30"), address
                assert sentence in page.text, address
                assert f'value="{value}"' in page.text, address
                if table == "deliveries":
                    answer = await visitor.get(
                        "/api/messages?page=1&size=1", headers={"authorization": f"Bearer {ADMIN}"}
                    )
                    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
                    assert answer.json()["detail"] == sentence
            assert (await visitor.get(address)).status_code == 200
    await database.close()


async def test_a_search_that_takes_long_goes_on_in_steps(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By links, as without scripts: each step has its rows, how far the search is, and at the end the whole page."""
    monkeypatch.setattr(pages_of_messages, "_OF_PAGE", Patience(whole=0.02, in_spans=0.05, whole_again=True))
    monkeypatch.setattr(pages_of_messages, "_OF_STEP", Patience(whole=0.03, in_spans=0.05))
    database = Database(postgres_url)
    await insert(database, *(message(f"m{number:02}", at=minutes(60 * number)) for number in range(40)))
    await asyncio.to_thread(with_slow_rows, postgres_url, "messages", 0.004)
    async with browser(application(database)) as visitor:
        page = await visitor.get("/messages?from=%2B19195550001&sortOrder=desc&size=30")
        shown, shares = [], []
        while True:
            assert page.status_code == 200
            shown += re.findall(r"messages/(m\d+)\?", page.text)
            if (following := further(page)) is None:
                break
            assert 'rel="next"' not in page.text
            assert "No message matches" not in page.text
            [number] = re.findall(r": (no|\d+) messages? found so far", page.text)
            assert int(number.replace("no", "0")) == len(shown)
            shares += [int(share) for share in re.findall(r'<progress max="100" value="(\d+)"', page.text)]
            page = await visitor.get(following)
        assert len(shares) > 1
        assert shares == sorted(shares)
        assert shown == [f"m{number:02}" for number in range(39, 9, -1)]
        assert "30 messages found." in page.text
        [following] = re.findall(r'href="([^"]+)" rel="next"', page.text)
        assert "size=30" in following
        assert "found=" not in following
        page = await visitor.get(str(page.url.join(unescape(following))))
        while (following := further(page)) is not None:
            shown += re.findall(r"messages/(m\d+)\?", page.text)
            page = await visitor.get(following)
        shown += re.findall(r"messages/(m\d+)\?", page.text)
        assert shown == [f"m{number:02}" for number in range(39, -1, -1)]
        # Nothing is found at the end of a search that went on.
        page = await visitor.get("/messages?from=%2B19195550001&applicationId=none")
        while (following := further(page)) is not None:
            page = await visitor.get(following)
        assert "No message matches these filters" in page.text
        # A step has the default size, too.
        page, shown = await visitor.get("/messages?from=%2B19195550001"), []
        while (following := further(page)) is not None:
            shown += re.findall(r"messages/(m\d+)\?", page.text)
            page = await visitor.get(following)
        assert len([*shown, *re.findall(r"messages/(m\d+)\?", page.text)]) == 25
    await database.close()


@pytest.mark.parametrize(
    "given",
    ["many", "٣", "9" * 5000, "-1", "1&size=0", "0&size=٣", f"0&size={'9' * 5000}", "5&size=1001", "0&size=nine"],
)
async def test_what_no_step_of_a_search_has_is_refused(pages: AsyncClient, given: str) -> None:
    assert (await pages.get(f"/messages?found={given}")).status_code == 400


async def test_the_next_page_follows_the_page_with_a_number(database: Database, pages: AsyncClient) -> None:
    await insert(database, *(message(f"m{number}", at=minutes(-number)) for number in range(9)))
    page = await pages.get("/messages?size=2&page=1")
    [following] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    page = await pages.get(str(page.url.join(unescape(following))))
    assert re.findall(r"messages/(m\d+)\?", page.text) == ["m4", "m5"]
    [following] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    await pages.get(str(page.url.join(unescape(following))))
    page = await pages.get("/messages?size=2&page=3")
    [following] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    page = await pages.get(str(page.url.join(unescape(following))))
    assert 'rel="next"' not in page.text
    cursor = message_cursor(MessagePlace.at(minutes(-9)))
    assert "There are no further messages" in (await pages.get(f"/messages?cursor={cursor}")).text


@pytest.mark.slow
async def test_the_api_goes_on_with_a_search_by_its_link(postgres_url: str) -> None:
    """A page ends after some three seconds, with what is found; the link leads to the rest."""
    database = Database(postgres_url)
    await insert(database, *(message(f"m{number:02}", at=minutes(60 * number)) for number in range(40)))
    await asyncio.to_thread(with_slow_rows, postgres_url, "messages", 0.06)
    headers = {"authorization": f"Bearer {ADMIN}", "accept": "application/json"}
    for path, expected in (("/api/messages", range(39, -1, -1)), ("/v1/users/u-1/messages", range(40))):
        async with client(application(database), headers) as visitor:
            visitor.auth = ("any", ADMIN) if path.startswith("/v1") else None  # type: ignore[assignment]
            address, sizes, shown = f"{path}?size=1000", [], []
            while address:
                answer = await visitor.get(address)
                assert answer.status_code == 200, answer.text
                sizes.append(len(answer.json()))
                shown += [found["id"] for found in answer.json()]
                address = answer.links.get("next", {}).get("url", "")
            assert shown == [f"m{number:02}" for number in expected]
            assert len(sizes) > 1
            assert sizes[0] > 0
    await database.close()


@pytest.mark.parametrize("address", ["/statistics?by=status", "/statistics?by=from", "/statistics?by=hour"])
async def test_statistics_that_take_long_come_after_their_page(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(statistics, "_PATIENCE_SECONDS", 0.05)
    database = Database(postgres_url)
    await process(database, raw_callback([v2_event("m1", message={"id": "m1", "time": clock.now().isoformat()})]))
    async with browser(application(database)) as visitor:
        async with locked(postgres_url, "statistics"):
            page = await visitor.get(address)
            assert (page.status_code, "Counting…" in page.text, "<tbody>" in page.text) == (200, True, False)
            assert "No delivery was counted" not in page.text
            following = further(page)
            assert following is not None
            waiting = asyncio.create_task(visitor.get(following))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        page = await waiting
        assert (page.status_code, further(page), "<tbody>" in page.text) == (200, None, True)
        assert "wait=" not in page.text
    await database.close()


async def test_what_helps_at_the_beginning_needs_no_numbers(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PATIENCE_SECONDS", 0.05)
    database = Database(postgres_url)
    async with browser(application(database)) as visitor, locked(postgres_url, "statistics"):
        page = await visitor.get("/")
        assert "No callback has come yet" in page.text
        assert "Counting the deliveries" in page.text
    await database.close()


async def test_the_overview_comes_before_its_numbers(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PATIENCE_SECONDS", 0.05)
    database = Database(postgres_url)
    await process(database, raw_callback([v2_event("m1", message={"id": "m1", "time": clock.now().isoformat()})]))
    async with browser(application(database)) as visitor:
        async with locked(postgres_url, "statistics"):
            page = await visitor.get("/")
            assert page.status_code == 200
            assert "Counting the deliveries" in page.text
            assert "Callbacks to process" in page.text

        async def is_counted() -> bool:
            page = await visitor.get("/")
            return "Counting the deliveries" not in page.text and "Deliveries, last 24" in page.text

        await eventually(is_counted)
        # An error that comes after its page is shown to who comes back for the numbers.
        monkeypatch.setattr(databases, "STATEMENT_SECONDS", 0.1)
        monkeypatch.setattr(statistics, "_STALE_NUMBERS_SECONDS", 0.0)
        monkeypatch.setattr(statistics, "_NUMBERS_SECONDS", 0.0)
        async with locked(postgres_url, "statistics"):
            assert "Counting the deliveries" in (await visitor.get("/")).text
            await asyncio.sleep(0.3)
            assert (await visitor.get("/")).status_code == 503
        monkeypatch.undo()
        # Numbers that are read again are those from before until they are there.
        monkeypatch.setattr(statistics, "_PATIENCE_SECONDS", 0.05)
        await eventually(is_counted)
        monkeypatch.setattr(statistics, "_NUMBERS_SECONDS", 0.0)
        async with locked(postgres_url, "statistics"):
            assert await is_counted()
    await database.close()


async def test_a_page_does_not_wait_long_for_the_processor(database: Database) -> None:
    await append(database, raw_callback([v2_event("m1")]), raw_callback([v2_event("m2")]))
    async with (
        asyncio.timeout(20),
        browser(application(database, settle=Settling(database, seconds=60).wait)) as visitor,
    ):
        for address in ("/messages", "/statistics?by=status", "/callbacks?outcome=any"):
            page = await visitor.get(address)
            assert (page.status_code, "2 callbacks are accepted and not processed yet" in page.text) == (200, True)


async def test_an_empty_result_says_what_was_looked_for(database: Database, pages: AsyncClient) -> None:
    assert "first-run" in (await pages.get("/messages")).text
    answer = await pages.get("/messages", params={"q": "nothing-like-this"})
    assert "No message matches <q>nothing-like-this</q>" in answer.text


async def test_older_messages_follow_by_the_link(database: Database, pages: AsyncClient) -> None:
    await insert(database, *(message(id=f"m{number}") for number in range(30)))
    page, shown = await pages.get("/messages"), set()
    shown |= set(re.findall(r"messages/(m\d+)\?", page.text))
    [following] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    second = await pages.get(str(page.url.join(following.replace("&amp;", "&"))))
    shown |= set(re.findall(r"messages/(m\d+)\?", second.text))
    assert len(shown) == 30
    assert 'rel="next"' not in second.text


async def test_csv_has_all_messages_that_the_filters_choose(database: Database, pages: AsyncClient) -> None:
    await insert(database, *(message(id=f"m{number}", tag="a" if number % 2 else "b") for number in range(1203)))
    answer = await pages.get("/messages.csv?tagPrefix=a&size=5&q=")
    assert answer.headers["content-disposition"] == 'attachment; filename="messages.csv"'
    lines = answer.text.splitlines()
    assert len(lines) == 1 + 601
    assert len(set(lines)) == len(lines)


async def test_a_message_begins_with_what_became_of_it(database: Database, pages: AsyncClient) -> None:
    event = v2_event("m1", "message-failed", errorCode=4720)
    await process(database, raw_callback([event]))
    page = await pages.get("/messages/m1")
    assert '<h1 class="failed">Not delivered: 4720 invalid destination address</h1>' in page.text
    assert re.search(r'href="\.\./callbacks/[^"]+">as received', page.text)
    assert "Copy as text" in page.text


async def test_messages_between_the_same_numbers_are_shown(database: Database, pages: AsyncClient) -> None:
    await insert(
        database,
        message(id="m1", sender="+15550001", to=["+15550002"]),
        message(id="m2", sender="+15550001", to=["+15550002"]),
        message(id="m3", sender="+15550001", to=["+15550003"]),
        inbound(id="m4", sender="+15550002", to=["+15550001"]),
    )
    page = await pages.get("/messages/m1")
    assert set(re.findall(r'href="\.\./messages/(m\d)\?', page.text)) == {"m2", "m4"}


async def test_an_id_of_two_messages_asks_which_one_is_meant(database: Database, pages: AsyncClient) -> None:
    await insert(database, message(id="m1"), inbound(id="m1"))
    page = await pages.get("/messages/m1")
    assert page.status_code == 409
    links = re.findall(r'href="(\?direction=\w+)"', page.text)
    assert sorted(links) == ["?direction=in", "?direction=out"]
    assert (await pages.get(f"/messages/m1{links[0]}")).status_code == 200


async def test_an_unknown_message_is_a_page_that_says_so(pages: AsyncClient) -> None:
    page = await pages.get("/messages/" + quote("<b>nobody</b>", safe=""))
    assert page.status_code == 404
    assert "There is no message &lt;b&gt;nobody&lt;/b&gt;" in page.text


async def test_hostile_texts_are_shown_and_not_run(database: Database, pages: AsyncClient) -> None:
    event = v2_event(HOSTILE, "message-failed", errorCode=4720, description=HOSTILE, tag=HOSTILE, sender=HOSTILE)
    event["message"] |= {
        "text": HOSTILE,
        "from": HOSTILE,
        "to": [HOSTILE],
        "media": [HOSTILE],
        "applicationId": HOSTILE,
    }
    await process(database, raw_callback([event]))
    addresses = ["/messages", f"/messages/{quote(HOSTILE, safe='')}", f"/messages?q={quote(HOSTILE)}"]
    addresses += [f"/messages?{name}={quote(HOSTILE)}" for name in ("from", "status", "deliveryCode", HOSTILE)]
    for address in addresses:
        page = await pages.get(address)
        assert page.status_code in (200, 400), address
        for tag in re.findall(r"<script[^>]*>", page.text):
            assert "src=" in tag, address
        assert "<img" not in page.text, address
        assert "49" not in re.findall(r"<title>(.*?)</title>", page.text)[0]


async def test_the_answers_of_sinks_are_for_admins(database: Database) -> None:
    async with browser(application(database), READER) as visitor:
        assert (await visitor.get("/messages")).status_code == 200


# --- callbacks ---


async def test_quarantined_callbacks_come_first_and_are_shown_byte_for_byte(
    database: Database, pages: AsyncClient
) -> None:
    broken = replace(raw_callback([v2_event("m1")]), body=b'[{"type": "\xff'), raw_callback([v2_event("m2")])
    await process(database, *broken)
    page = await pages.get("/callbacks")
    [link] = set(re.findall(r'href="(\./callbacks/[^"?]+)"', page.text))
    assert "unreadable" in page.text
    one = await pages.get(str(page.url.join(link)))
    assert "Why it is in quarantine" in one.text
    body = await pages.get(str(one.url.join(re.findall(r'href="([^"]+/body)"', one.text)[0])))
    assert body.content == broken[0].body
    assert body.headers["content-disposition"].startswith("attachment")
    everything = await pages.get("/callbacks?outcome=any")
    assert len(set(re.findall(r'href="(\./callbacks/[^"?]+)"', everything.text))) == 2


async def test_a_callback_leads_to_its_messages(database: Database, pages: AsyncClient) -> None:
    raw = raw_callback([v2_event("m1"), v2_event("m/2")])
    await process(database, raw)
    page = await pages.get(f"/callbacks/{raw.id}")
    assert re.findall(r'href="\.\./messages/([^"?]+)\?', page.text) == ["m1", "m%2F2"]


async def test_a_callback_is_processed_again_from_its_page(database: Database, pages: AsyncClient) -> None:
    raw = raw_callback([{"type": "unheard-of", "message": {"id": "m1"}}])
    await process(database, raw)
    page = await pages.get(f"/callbacks/{raw.id}")
    answer = await pages.post(f"/callbacks/{raw.id}", data={"csrf": csrf_of(page)})
    assert "processed again, and stays in quarantine: unknown-type" in answer.text
    answer = await pages.post("/callbacks", data={"csrf": csrf_of(page), "reason": "", "messageId": ""})
    assert "1 callback was processed again; 1 of them stay in quarantine." in answer.text


async def test_a_read_token_sees_callbacks_and_cannot_process_them(database: Database) -> None:
    raw = raw_callback([{"type": "unheard-of", "message": {"id": "m1"}}])
    await process(database, raw)
    async with browser(application(database), READER) as visitor:
        page = await visitor.get(f"/callbacks/{raw.id}")
        assert "Process it again" not in page.text
        answer = await visitor.post(f"/callbacks/{raw.id}", data={"csrf": csrf_of(page)})
        assert answer.status_code == 403
        assert "may only read" in answer.text


# --- set-up and tags ---


async def test_the_set_up_has_the_urls_and_shows_the_first_callback(database: Database, pages: AsyncClient) -> None:
    page = await pages.get("/setup")
    assert "http://receiver.example/callbacks/bandwidth/v2" in page.text
    assert "http://bandwidth:callback-password-c0d@receiver.example/callbacks/bandwidth/v1" in page.text
    assert "Waiting for your first callback" in page.text
    await process(database, raw_callback([v2_event("m1")]))
    assert "Callbacks come in." in (await pages.get("/setup")).text


async def test_a_read_token_sees_no_password_of_callbacks(database: Database) -> None:
    async with browser(application(database), READER) as visitor:
        page = await visitor.get("/setup")
        assert "/callbacks/bandwidth/v1" in page.text
        assert "callback-password" not in page.text


async def test_a_tag_is_signed_and_checked(pages: AsyncClient) -> None:
    csrf = csrf_of(await pages.get("/tags"))
    numbers = {"from": "+15559999", "to": "+15550001"}
    signed = await pages.post("/tags", data={"csrf": csrf, "action": "sign", "value": "order 4711", **numbers})
    [tag] = re.findall(r'id="signed">([^<]+)<', signed.text)
    checked = await pages.post("/tags", data={"csrf": csrf, "action": "check", "tag": unescape(tag), **numbers})
    assert ">valid<" in checked.text
    assert "order 4711" in checked.text
    other = {**numbers, "to": "+15550002"}
    forged = await pages.post("/tags", data={"csrf": csrf, "action": "check", "tag": unescape(tag), **other})
    assert ">forged<" in forged.text


# --- numbers ---


async def test_the_start_is_a_page_for_browsers_and_a_line_for_programs(pages: AsyncClient) -> None:
    assert "<h1>Overview</h1>" in (await pages.get("/", headers=HTML)).text
    assert (await pages.get("/", headers={"accept": "*/*"})).text.startswith("This is receiver: ")


async def test_the_overview_before_the_first_callback_leads_to_the_set_up(pages: AsyncClient) -> None:
    page = await pages.get("/", headers=HTML)
    assert "No callback has come yet" in page.text
    assert 'href="./setup"' in page.text


async def test_the_overview_names_alerts_by_severity_and_only_while_one_fires(database: Database) -> None:
    async with browser(application(database)) as visitor:
        assert "Alerts fire" not in (await visitor.get("/", headers=HTML)).text
    await alerting.fire(database, alerting.targets())
    async with browser(application(database)) as visitor:
        page = await visitor.get("/", headers=HTML)
    assert re.search(r"Alerts fire</a>: 1 <[^>]*>warning</span></p>", page.text)


async def test_the_overview_shows_rates_failures_and_what_is_awaited(database: Database) -> None:
    now = clock.now()
    created = (now - timedelta(minutes=5)).isoformat()
    failed = [
        v2_event(f"f{n}", "message-failed", errorCode=4770, message={"time": created, "id": f"f{n}"}) for n in range(3)
    ]
    delivered = [v2_event(f"d{n}", message={"time": created, "id": f"d{n}"}) for n in range(7)]
    waiting = v2_event("w1", "message-sending", message={"time": created, "id": "w1"})
    await process(database, raw_callback([*failed, *delivered, waiting]))
    async with browser(application(database, clock=lambda: now)) as visitor:
        page = await visitor.get("/", headers=HTML)
    assert "70.0 %" in page.text
    assert "4770 destination-spam-detected" in page.text
    assert re.search(r'awaitingReceipt=true[^>]*">1<', page.text)


async def test_statistics_of_many_senders_show_the_largest_and_are_read_once_for_all_who_look(
    database: Database,
) -> None:
    created = clock.now().isoformat()

    def event(number: int, sender: int) -> dict[str, Any]:
        message = {"time": created, "id": f"m{number}", "from": f"+1919555{sender:04}"}
        return v2_event(f"m{number}", message=message)

    await process(database, raw_callback([*(event(n, n) for n in range(102)), event(400, 101), event(401, 101)]))
    async with browser(application(database)) as visitor:
        page = await visitor.get("/statistics?by=from")
        assert page.text.count("<td>+1919555") == 100
        assert page.text.index("<td>+19195550101</td>") < page.text.index("<td>+19195550000</td>")
        assert "2 further rows are left out" in page.text
        await process(database, raw_callback([event(500, 0)]))
        assert (await visitor.get("/statistics?by=from")).text == page.text
        assert ">105</td>" in (await visitor.get("/statistics?by=api")).text
        assert ">2</td>" in (await visitor.get("/statistics?by=api&from=%2B19195550000")).text


async def test_hours_of_a_long_range_are_shown_for_its_last_days_alone(database: Database) -> None:
    now = clock.now()
    hours = (3, 13 * 24, 15 * 24, 29 * 24)
    await process(
        database,
        raw_callback(
            [
                v2_event(f"m{hour}", message={"time": (now - timedelta(hours=hour)).isoformat(), "id": f"m{hour}"})
                for hour in hours
            ]
        ),
    )
    async with browser(application(database, clock=lambda: now)) as visitor:
        for address, shown in (
            ("by=hour&fromDateTime=90d", 2),
            ("by=hour&by2=status&fromDateTime=90d", 2),
            ("by=hour&fromDateTime=14d", 2),
            ("by=hour", 2),
            ("by=day&fromDateTime=90d", 4),
        ):
            page = await visitor.get(f"/statistics?{address}")
            assert page.text.count("<tr><td><time") + page.text.count("<tr><td>20") == shown, address
            is_shortened = "by=hour" in address and "14d" not in address
            assert ("Hours are shown for at most 14 days" in page.text) is is_shortened, address
        assert (await visitor.get("/statistics?by=hour&fromDateTime=nonsense")).status_code == 400
        assert (await visitor.get("/statistics?by=hour&toDateTime=0001-01-02")).status_code == 200
        whole = await visitor.get("/statistics.csv?by=hour&fromDateTime=90d")
        assert len(whole.text.splitlines()) == 5


async def test_rows_over_time_are_cut_at_their_beginning_and_others_at_their_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now()
    events = [
        v2_event(
            f"m{day}-{number}", message={"time": (now - timedelta(days=day)).isoformat(), "id": f"m{day}-{number}"}
        )
        for day in range(4)
        for number in range(day + 1)
    ]
    await process(database, raw_callback(events))
    monkeypatch.setattr(statistics, "_MAX_TIMES", 2)
    for address, shown, words in (
        ("by=day", ["2", "1"], "2 earlier rows"),
        ("by=status&by2=day", ["4", "3"], "2 further rows"),
        ("by=day&limit=3", ["4", "3"], "2 further rows"),
    ):
        async with browser(application(database, clock=lambda: now)) as visitor:
            page = await visitor.get(f"/statistics?{address}")
        rows = page.text.partition("<tbody>")[2].split("<tr>")[1:]
        assert [re.findall(r'align-right">(\d+)<', row)[0] for row in rows] == shown, address
        assert words in page.text, address


async def test_the_hours_of_14_days_are_all_shown(database: Database) -> None:
    async with browser(application(database)) as visitor:
        assert "Hours are shown" not in (await visitor.get("/statistics?by=hour&fromDateTime=14d")).text
        until = (clock.now() + timedelta(days=60)).date()
        since = (clock.now() - timedelta(days=3)).date()
        page = await visitor.get(f"/statistics?by=hour&fromDateTime={since}&toDateTime={until}")
        assert "Hours are shown" not in page.text


async def test_too_many_rows_keep_the_form(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await process(database, raw_callback([v2_event(f"m{n}", message={"from": f"+1919555{n:04}"}) for n in range(3)]))
    monkeypatch.setattr(stored_statistics, "_MOST_ROWS", 2)
    async with browser(application(database)) as visitor:
        page = await visitor.get("/statistics?by=day&by2=from&fromDateTime=2020-01-01&applicationId=")
        assert page.status_code == 400
        assert "The statistics have more than 2 rows" in page.text
        assert 'value="2020-01-01"' in page.text


async def test_statistics_are_counted_by_what_is_asked_and_drawn_over_time(database: Database) -> None:
    now = clock.now()
    events = []
    for hour in range(3):
        created = (now - timedelta(hours=hour)).isoformat()
        events += [v2_event(f"m{hour}", message={"time": created, "id": f"m{hour}"})]
    await process(database, raw_callback(events))
    async with browser(application(database, clock=lambda: now)) as visitor:
        page = await visitor.get("/statistics?by=hour&fromDateTime=12h")
        [data] = re.findall(r'<script type="application/json" id="deliveries">(.*?)</script>', page.text)
        times, delivered, failed, other = json.loads(data)
        assert delivered == [1, 1, 1]
        assert failed == other == [0, 0, 0]
        assert times == sorted(times)
        by_week = await visitor.get("/statistics?by=week")
        assert re.search(rf"<td>{(now - timedelta(days=now.weekday())).date()}</td>", by_week.text)
        by_status = await visitor.get("/statistics?by=status,direction")
        assert "<td>delivered</td><td>out</td>" in by_status.text
        wrong = await visitor.get("/statistics?by=nothing")
        assert wrong.status_code == 400
        assert 'aria-invalid="true"' in wrong.text


# --- findings of reviews ---

# What the HTTP client of Java accepts, unless its caller says otherwise.
JAVA = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"


@pytest.mark.parametrize("options", [{}, {"tokens": None}], ids=["tokens", "none"])
@pytest.mark.parametrize("path", ["/callbacks", "/callbacks/bandwidth", "/callbacks/x/body"])
async def test_no_program_gets_a_page_for_a_wrong_callback_url(
    database: Database, path: str, options: dict[str, Any]
) -> None:
    async with client(application(database, **options), {"accept": JAVA}) as program:
        assert (await program.get(path, params={"messageId": "m1"})).status_code == 404
        assert (await program.post(path, json=[v2_event("m1")])).status_code in (404, 405)
        assert (await program.post(path, data={"messageId": "m1"})).status_code in (404, 405)


async def test_a_person_without_a_session_is_led_from_a_callback_to_the_sign_in(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        answer = await visitor.get("/callbacks/c1", headers={"sec-fetch-mode": "navigate"})
        assert answer.status_code == 303


@pytest.mark.parametrize("goal", ["//[", "\u65e5", "http://[", "a\r\nb"])
async def test_an_odd_goal_of_the_sign_in_is_the_start_page(database: Database, goal: str) -> None:
    async with browser(application(database), None) as visitor:
        assert (await visitor.get("/login", params={"next": goal})).status_code == 200
        answer = await visitor.post("/login", data={"token": ADMIN, "next": goal})
        assert answer.headers["location"] == "./"


async def test_an_odd_origin_is_that_of_another_site(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        assert (await visitor.post("/login", data={"token": ADMIN}, headers={"origin": "http://["})).status_code == 403
        assert (await visitor.post("/login", data={"token": ADMIN}, headers={"origin": "null"})).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin", "origin": "https://public.example"},
        {"origin": "http://receiver.example:80"},
        {"origin": "http://RECEIVER.example"},
    ],
)
async def test_a_form_of_this_site_is_known_behind_a_proxy(database: Database, headers: dict[str, str]) -> None:
    async with browser(application(database), None) as visitor:
        assert (await visitor.post("/login", data={"token": ADMIN}, headers=headers)).status_code == 303


async def test_the_cookie_is_secure_where_the_browser_uses_https(database: Database) -> None:
    app = application(database, public_url="https://receiver.example")
    async with browser(app, None) as visitor:
        assert "; Secure" in (await visitor.post("/login", data={"token": ADMIN})).headers["set-cookie"]
        headers = {"sec-fetch-site": "same-origin", "origin": "https://other.example"}
        visitor.base_url = httpx2.URL("http://inner.example")
        assert (
            "; Secure" in (await visitor.post("/login", data={"token": ADMIN}, headers=headers)).headers["set-cookie"]
        )


async def test_without_tokens_a_name_of_strangers_shows_nothing(database: Database) -> None:
    """Any site can give its own name the address 127.0.0.1."""
    async with client(application(database, tokens=None), HTML) as visitor:
        assert (await visitor.get("/messages")).status_code == 403
        for host in ("http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"):
            visitor.base_url = httpx2.URL(host)
            assert (await visitor.get("/messages")).status_code == 200
        assert "callback-password" not in (await visitor.get("/setup")).text
    async with client(application(database, tokens=None, public_url="http://receiver.example"), HTML) as visitor:
        assert (await visitor.get("/messages")).status_code == 200


async def test_wrong_values_of_a_form_are_named(pages: AsyncClient) -> None:
    csrf = csrf_of(await pages.get("/messages"))
    for path, form in (
        ("/callbacks", {"reason": "nonsense"}),
        ("/callbacks", {"messageId": "\x00"}),
        ("/dead-letters", {"sink": "\x00", "action": "drop-count"}),
    ):
        answer = await pages.post(path, data={"csrf": csrf, **form})
        assert answer.status_code in (200, 400, 404), (path, form)


async def test_a_session_is_found_among_cookies_of_another_receiver(database: Database) -> None:
    async with browser(application(database)) as visitor:
        own = visitor.cookies["receiver_session"]
        visitor.cookies.clear()
        for cookies in (
            f"receiver_session={own}; receiver_session=1.2.3.4",
            f"receiver_session=x; receiver_session={own}",
        ):
            assert (await visitor.get("/messages", headers={"cookie": cookies})).status_code == 200


async def test_the_next_page_begins_at_the_same_time(database: Database, pages: AsyncClient) -> None:
    await insert(database, *(message(id=f"m{number}", at=clock.now()) for number in range(30)))
    async with browser(application(database, clock=clock.now)) as visitor:
        page = await visitor.get("/messages?fromDateTime=2h")
    [following] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    assert "fromDateTime=2h" not in following
    assert re.search(r"fromDateTime=\d{4}-", following)


async def test_the_chosen_callbacks_are_processed_again_and_no_others(database: Database, pages: AsyncClient) -> None:
    raw = raw_callback([{"type": "unheard-of", "message": {"id": "m1"}}])
    await process(database, raw)
    page = await pages.get("/callbacks?fromDateTime=2001-01-01&toDateTime=2002-01-01&outcome=quarantined")
    csrf = csrf_of(page)
    answer = await pages.post("/callbacks", data={"csrf": csrf, "toDateTime": "2002-01-01"})
    assert "0 callbacks were processed again" in answer.text
    page = await pages.get("/callbacks?fromDateTime=2001-01-01")
    assert 'name="fromDateTime" value="2001-01-01"' in page.text


async def test_a_small_body_makes_no_large_page(database: Database, pages: AsyncClient) -> None:
    raw = replace(raw_callback([]), body=b"[" * 250 + b"1," * 40_000 + b"1" + b"]" * 250)
    await process(database, raw)
    page = await pages.get(f"/callbacks/{raw.id}")
    assert page.status_code == 200
    assert len(page.content) < 400_000


async def test_the_page_of_a_message_with_very_many_events_is_bounded(database: Database, pages: AsyncClient) -> None:
    events = [
        v2_event("m1", time=f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000Z", to=f"+1919555{second:04}")
        for second in range(400)
    ]
    await process(database, *(raw_callback(events[start : start + 100]) for start in range(0, 400, 100)))
    page = await pages.get("/messages/m1")
    # The first one is the creation of the message.
    assert len(re.findall(r"\">as received", page.text)) == 300 - 1
    assert "This page shows the first 300 of 401 events" in page.text


async def test_one_export_is_made_at_a_time(database: Database) -> None:
    await insert(database, *(message(id=f"m{number}") for number in range(3)))
    app = application(database)
    async with browser(app) as visitor:
        site_exports = app.state.site.exports
        site_exports.add(object())
        answer = await visitor.get("/messages.csv")
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        site_exports.clear()
        assert (await visitor.get("/messages.csv")).status_code == 200
        assert site_exports == set()


# --- unknown addresses and errors ---


@pytest.mark.parametrize("path", ["/nowhere", "/a/b/c", "/messages/", "/messages/m1/more", "/Message", "/static/none"])
async def test_an_unknown_address_is_a_page_for_a_browser_and_a_problem_for_a_program(
    pages: AsyncClient, path: str
) -> None:
    answer = await pages.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "content-security-policy" in answer.headers
    assert 'name="q"' in answer.text
    links = {answer.url.join(link).path for link in re.findall(r'<a href="([^"#]+)"', answer.text)}
    assert {"/", "/messages", "/docs"} <= links
    program = await pages.get(path, headers={"accept": "application/json"})
    assert (program.status_code, program.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("path", "meant"), [("/message", "messages"), ("/Sinks/", "sinks"), ("/dead_letters/x", "dead-letters")]
)
async def test_an_unknown_address_names_the_page_that_was_meant(pages: AsyncClient, path: str, meant: str) -> None:
    answer = await pages.get(path)
    assert re.search(rf'Did you mean <a href="[./]+{meant}">{meant}</a>', answer.text)


async def test_an_unknown_address_shows_a_stranger_nothing_but_the_way_to_sign_in(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        answer = await visitor.get("/" + quote(HOSTILE, safe=""))
        assert answer.status_code == 404
        assert 'href="./login"' in answer.text
        assert 'name="q"' not in answer.text
        assert "<img" not in answer.text


@pytest.mark.parametrize(("method", "path"), [("GET", "/logout"), ("PUT", "/messages"), ("POST", "/messages")])
async def test_a_wrong_method_is_a_page_for_a_browser_and_a_problem_for_a_program(
    pages: AsyncClient, method: str, path: str
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = await pages.request(method, path, headers=form)
    assert answer.status_code == 405
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["allow"]
    program = await pages.request(method, path, headers={"accept": "application/json"})
    assert (program.status_code, program.headers["content-type"]) == (405, "application/problem+json")


async def test_a_browser_gets_problems_of_the_api_as_a_program_does(database: Database) -> None:
    async with browser(application(database), None) as visitor:
        for path, status in (("/api/messages", 401), ("/api/nothing", 401)):
            answer = await visitor.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_an_unknown_address_below_a_prefix_links_below_the_prefix(database: Database) -> None:
    app = Starlette(routes=[Mount("/sms", application(database))])
    async with client(app, HTML) as visitor:
        for path in ("/sms/nowhere", "/sms/a/b", "/sms/messages/m1/more"):
            answer = await visitor.get(path)
            assert answer.status_code == 404
            links = {answer.url.join(link).path for link in re.findall(r'(?:href|src)="([^"#]+)"', answer.text)}
            assert links
            assert {link for link in links if not link.startswith("/sms/")} == set(), path


async def test_an_unexpected_error_is_a_page_that_says_what_to_do(database: Database) -> None:
    async def failing(_: Any) -> object:
        raise RuntimeError("secret detail")

    raw = raw_callback([{"type": "unheard-of", "message": {"id": "m1"}}])
    await process(database, raw)
    async with browser(application(database, reprocess=failing)) as visitor:
        csrf = csrf_of(await visitor.get(f"/callbacks/{raw.id}"))
        answer = await visitor.post(f"/callbacks/{raw.id}", data={"csrf": csrf})
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "secret detail" not in answer.text


# --- long work in steps ---


async def refuse(database: Database, number: int, *, begin: int = 0) -> None:
    """The sink `crm` refuses the events of so many messages."""
    made = [v2_event(f"m{one}") for one in range(begin, begin + number)]
    await process(database, *(raw_callback(made[start : start + 100]) for start in range(0, number, 100)))
    await sinks.register(database, "crm", start="beginning", fingerprint="f")
    now = literal(clock.now(), UTCDateTime)
    letters = {
        "sink": literal("crm"),
        "position": EVENTS.c.position,
        "event_id": EVENTS.c.id,
        "reason": literal("refused"),
        "detail": literal("status 422"),
        "attempts": literal(1),
        "ordering_key": EVENTS.c.message_id,
        "first_at": now,
        "died_at": now,
    }
    new = EVENTS.c.position.not_in(select(DEAD_LETTERS.c.position))
    async with database.writing() as connection:
        await connection.execute(DEAD_LETTERS.insert().from_select([*letters], select(*letters.values()).where(new)))


def fields_of(page: Response, form: str) -> dict[str, str]:
    """The hidden fields of a form of a page, found by a part of its tag."""
    [found] = re.findall(rf"<form [^>]*{form}[^>]*>(.*?)</form>", page.text, re.DOTALL)
    return {name: unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', found)}


ACTIONS = 'class="actions"'
STEP = 'id="step-'


@pytest.mark.parametrize(("verb", "retries"), [("requeue", 1100), ("drop", 0)])
async def test_many_dead_letters_are_counted_then_handled_in_steps(
    database: Database, monkeypatch: pytest.MonkeyPatch, verb: str, retries: int
) -> None:
    monkeypatch.setattr("receiver.pages.sinks.STEP_SECONDS", 0.0)
    await refuse(database, 1100)
    address = "/dead-letters?sink=crm&reason=refused&fromDateTime=2h"
    async with browser(application(database, clock=clock.now)) as visitor:
        page = await visitor.get(address)
        counted = await visitor.post(address, data={**fields_of(page, ACTIONS), "action": f"{verb}-count"})
        assert "1,100 dead letters of crm would be" in counted.text
        assert len(await letters(database, 2000)) == 1100
        # What is refused after the count is not part of the work.
        await refuse(database, 3, begin=2000)
        answer = await visitor.post(address, data={**fields_of(counted, ACTIONS), "action": verb})
        shown = [re.findall(r'<progress max="(\d+)" value="(\d+)"', answer.text)]
        while STEP in answer.text:
            assert f'<a id="stop" class="button" href="./dead-letters{visitor_query(answer)}"' in answer.text
            answer = await visitor.post(address, data=fields_of(answer, STEP))
            shown.append(re.findall(r'<progress max="(\d+)" value="(\d+)"', answer.text))
    assert shown == [[("1100", "500")], [("1100", "1000")], []]
    assert re.search(r'role="status">1,100 dead letters (requeued|removed for good)\.', answer.text)
    assert {letter.message_id for letter in await letters(database, 2000)} == {"m2000", "m2001", "m2002"}
    async with database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(RETRIES)) == retries


async def letters(database: Database, size: int = 25) -> Any:
    return (await dead_letters.find(database, DeadLetterQuery.model_construct(size=size))).items


def visitor_query(page: Response) -> str:
    return "?" + page.url.query.decode().replace("&", "&amp;")


async def test_dead_letters_of_one_sink_are_chosen_first_and_one_is_requeued_alone(database: Database) -> None:
    await refuse(database, 3)
    async with browser(application(database, clock=clock.now)) as visitor:
        page = await visitor.get("/dead-letters")
        assert 'href="?sink=crm"' in page.text
        assert "Count what would" not in page.text
        one = {
            "csrf": csrf_of(page),
            "action": "requeue-one",
            "sink": "crm",
            "id": str((await letters(database))[1].id),
        }
        answer = await visitor.post("/dead-letters", data=one)
        assert "1 dead letter requeued." in answer.text
    assert [letter.message_id for letter in await letters(database)] == ["m0", "m2"]


async def test_a_step_without_a_choice_of_a_sink_changes_nothing(database: Database) -> None:
    await refuse(database, 2)
    async with browser(application(database, clock=clock.now)) as visitor:
        csrf = csrf_of(await visitor.get("/dead-letters"))
        for form in (
            {"action": "requeue"},
            {"action": "drop", "sink": ""},
            {"action": "drop-one", "sink": "crm", "id": "x"},
            {"action": "drop-everything", "sink": "crm"},
            {"action": "drop", "sink": "crm", "fromDateTime": "no time"},
        ):
            assert (await visitor.post("/dead-letters", data={"csrf": csrf, **form})).status_code == 400, form
    async with browser(application(database, clock=clock.now), READER) as visitor:
        page = await visitor.get("/dead-letters?sink=crm")
        assert not re.search(r"<button[^>]*>(Count what|Requeue)", page.text)
        form = {"csrf": csrf_of(page), "action": "drop", "sink": "crm"}
        assert (await visitor.post("/dead-letters", data=form)).status_code == 403
    assert len(await letters(database)) == 2


async def test_callbacks_are_processed_again_in_steps(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.pages.callbacks.STEP_SIZE", 2)
    ids = [f"{first_id(clock.now() - timedelta(minutes=9 - n))}0" for n in range(5)]
    body = [{"type": "unheard-of", "message": {"id": "m"}}]
    await process(database, *(replace(raw_callback(body), id=one) for one in ids))
    async with browser(application(database, clock=clock.now)) as visitor:
        page = await visitor.get("/callbacks")
        answer = await visitor.post("/callbacks", data=fields_of(page, ACTIONS))
        shown = []
        while STEP in answer.text:
            shown += re.findall(r'role="status">(\d+) callbacks were processed again; (\d+) of them stay', answer.text)
            answer = await visitor.post("/callbacks", data=fields_of(answer, STEP))
    assert shown == [("2", "2"), ("4", "4")]
    assert 'role="status">5 callbacks were processed again; 5 of them stay in quarantine.' in answer.text


# --- alerts ---


async def test_an_alert_of_another_program_is_resolved_on_its_page_which_shows_who_was_notified(
    database: Database,
) -> None:
    with alerting.hook_server() as good, alerting.hook_server(status=503) as bad:
        addresses = [f"alertmanager+http://{server.address}/hook" for server in (good, bad)]
        targets = alerting.targets(*addresses)
        alert = await alerting.fire(database, targets, rule=RuleType.EXTERNAL, messages=())
        async with (
            alerting.People(database, targets),
            browser(application(database, clock=clock.now, targets=targets)) as visitor,
        ):
            address = f"/alerts/{alert.id}"

            async def notified() -> list[list[str]]:
                [table] = re.findall(r"<tbody>(.*?)</tbody>", (await visitor.get(address)).text, re.DOTALL)
                cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in table.split("</tr>") if "<td" in row]
                return [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells]

            await eventually(lambda: shows(notified, "sent", "503"))
            sent, failed = await notified()
            assert sent[1:3] == ["fires", "sent"]
            assert failed[1:3] == ["fires", "due"]
            assert failed[3].startswith("next attempt 20")
            assert "503" in failed[5]
            page = await visitor.get(address)
            form = {"csrf": csrf_of(page), "action": "resolve"}
            resolved = await visitor.post(address, data=form)
            assert "The alert is resolved." in resolved.text
            assert 'value="resolve"' not in resolved.text
            again = await visitor.post(address, data=form)
            assert (again.status_code, "resolved already" in again.text) == (409, True)
            await eventually(lambda: shows(notified, "is resolved"))


async def shows(rows: Any, *words: str) -> bool:
    shown = [cell for row in await rows() for cell in row]
    return all(any(word in cell for cell in shown) for word in words)


async def test_an_alert_that_nobody_was_notified_of_says_what_to_set(database: Database) -> None:
    alert = await alerting.fire(database, alerting.targets())
    async with browser(application(database, clock=clock.now)) as visitor:
        page = await visitor.get(f"/alerts/{alert.id}")
    assert "RECEIVER_ALERT_TO" in page.text
    assert "31 % of 120, the threshold is 20 %" in page.text


# --- links and words ---


async def test_a_link_fills_in_the_tag_to_check_and_checks_nothing_by_itself(pages: AsyncClient) -> None:
    page = await pages.get("/tags", params={"tag": HOSTILE, "from": "+15559999", "to": "+15550001"})
    assert page.text.count(f'value="{markupsafe.escape(HOSTILE)}"') == 1
    assert page.text.count('value="+15559999"') == 2
    assert ">forged<" not in page.text


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        (
            "down since 2026-01-02T03:04:05.678901Z: <b>",
            'down since <time datetime="2026-01-02T03:04:05.678901Z">2026-01-02 03:04:05 UTC</time>: &lt;b&gt;',
        ),
        ("answered 2026-99-02T03:04:05Z", "answered 2026-99-02T03:04:05Z"),
    ],
)
def test_the_times_of_a_problem_are_times_for_the_browser(sentence: str, shown: str) -> None:
    assert with_times(sentence) == shown


async def test_statistics_are_chosen_field_by_field_and_as_one_list(database: Database) -> None:
    created = (clock.now() - timedelta(minutes=5)).isoformat()
    await process(database, raw_callback([v2_event("m1", message={"time": created, "id": "m1"})]))
    async with browser(application(database, clock=clock.now)) as visitor:
        one = await visitor.get("/statistics?by=status&by2=&by3=direction&fromDateTime=1h")
        other = await visitor.get("/statistics?by=status,direction&fromDateTime=1h")
        assert re.findall("<td>.*", one.text) == re.findall("<td>.*", other.text) != []
        for page in (one, other):
            assert re.findall(r'<option value="(\w+)" selected', page.text) == ["status", "direction"]
        table = await visitor.get("/statistics.csv?by=status&by2=direction&fromDateTime=1h")
        assert table.headers["content-disposition"] == 'attachment; filename="statistics.csv"'
        assert table.text.splitlines()[1].startswith('"delivered","out","1",')
        assert (await visitor.get("/statistics.csv?by=nothing")).status_code == 400


def test_every_dimension_has_words() -> None:
    assert set(LABELS) == set(DIMENSIONS)


async def test_a_dead_letter_of_an_alert_leads_to_the_alert(database: Database) -> None:
    alert = await alerting.fire(database, alerting.targets())
    await refuse(database, 1)
    async with browser(application(database, clock=clock.now)) as visitor:
        page = await visitor.get("/dead-letters")
    assert f'alert.fired<br><a href="./alerts/{alert.id}">' in page.text
    assert 'message.delivered<br><a href="./messages/m0">' in page.text


async def test_a_wrong_filter_is_explained_once_and_an_unknown_one_by_its_name(pages: AsyncClient) -> None:
    for path in ("/messages", "/callbacks", "/dead-letters", "/statistics"):
        answer = await pages.get(f"{path}?fromDateTime=abc")
        assert answer.status_code == 400
        assert answer.text.count("must be a time") == 1, path
        assert "Its field says what it takes" in answer.text
        unknown = await pages.get(f"{path}?fromDateTime=abc&nonsense=1")
        assert "nonsense: is not a known parameter" in unknown.text, path


@pytest.mark.parametrize("path", ["statistics", "messages", "callbacks", "dead-letters"])
async def test_range_that_ends_before_it_begins_is_named_beside_its_field(pages: AsyncClient, path: str) -> None:
    page = await pages.get(f"/{path}?fromDateTime=2026-02-01&toDateTime=2026-01-31")
    assert page.status_code == 400
    assert "must not be before the beginning of the range" in page.text
    assert 'value="2026-01-31"' in page.text
