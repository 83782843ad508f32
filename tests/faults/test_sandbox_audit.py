"""Many messages of both API versions with every fault, then the receiver's statuses against the expected ones."""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest
from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import number_key
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from tests.faults.audit import assert_order, drained
from tests.faults.load import published
from tests.sandboxes import USER, RoundTrip, round_trip

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

RATES = {
    "failed": 0.2,
    "unconfirmed": 0.1,
    "duplicate": 0.1,
    "reorder": 0.1,
    "delay": 0.1,
    "late": 0.1,
    "missing": 0.1,
    "silent": 0.03,
    "contradict": 0.1,
    "unknownType": 0.05,
    "batch": 0.2,
}
SINK = {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}
OWN_NUMBERS = ("+19195550001", "+19195550002")
ARRAY_SIZE = 50
# On the sandbox's clock: after the latest late receipt, before the end of the retries.
PAST_LATE_RECEIPTS = 80.0

Delivery = tuple[str, str, str]
StatusRow = tuple[str, str, int | None, bool]


async def test_receiver_agrees_with_the_sandbox_on_10000_messages_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    await audit(tmp_path, sqlite_url, messages=10_000)


async def test_receiver_agrees_with_the_sandbox_on_2000_messages_postgresql(postgres_url: str, tmp_path: Path) -> None:
    await audit(tmp_path, postgres_url, messages=2_000)


async def audit(folder: Path, database_url: str, messages: int) -> None:
    """Sends messages with a sandbox to a receiver, and compares the two."""
    settings = {"DATABASE_URL": database_url, "SINKS": json.dumps([SINK])}
    async with round_trip(folder, receiver=settings, rates=RATES, max_posts=20 * messages, connections=32) as trip:
        await send_everything(trip, messages)
        await trip.sandbox.post("/sandbox/clock", json={"advance": PAST_LATE_RECEIPTS})
        await trip.settle(600)
        await drained(database_url)
        expected = (await trip.sandbox.get("/sandbox/expected")).json()
        posts = (await trip.sandbox.get("/sandbox/posts")).json()
        # 401 is the challenge, 404 the path that does not exist. Any other status would leave a delivery uncertain.
        assert {post["status"] for post in posts} == {200, 401, 404}
        answered = parse_posts(posts)

        assert len({row["messageId"] for row in expected}) == messages
        await assert_statuses(trip, expected)
        log = await assert_log(trip, answered)
        await assert_file(folder / SINK["path"], log)
        assert trip.server.stop() == 0
    await assert_journal(database_url, answered)
    assert_every_case_occurred(expected, answered)


async def send_everything(trip: RoundTrip, messages: int) -> None:
    """Sends half of the messages in v1 arrays, with GET, POST and fallback; the rest are v2 and inbound."""
    numbers = [row["number"] for row in (await trip.sandbox.get("/sandbox/numbers")).json()]
    requests = iter_requests(trip, messages, numbers)
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(send(trip.sandbox, requests))


async def send(client: httpx2.AsyncClient, requests: Iterator[tuple[str, Any]]) -> None:
    for path, body in requests:
        answer = await client.post(path, json=body)
        assert answer.status_code == 202, answer.text
        if isinstance(body, list):
            assert all(result["result"] == "accepted" for result in answer.json()), answer.text


