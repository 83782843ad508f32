"""Many messages of both generations with everything that can go wrong, then what receiver says beside what is true."""

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
from tests.round_trip import USER, RoundTrip, round_trip

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
OURS = ("+19195550001", "+19195550002")
AT_ONCE = 50
# on the sandbox's clock: beyond the latest late receipt, before a callback is given up
PAST_LATE_RECEIPTS = 80.0

Delivery = tuple[str, str, str]
Standing = tuple[str, str, int | None, bool]


async def test_what_receiver_says_of_ten_thousand_messages_is_what_is_true(sqlite_url: str, tmp_path: Path) -> None:
    await audit(tmp_path, sqlite_url, messages=10_000)


async def test_what_a_receiver_on_postgresql_says_is_what_is_true(postgres_url: str, tmp_path: Path) -> None:
    await audit(tmp_path, postgres_url, messages=2_000)


async def audit(folder: Path, database_url: str, messages: int) -> None:
    """Sends so many messages through a sandbox and a receiver, and compares the two."""
    settings = {"DATABASE_URL": database_url, "SINKS": json.dumps([SINK])}
    async with round_trip(folder, receiver=settings, rates=RATES, max_posts=20 * messages, connections=32) as there:
        await send_everything(there, messages)
        await there.sandbox.post("/sandbox/clock", json={"advance": PAST_LATE_RECEIPTS})
        await there.settle(600)
        await drained(database_url)
        truth = (await there.sandbox.get("/sandbox/truth")).json()
        posts = (await there.sandbox.get("/sandbox/posts")).json()
        # 401 is the challenge, 404 the address where nobody is; of what is answered otherwise nothing can be said
        assert {post["status"] for post in posts} == {200, 401, 404}
        told = read_posts(posts)

        assert len({one["messageId"] for one in truth}) == messages
        await assert_statuses(there, truth)
        log = await assert_log(there, told)
        await assert_file(folder / SINK["path"], log)
        assert there.server.stop() == 0
    await assert_journal(database_url, told)
    assert_nothing_was_left_out(truth, told)


async def send_everything(there: RoundTrip, messages: int) -> None:
    """Half of it in v1's arrays, by GET and POST and fallback; the rest v2, groups, MMS, inbound, magic numbers."""
    numbers = [one["number"] for one in (await there.sandbox.get("/sandbox/numbers")).json()]
    requests = iter_requests(there, messages, numbers)
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(send(there.sandbox, requests))


async def send(client: httpx2.AsyncClient, requests: Iterator[tuple[str, Any]]) -> None:
    for path, body in requests:
        answer = await client.post(path, json=body)
        assert answer.status_code == 202, answer.text
        if isinstance(body, list):
            assert all(one["result"] == "accepted" for one in answer.json()), answer.text


def iter_requests(there: RoundTrip, messages: int, numbers: list[str]) -> Iterator[tuple[str, Any]]:
    """Paths and bodies that make so many messages."""
    of_v1 = messages // 2
    for place in range(0, of_v1, AT_ONCE):
        yield (
            f"/v1/users/{USER}/messages",
            [v1_message(there, number, numbers) for number in range(place, min(place + AT_ONCE, of_v1))],
        )
    # the last kind makes two messages, one for each of our numbers
    kinds = itertools.cycle([v2_single] * 5 + [v2_group, v2_mms, v1_inbound, v2_inbound_group])
    number = 0
    while number < messages - of_v1:
        make = next(kinds) if number < messages - of_v1 - 1 else v2_single
        yield make(number, numbers)
        number += 2 if make is v2_inbound_group else 1


def recipient(number: int, numbers: list[str], offset: int = 0) -> str:
    """A magic number first, one after the other, then ordinary ones."""
    place = number // 2 + offset
    return numbers[place] if place < len(numbers) else f"+1919{2_000_000 + number * 4 + offset}"


def v1_message(there: RoundTrip, number: int, numbers: list[str]) -> dict[str, Any]:
    path, fallback = "/callbacks/bandwidth/v1", {}
    if number % 10 in (4, 9):
        # nobody answers there but with 404
        path, fallback = "/elsewhere", {"fallbackUrl": there.v1_callback_url("/callbacks/bandwidth/v1/fallback")}
    mms = number % 7 == 6
    return {
        "from": "+19195551212",
        "to": recipient(number, numbers),
        "text": f"number {number}",
        "callbackUrl": there.v1_callback_url(path),
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
    return "/sandbox/inbound", {"api": "v1", "from": f"+1919{2_000_000 + number}", "to": OURS[0], "text": "hi"}


def v2_inbound_group(number: int, _: list[str]) -> tuple[str, dict[str, Any]]:
    return "/sandbox/inbound", {
        "from": f"+1919{2_000_000 + number}",
        "to": OURS,
        "others": ["+19195557777"],
        "text": "hi all",
    }


@dataclass
class Told:
    """What the sandbox's own posts say was answered 2xx: `events` by message, each once, and what came beside."""

    events: dict[str, set[tuple[Any, ...]]] = field(default_factory=dict)
    accepted: int = 0
    unfamiliar: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


def read_posts(posts: Iterable[dict[str, Any]]) -> Told:
    told = Told()
    for post in posts:
        if post["status"] != 200:
            continue
        elements = [element for element in read_elements(post) if not is_unfamiliar(element)]
        told.accepted += 1
        told.unfamiliar += len(elements) < len(read_elements(post))
        told.kinds[f"{post['api']} {post['method']} {post['route']}"] += 1
        told.kinds["several in one"] += len(elements) > 1
        known = told.events.setdefault(post["messageId"], set())
        for element in elements:
            told.kinds["copies"] += identity(element) in known
            known.add(identity(element))
    return told


def read_elements(post: dict[str, Any]) -> list[dict[str, Any]]:
    if post["query"]:
        return [{name: values[0] for name, values in parse_qs(post["query"]).items()}]
    body = post["body"]
    return body if isinstance(body, list) else [body]


def is_unfamiliar(element: dict[str, Any]) -> bool:
    return element.get("type") == "message-pondered" or element.get("eventType") == "rcs"


def identity(element: dict[str, Any]) -> tuple[Any, ...]:
    """What makes an event another one: v2's type, recipient and time; v1's states and code."""
    names = ("type", "to", "time", "errorCode") if "type" in element else ("state", "deliveryState", "deliveryCode")
    return tuple(str(element.get(name)) for name in names)


async def pages(client: httpx2.AsyncClient, path: str, **asked: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """The pages of a list, to the last that has something on it."""
    answer = await client.get(path, params=asked)
    while page := answer.raise_for_status().json():
        yield page
        if "next" not in answer.links:
            return
        answer = await client.get(answer.links["next"]["url"])


async def assert_statuses(there: RoundTrip, truth: list[dict[str, Any]]) -> None:
    """Every delivery stands where it must, and there are no others."""
    assert all(one["certain"] for one in truth)
    wanted: dict[Delivery, Standing] = {
        (one["api"], one["messageId"], number_key(one["recipient"])): (
            one["direction"],
            one["status"],
            one["code"],
            one["contradicted"],
        )
        for one in truth
        if one["status"] is not None
    }
    found: dict[Delivery, Standing] = {}
    async for page in pages(there.receiver, "/api/messages", size=1000, sortOrder="asc"):
        for message in page:
            for one in message["recipients"]:
                key = (message["api"], message["id"], number_key(one["to"]))
                assert key not in found
                found[key] = (message["direction"], one["status"], one["deliveryCode"], one["contradicted"])
    differing = {key: (found.get(key), wanted.get(key)) for key in found.keys() | wanted.keys()}
    differing = {key: (said, true) for key, (said, true) in differing.items() if said != true}
    assert not differing, (len(differing), dict(itertools.islice(differing.items(), 20)))


async def assert_log(there: RoundTrip, told: Told) -> list[str]:
    """The log holds every event that was answered 200, once; returns its event ids in their order."""
    log = [event async for page in pages(there.receiver, "/api/events", after=0, limit=1000) for event in page]
    ids = [event["id"] for event in log]
    assert len(set(ids)) == len(ids)
    counted = Counter(event["subject"] for event in log)
    assert counted == Counter({message_id: len(events) for message_id, events in told.events.items()})
    assert_order(log)
    return ids


async def assert_file(path: Path, log: list[str]) -> None:
    """The sink has everything, once, each message's events in their order."""
    deadline = time.monotonic() + 300
    while line_count(path) < len(log):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    events = published(path)
    assert sorted(event["id"] for event in events) == sorted(log)
    assert_order(events)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


async def assert_journal(url: str, told: Told) -> None:
    """Every callback is in the journal or was a repeat; the status table is what the events make it."""
    database = Database(url)
    async with database.reading() as connection:
        in_journal = (await connection.execute(text("SELECT count(*) FROM callbacks"))).scalar_one()
        callbacks, repeats = (await connection.execute(text("SELECT callbacks, repeats FROM processor"))).one()
        quarantined = await connection.execute(text("SELECT DISTINCT callback_id, reason FROM quarantine"))
        assert Counter(reason for _, reason in quarantined) == Counter({"unknown-type": told.unfamiliar})
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()
    await database.close()
    assert callbacks == in_journal + repeats == told.accepted
    assert rebuilt.differing == 0


def assert_nothing_was_left_out(truth: list[dict[str, Any]], told: Told) -> None:
    """Everything that can go wrong did."""
    statuses = {one["status"] for one in truth}
    assert statuses >= {None, "unknown", "sending", "sent", "unconfirmed", "delivered", "failed", "read", "received"}
    assert {one["contradicted"] for one in truth} == {True, False}
    for kind in ("v1 GET primary", "v1 POST primary", "v1 GET fallback", "v1 POST fallback", "v2 POST primary"):
        assert told.kinds[kind]
    assert told.kinds["copies"] > told.accepted / 100
    assert told.kinds["several in one"]
    assert told.unfamiliar