def iter_requests(trip: RoundTrip, messages: int, numbers: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields paths and bodies of requests for `messages` messages."""
    of_v1 = messages // 2
    for place in range(0, of_v1, ARRAY_SIZE):
        yield (
            f"/v1/users/{USER}/messages",
            [v1_message(trip, number, numbers) for number in range(place, min(place + ARRAY_SIZE, of_v1))],
        )
    # The last kind makes two messages, one for each own number.
    kinds = itertools.cycle([v2_single] * 5 + [v2_group, v2_mms, v1_inbound, v2_inbound_group])
    number = 0
    while number < messages - of_v1:
        make = next(kinds) if number < messages - of_v1 - 1 else v2_single
        yield make(number, numbers)
        number += 2 if make is v2_inbound_group else 1


def recipient(number: int, numbers: list[str], offset: int = 0) -> str:
    """Each magic number once, then ordinary numbers."""
    place = number // 2 + offset
    return numbers[place] if place < len(numbers) else f"+1919{2_000_000 + number * 4 + offset}"


def v1_message(trip: RoundTrip, number: int, numbers: list[str]) -> dict[str, Any]:
    path, fallback = "/callbacks/bandwidth/v1", {}
    if number % 10 in (4, 9):
        # This path is answered 404.
        path, fallback = "/elsewhere", {"fallbackUrl": trip.v1_callback_url("/callbacks/bandwidth/v1/fallback")}
    mms = number % 7 == 6
    return {
        "from": "+19195551212",
        "to": recipient(number, numbers),
        "text": f"number {number}",
        "callbackUrl": trip.v1_callback_url(path),
        "callbackHttpMethod": "get" if number % 2 else "post",
        **({"media": ["https://example.com/cat.png"]} if mms else {"receiptRequested": receipts(number)}),
        "tag": f"order-{number}",
        **fallback,
    }


def receipts(number: int) -> str:
    return ("all", "all", "all", "error", "none")[number // 2 % 5]


def v2_message(number: int, to: list[str], **more: Any) -> tuple[str, dict[str, Any]]:
    return f"/api/v2/users/{USER}/messages", {
        "from": "+19195551212",
        "to": to,
        "text": f"number {number}",
        "applicationId": "app-1",
        "tag": f"order-{number}",
        **more,
    }


def v2_single(number: int, numbers: list[str]) -> tuple[str, dict[str, Any]]:
    return v2_message(number, [recipient(number, numbers)])


def v2_group(number: int, numbers: list[str]) -> tuple[str, dict[str, Any]]:
    return v2_message(number, [recipient(number, numbers, offset) for offset in range(3)])


def v2_mms(number: int, numbers: list[str]) -> tuple[str, dict[str, Any]]:
    return v2_message(number, [recipient(number, numbers)], media=["https://example.com/cat.png"])


def v1_inbound(number: int, _: list[str]) -> tuple[str, dict[str, Any]]:
    return "/sandbox/inbound", {"api": "v1", "from": f"+1919{2_000_000 + number}", "to": OWN_NUMBERS[0], "text": "hi"}


def v2_inbound_group(number: int, _: list[str]) -> tuple[str, dict[str, Any]]:
    return "/sandbox/inbound", {
        "from": f"+1919{2_000_000 + number}",
        "to": OWN_NUMBERS,
        "others": ["+19195557777"],
        "text": "hi all",
    }


@dataclass
class AnsweredEvents:
    """What the receiver answered 2xx according to the sandbox: `events` by message, each once, and counts."""

    events: dict[str, set[tuple[Any, ...]]] = field(default_factory=dict)
    accepted: int = 0
    unknown_type: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


def parse_posts(posts: Iterable[dict[str, Any]]) -> AnsweredEvents:
    answered = AnsweredEvents()
    for post in posts:
        if post["status"] != 200:
            continue
        elements = [element for element in parse_elements(post) if not is_unknown_type(element)]
        answered.accepted += 1
        answered.unknown_type += len(elements) < len(parse_elements(post))
        answered.kinds[f"{post['api']} {post['method']} {post['route']}"] += 1
        answered.kinds["several in one"] += len(elements) > 1
        known = answered.events.setdefault(post["messageId"], set())
        for element in elements:
            answered.kinds["copies"] += identity(element) in known
            known.add(identity(element))
    return answered


def parse_elements(post: dict[str, Any]) -> list[dict[str, Any]]:
    if post["query"]:
        return [{name: values[0] for name, values in parse_qs(post["query"]).items()}]
    body = post["body"]
    return body if isinstance(body, list) else [body]


def is_unknown_type(element: dict[str, Any]) -> bool:
    return element.get("type") == "message-pondered" or element.get("eventType") == "rcs"


def identity(element: dict[str, Any]) -> tuple[Any, ...]:
    """The identity of an event: v2's type, recipient, time and code; v1's states and code."""
    names = ("type", "to", "time", "errorCode") if "type" in element else ("state", "deliveryState", "deliveryCode")
    return tuple(str(element.get(name)) for name in names)


async def pages(client: httpx2.AsyncClient, path: str, **parameters: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """Yields the pages of a list that are not empty."""
    answer = await client.get(path, params=parameters)
    while page := answer.raise_for_status().json():
        yield page
        if "next" not in answer.links:
            return
        answer = await client.get(answer.links["next"]["url"])


async def assert_statuses(trip: RoundTrip, expected: list[dict[str, Any]]) -> None:
    """Every delivery has its expected status, and there are no other deliveries."""
    assert all(row["certain"] for row in expected)
    wanted: dict[Delivery, StatusRow] = {
        (row["api"], row["messageId"], number_key(row["recipient"])): (
            row["direction"],
            row["status"],
            row["code"],
            row["contradicted"],
        )
        for row in expected
        if row["status"] is not None
    }
    found: dict[Delivery, StatusRow] = {}
    async for page in pages(trip.receiver, "/api/messages", size=1000, sortOrder="asc"):
        for message in page:
            for row in message["recipients"]:
                key = (message["api"], message["id"], number_key(row["to"]))
                assert key not in found
                found[key] = (message["direction"], row["status"], row["deliveryCode"], row["contradicted"])
    differing = {key: (found.get(key), wanted.get(key)) for key in found.keys() | wanted.keys()}
    differing = {key: (actual, wanted) for key, (actual, wanted) in differing.items() if actual != wanted}
    assert not differing, (len(differing), dict(itertools.islice(differing.items(), 20)))


async def assert_log(trip: RoundTrip, answered: AnsweredEvents) -> list[str]:
    """The event log has every event that was answered 200, once. Returns its event ids in order."""
    log = [event async for page in pages(trip.receiver, "/api/events", after=0, limit=1000) for event in page]
    ids = [event["id"] for event in log]
    assert len(set(ids)) == len(ids)
    counted = Counter(event["subject"] for event in log)
    assert counted == Counter({message_id: len(events) for message_id, events in answered.events.items()})
    assert_order(log)
    return ids


async def assert_file(path: Path, log: list[str]) -> None:
    """The sink has every event once, and the events of each message in order."""
    deadline = time.monotonic() + 300
    while line_count(path) < len(log):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    events = published(path)
    assert sorted(event["id"] for event in events) == sorted(log)
    assert_order(events)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


async def assert_journal(url: str, answered: AnsweredEvents) -> None:
    """Every callback is in the journal or a repeat; a rebuild from the events changes no status."""
    database = Database(url)
    async with database.reading() as connection:
        in_journal = (await connection.execute(text("SELECT count(*) FROM callbacks"))).scalar_one()
        callbacks, repeats = (await connection.execute(text("SELECT callbacks, repeats FROM processor"))).one()
        quarantined = await connection.execute(text("SELECT DISTINCT callback_id, reason FROM quarantine"))
        assert Counter(reason for _, reason in quarantined) == Counter({"unknown-type": answered.unknown_type})
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()
    await database.close()
    assert callbacks == in_journal + repeats == answered.accepted
    assert rebuilt.differing == 0


def assert_every_case_occurred(expected: list[dict[str, Any]], answered: AnsweredEvents) -> None:
    """Every status, route and fault occurred."""
    statuses = {row["status"] for row in expected}
    assert statuses >= {None, "unknown", "sending", "sent", "unconfirmed", "delivered", "failed", "read", "received"}
    assert {row["contradicted"] for row in expected} == {True, False}
    for kind in ("v1 GET primary", "v1 POST primary", "v1 GET fallback", "v1 POST fallback", "v2 POST primary"):
        assert answered.kinds[kind]
    assert answered.kinds["copies"] > answered.accepted / 100
    assert answered.kinds["several in one"]
    assert answered.unknown_type
