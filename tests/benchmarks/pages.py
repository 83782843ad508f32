"""How long pages take: `python -m tests.benchmarks.pages`, on a PostgreSQL database of ten million messages.

`fill` fills a migrated database (see `pages_data`), once. `time` serves it, and requests every page with a session:
first once, then 20 times, each beside a trivial page, which reads no database. A page that says that it goes on is
then followed to its end. CPU times are those of the web process and of its sessions at the database: on a machine that
others use they say more than the clock. `filters` requests lists of messages by random filters. `overviews` posts
callbacks in turns with and without ten open overviews; it adds messages to the database.
"""

import argparse
import asyncio
import http.client
import json
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import quote, urlencode, urljoin

import asyncpg

from receiver.domain.events import Api, Direction
from receiver.models.parameters import MessagePlace, message_cursor
from tests.benchmarks.load import USER, Load, percentile, run
from tests.benchmarks.pages_data import LARGE_GROUP, TEST_HANDSET, fill
from tests.benchmarks.processes import cpu_seconds
from tests.processes import Server, receiver, serving

TOKEN: Final = "t"
ROUNDS: Final = 20
AIM_MS: Final = 200
# The sinks of `pages_data` that the settings still have.
SINKS: Final = "".join(
    f'[[sinks]]\nname = "{name}"\ntype = "jsonl"\npath = "{name}.jsonl"\n' for name in ("archive", "crm")
)
# How long the overview shows the same numbers.
_NUMBERS_SECONDS: Final = 10.5
_OVERVIEWS: Final = 10
_REFRESHED_EVERY: Final = 5.0


@dataclass(slots=True, kw_only=True)
class Timed:
    """The times of one page in seconds, and the CPU times of its warm requests together.

    `steps` are the times of its parts, from the first request to the end, if it comes in parts.
    """

    first: float
    warm: list[float] = field(default_factory=list)
    trivial: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    web: float = 0.0
    database: float = 0.0
    size: int = 0
    status: int = 0


class Browser:
    """A browser that is signed in."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", "/login", urlencode({"token": TOKEN}), form)
        response = self._connection.getresponse()
        response.read()
        cookie = response.getheader("Set-Cookie", "").partition(";")[0]
        self._headers = {"Accept": "text/html", "Cookie": cookie}

    def get(self, address: str) -> tuple[float, int, int]:
        """Loads a page; returns the seconds, the status and the size."""
        seconds, status, body = self._load(address)
        return seconds, status, len(body)

    def steps(self, address: str) -> list[float]:
        """Loads a page and what its scripts would load to complete it; returns the seconds of each request."""
        taken = []
        while True:
            seconds, _, body = self._load(address)
            taken.append(seconds)
            following = re.search(rb'data-go-on href="([^"]+)"', body)
            if following is None:
                return taken
            address = urljoin(address, unescape(following[1].decode()))

    def _load(self, address: str) -> tuple[float, int, bytes]:
        begun = time.perf_counter()
        self._connection.request("GET", address, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read()
        return time.perf_counter() - begun, response.status, body

    def first_byte(self, address: str) -> tuple[float, int, int]:
        """The seconds until a file begins; it is not loaded further."""
        while True:
            begun = time.perf_counter()
            self._connection.request("GET", address, headers=self._headers)
            response = self._connection.getresponse()
            first = response.read(1)
            seconds = time.perf_counter() - begun
            self._connection.close()
            if response.status != http.client.SERVICE_UNAVAILABLE:
                return seconds, response.status, len(first)
            # The one before has not ended yet.
            time.sleep(0.05)


# --- the pages ---


async def pages(url: str) -> dict[str, str]:
    """The addresses of all pages by name, with values that the database has."""
    connection: Any = await asyncpg.connect(url)
    try:
        found = await _examples(connection)
    finally:
        await connection.close()
    return {
        **_lists_of_messages(found),
        **_messages(found),
        **_operations(found),
        **_statistics(found),
        "set-up": "/setup",
        "tags": "/tags",
        "docs": "/docs",
        "docs, settings": "/docs/settings",
        "docs, OpenAPI": "/docs/openapi",
    }


async def _examples(connection: Any) -> dict[str, Any]:
    newest = (
        "SELECT id, api, direction, sender, recipients->>0 AS recipient, tag FROM messages WHERE {} "
        "ORDER BY listed_at DESC LIMIT 1"
    )
    lengths = "api = 'v2' AND jsonb_array_length(recipients) "
    now = datetime.now(UTC)
    return {
        "one": await connection.fetchrow(newest.format("api = 'v2' AND tag LIKE 'order %' AND direction = 'out'")),
        "failed": await connection.fetchrow(newest.format("status = 'failed' AND api = 'v2'")),
        "group": await connection.fetchrow(newest.format(lengths + "BETWEEN 3 AND 9")),
        "large": await connection.fetchrow(newest.format(lengths + f"= {LARGE_GROUP}")),
        "busy": await connection.fetchrow(newest.format(f"api = 'v2' AND recipients->>0 = '{TEST_HANDSET}'")),
        "in": await connection.fetchrow(newest.format("direction = 'in' AND sender <> '' AND api = 'v2'")),
        "callback": await connection.fetchval("SELECT id FROM callbacks ORDER BY sequence DESC LIMIT 1"),
        "quarantined": await connection.fetchval("SELECT max(callback_id) FROM quarantine"),
        "alert": await connection.fetchval("SELECT id FROM alerts WHERE status = 'firing' ORDER BY id LIMIT 1"),
        "letter": await connection.fetchrow(
            "SELECT e.message_id, d.event_id FROM dead_letters AS d JOIN events AS e USING (position) LIMIT 1"
        ),
        "deep": message_cursor(MessagePlace(now - timedelta(days=45), Api.V2, Direction.OUT, "")),
        "now": now,
    }


def _lists_of_messages(found: dict[str, Any]) -> dict[str, str]:
    one, failed = found["one"], found["failed"]
    many, some, few = "+19195550000", "+19195550800", "+19195552999"
    week = (found["now"] - timedelta(days=40)).date()
    filters: dict[str, dict[str, Any]] = {
        "messages": {},
        "messages, a thousand": {"size": 1000},
        "messages, second page": {"page": 1},
        "messages, deep by cursor": {"cursor": found["deep"]},
        "messages, deep by cursor, a thousand": {"cursor": found["deep"], "size": 1000},
        "messages, page=20000": {"page": 20_000},
        "messages, q= a customer": {"q": one["recipient"]},
        "messages, q= a large sender": {"q": many},
        "messages, q= a small sender": {"q": few},
        "messages, q= the test handset": {"q": TEST_HANDSET},
        "messages, q= an order": {"q": one["tag"]},
        "messages, q= a campaign": {"q": "campaign-1"},
        "messages, q= an id": {"q": one["id"]},
        "messages, q= nothing": {"q": "no such text"},
        "messages, q= a number of nobody": {"q": "+12125550123"},
        "messages, from= a large sender": {"from": many},
        "messages, from= a large sender, a thousand": {"from": many, "size": 1000},
        "messages, from= a medium sender": {"from": some},
        "messages, from= a small sender": {"from": few},
        "messages, from= nobody": {"from": "+12125550123"},
        "messages, to= a customer": {"to": one["recipient"]},
        "messages, to= the test handset": {"to": TEST_HANDSET},
        "messages, to= a large number of ours": {"to": many},
        "messages, to= nobody": {"to": "+12125550123"},
        "messages, from= and to=": {"from": one["sender"], "to": one["recipient"]},
        "messages, from= and to=, both large": {"from": many, "to": TEST_HANDSET},
        "messages, from= and to=, both large, no match": {"from": some, "to": TEST_HANDSET},
        "messages, from= small, to= large, no match": {"from": few, "to": TEST_HANDSET},
        "messages, a day": {"fromDateTime": f"{week}", "toDateTime": f"{week + timedelta(days=1)}"},
        "messages, since a week": {"fromDateTime": "7d"},
        **{f"messages, status={s}": {"status": s} for s in ("failed", "delivered", "read", "partial", "sent")},
        "messages, status=sending": {"status": "sending"},
        "messages, status= four": {"status": "failed,unconfirmed,sending,partial"},
        "messages, deliveryCode= common": {"deliveryCode": "4720"},
        "messages, deliveryCode= rare": {"deliveryCode": "5999"},
        "messages, deliveryCode= none": {"deliveryCode": "1"},
        "messages, deliveryCode= twenty": {"deliveryCode": ",".join(map(str, range(4700, 4720)))},
        "messages, tagPrefix= many": {"tagPrefix": "order"},
        "messages, tagPrefix= few": {"tagPrefix": one["tag"][:-1]},
        "messages, tagPrefix= none": {"tagPrefix": "nothing"},
        "messages, applicationId=": {"applicationId": "a7c1de22-0003-4e07-948d-329f4b722ee1"},
        "messages, applicationId= none": {"applicationId": "none"},
        "messages, direction=in": {"direction": "in"},
        **{f"messages, tagVerdict={v}": {"tagVerdict": v} for v in ("valid", "forged", "unchecked", "not-applicable")},
        "messages, awaitingReceipt": {"awaitingReceipt": "true"},
        "messages, awaitingReceipt=false": {"awaitingReceipt": "false"},
        "messages, contradicted": {"contradicted": "true"},
        "messages, olderThan=60d": {"olderThan": "60d"},
        "messages, from= and status=failed": {"from": many, "status": "failed"},
        "messages, small from= and status=failed": {"from": few, "status": "failed"},
        "messages, from= and status=partial, rare": {"from": some, "status": "partial"},
        "messages, from= and deliveryCode=": {"from": some, "deliveryCode": "4720"},
        "messages, applicationId= and status=sending": {
            "applicationId": "a7c1de22-0003-4e07-948d-329f4b722ee1", "status": "sending",
        },
        "messages, applicationId= and from= of another": {
            "applicationId": "a7c1de22-0003-4e07-948d-329f4b722ee1", "from": many,
        },
        "messages, to= and status=failed": {"to": TEST_HANDSET, "status": "failed"},
        "messages, to= and tagVerdict=forged": {"to": TEST_HANDSET, "tagVerdict": "forged"},
        "messages, tagPrefix= and status=failed": {"tagPrefix": "campaign-3", "status": "failed"},
        "messages, tagPrefix= and direction=in, a day": {
            "tagPrefix": "campaign-39", "direction": "in", "fromDateTime": "1d",
        },
        "messages, from=, status=failed, code, a month": {
            "from": many, "status": "failed", "deliveryCode": "4770", "fromDateTime": "30d",
        },
        "messages, status=delivered and contradicted": {"status": "delivered", "contradicted": "true"},
        "messages, status=failed, direction=out, awaiting": {"status": "failed", "awaitingReceipt": "true"},
        "messages, q= and status": {"q": failed["recipient"], "status": "failed"},
        "messages, q= large and status=partial": {"q": many, "status": "partial"},
        "messages, text of nobody": {"q": "x" * 190},
    }  # fmt: skip
    return {name: f"/messages?{urlencode(given)}" for name, given in filters.items()}


def _messages(found: dict[str, Any]) -> dict[str, str]:
    names = {
        "one": "a message",
        "failed": "a failed message",
        "group": "a group message",
        "large": f"a message to {LARGE_GROUP} numbers, {2 * LARGE_GROUP} events",
        "busy": "a message between two busy numbers",
        "in": "an inbound message",
    }
    return {
        **{name: f"/messages/{quote(found[key]['id'], safe='')}" for key, name in names.items()},
        "a message that is not there": "/messages/nothing",
    }


def _operations(found: dict[str, Any]) -> dict[str, str]:
    letter = found["letter"]
    of_week = "fromDateTime=7d"
    return {
        "callbacks, quarantined": "/callbacks",
        "callbacks, all": "/callbacks?outcome=any",
        "callbacks, all, a thousand": "/callbacks?outcome=any&size=1000",
        "callbacks, accepted": "/callbacks?outcome=accepted",
        "callbacks, pending": "/callbacks?outcome=pending",
        "callbacks, a reason": "/callbacks?reason=unreadable",
        "callbacks, a reason that is not there": "/callbacks?reason=too-large",
        "callbacks of a message": f"/callbacks?outcome=any&messageId={found['one']['id']}",
        "callbacks of no message": "/callbacks?outcome=any&messageId=nothing",
        "callbacks, quarantined, a week": f"/callbacks?{of_week}",
        "callbacks, accepted, before twenty days": "/callbacks?outcome=accepted&toDateTime=20d",
        "a callback": f"/callbacks/{found['callback']}",
        "a quarantined callback": f"/callbacks/{found['quarantined']}",
        "sinks": "/sinks",
        "a sink": "/sinks/crm",
        "a removed sink": "/sinks/old",
        "dead letters": "/dead-letters",
        "dead letters, a thousand": "/dead-letters?size=1000",
        "dead letters of a sink": "/dead-letters?sink=crm&reason=expired",
        "dead letters of a message": f"/dead-letters?messageId={letter['message_id']}",
        "dead letters of an event": f"/dead-letters?eventId={letter['event_id']}",
        "dead letters, a day": "/dead-letters?fromDateTime=30d&toDateTime=29d",
        "alerts": "/alerts",
        "alerts, all, a thousand": "/alerts?status=any&size=1000",
        "an alert": f"/alerts/{found['alert']}",
    }


def _statistics(found: dict[str, Any]) -> dict[str, str]:
    single = ("status", "deliveryCode", "category", "applicationId", "from", "carrierName", "direction", "api")
    given: dict[str, dict[str, Any]] = {"statistics": {}}
    for days in (7, 30, 90):
        since = {"fromDateTime": f"{days}d"}
        given |= {f"statistics, by={name}, {days} days": {"by": name, **since} for name in (*single, "day", "week")}
    given |= {
        "statistics, by=hour, 1 day": {"by": "hour", "fromDateTime": "24h"},
        "statistics, by=hour, 7 days": {"by": "hour", "fromDateTime": "7d"},
        "statistics, by=hour, 30 days": {"by": "hour", "fromDateTime": "30d"},
        "statistics, by=hour, 90 days": {"by": "hour", "fromDateTime": "90d"},
        "statistics, by=from, limit=10, 30 days": {"by": "from", "fromDateTime": "30d", "limit": 10},
        "statistics, by=from, limit=10, 90 days": {"by": "from", "fromDateTime": "90d", "limit": 10},
        "statistics, by=from, status=failed, 90 days": {"by": "from", "fromDateTime": "90d", "status": "failed"},
        "statistics, by=from, one application, 90 days": {
            "by": "from", "fromDateTime": "90d", "applicationId": "a7c1de22-0003-4e07-948d-329f4b722ee1",
        },
        "statistics, by=day of a large sender, 90 days": {"by": "day", "fromDateTime": "90d", "from": "+19195550000"},
        "statistics, by=day of a small sender, 90 days": {"by": "day", "fromDateTime": "90d", "from": "+19195552999"},
        "statistics, by=deliveryCode of a large sender, 90 days": {
            "by": "deliveryCode", "fromDateTime": "90d", "from": "+19195550000",
        },
        "statistics, by=deliveryCode of a small sender, 30 days": {
            "by": "deliveryCode", "fromDateTime": "30d", "from": "+19195552999",
        },
        "statistics, by=hour of a large sender, 7 days": {"by": "hour", "fromDateTime": "7d", "from": "+19195550000"},
        "statistics, by=category,carrierName, 30 days": {"by": "category,carrierName", "fromDateTime": "30d"},
        "statistics, by=applicationId,carrierName,status, 90 days": {
            "by": "applicationId,carrierName,status", "fromDateTime": "90d",
        },
        "statistics, by=day,status, 90 days": {"by": "day,status", "fromDateTime": "90d"},
        "statistics, by=hour,status, 7 days": {"by": "hour,status", "fromDateTime": "7d"},
        "statistics, by=from,status, 7 days": {"by": "from,status", "fromDateTime": "7d"},
        "statistics, by=from,carrierName, limit=100, 7 days": {
            "by": "from,carrierName", "fromDateTime": "7d", "limit": 100,
        },
        "statistics, by=day,from, 7 days": {"by": "day,from", "fromDateTime": "7d"},
    }  # fmt: skip
    return {name: f"/statistics?{urlencode(values)}" for name, values in given.items()}


# --- timing ---


class Sessions:
    """The CPU time of the sessions that a process has at a PostgreSQL of this machine."""

    def __init__(self, url: str, pid: int) -> None:
        self._runner = asyncio.Runner()
        self._connection: Any = self._runner.run(asyncpg.connect(url))
        self._pid = pid

    def seconds(self) -> float:
        """The CPU time of the sessions that there are now; PostgreSQL's for as long as they last."""
        ports = _ports(self._pid)
        rows = self._runner.run(
            self._connection.fetch("SELECT pid, client_port FROM pg_stat_activity WHERE datname = current_database()")
        )
        return sum(cpu_seconds(row["pid"]) or 0.0 for row in rows if row["client_port"] in ports)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def _ports(pid: int) -> set[int]:
    """The local ports of a process's TCP connections."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes |= set(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
        except OSError:
            continue
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {int(found[1].rpartition(":")[2], 16) for found in fields if found[9] in inodes}


@contextmanager
def served(url: str) -> Iterator[tuple[Server, int]]:
    """A server on the database, and its port."""
    with tempfile.TemporaryDirectory(prefix="receiver-bench-") as name:
        folder = Path(name)
        (folder / "receiver.toml").write_text(SINKS)
        settings = {"DATABASE_URL": url, "API_TOKENS": json.dumps([TOKEN]), "CALLBACK_CREDENTIALS": json.dumps([USER])}
        with serving(folder, settings=settings) as server:
            yield server, int(server.url.rpartition(":")[2])
            server.stop()


def time_pages(url: str, chosen: str, rounds: int) -> None:
    addresses = {name: address for name, address in asyncio.run(pages(url)).items() if re.search(chosen, name)}
    with served(url) as (server, port):
        sessions, browser = Sessions(url, server.process.pid), Browser(port)
        print(f"{'page':58} {'first':>7} {'p50':>6} {'max':>6} {'trivial':>7} {'web':>6} {'db':>6} ms CPU  {'KB':>6}")
        slow = []
        for name, address in addresses.items():
            timed = _timed(browser, lambda address=address: browser.get(address), server, sessions, rounds)
            timed.steps = browser.steps(address)
            slow += [name] if _print(name, timed) else []
        if re.search(chosen, "messages.csv"):
            _print(
                "messages.csv, first byte",
                _timed(browser, lambda: browser.first_byte("/messages.csv"), server, sessions, rounds),
            )
        if re.search(chosen, "overview"):
            _print("overview", _timed(browser, lambda: browser.get("/"), server, sessions, rounds))
            _print(
                "overview, numbers read again",
                _timed(browser, lambda: browser.get("/"), server, sessions, min(rounds, 5), pause=_NUMBERS_SECONDS),
            )
        sessions.close()
    print(f"{len(slow)} of {len(addresses)} pages took more than {AIM_MS} ms: {', '.join(slow) or 'none'}")


def _timed(
    browser: Browser,
    load: Callable[[], tuple[float, int, int]],
    server: Server,
    sessions: Sessions,
    rounds: int,
    pause: float = 0.0,
) -> Timed:
    first, status, size = load()
    timed = Timed(first=first, status=status, size=size)
    web = database = 0.0
    for _ in range(rounds):
        if pause:
            time.sleep(pause)
        timed.trivial.append(browser.get("/login")[0])
        before = cpu_seconds(server.process.pid) or 0.0, sessions.seconds()
        timed.warm.append(load()[0])
        web += (cpu_seconds(server.process.pid) or 0.0) - before[0]
        database += sessions.seconds() - before[1]
    timed.web, timed.database = web, max(0.0, database)
    return timed


def _print(name: str, timed: Timed) -> bool:
    """Prints a row; returns whether the page misses the aim."""
    rounds = len(timed.warm)
    p50 = statistics.median(timed.warm) * 1000
    mark = "" if timed.status == 200 else f" {timed.status}"
    if len(timed.steps) > 1:
        mark += f" {len(timed.steps)} parts, {sum(timed.steps) * 1000:.0f} ms, at most {max(timed.steps) * 1000:.0f} ms"
    print(
        f"{name:58} {timed.first * 1000:7.0f} {p50:6.0f} {max(timed.warm) * 1000:6.0f} "
        f"{statistics.median(timed.trivial) * 1000:7.1f} {timed.web / rounds * 1000:6.1f} "
        f"{timed.database / rounds * 1000:6.1f}         {timed.size / 1024:6.0f}{mark}",
        flush=True,
    )
    return p50 > AIM_MS


# --- random filters ---


_FILTERS: Final[dict[str, list[str]]] = {
    "from": ["+19195550000", "+19195550001", "+19195550800", "+19195552999"],
    "number": ["+19195550000"],
    "applicationId": [f"a7c1de22-{number}-4e07-948d-329f4b722ee1" for number in ("0001", "0003")] + ["none"],
    "status": ["failed", "delivered", "sending", "partial", "failed,partial", "read", "unconfirmed"],
    "deliveryCode": ["4720", "4770", "4770,4720", "5999"],
    "tagPrefix": ["order", "campaign-1", "campaign", "order 1066"],
    "direction": ["in", "out"],
    "tagVerdict": ["valid", "unchecked", "forged", "valid,forged"],
    "awaitingReceipt": ["true", "false"],
    "contradicted": ["true", "false"],
    "olderThan": ["60d", "1d"],
    "fromDateTime": ["7d", "89d"],
    "toDateTime": ["30d"],
    "sortOrder": ["asc"],
    "q": ["campaign-7", "+19195550002", "9195550000"],
}


def time_filters(url: str, rounds: int, seed: int) -> None:
    """Requests lists by two to four random filters; prints those that took longest."""
    random = Random(seed)
    found = []
    with served(url) as (_, port):
        browser = Browser(port)
        browser.get("/messages")
        for _ in range(rounds):
            names = random.sample(list(_FILTERS), random.choice((2, 3, 4)))
            given = {name: random.choice(_FILTERS[name]) for name in names}
            found.append((browser.steps(f"/messages?{urlencode(given)}"), given))
    first = [steps[0] * 1000 for steps, _ in found]
    p50, p99, in_parts = percentile(first, 50), percentile(first, 99), sum(len(steps) > 1 for steps, _ in found)
    print(f"{rounds} pages: p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {max(first):.0f} ms; {in_parts} came in parts")
    for title, key in (("first", lambda each: each[0][0]), ("whole", lambda each: sum(each[0]))):
        for steps, given in sorted(found, key=key, reverse=True)[:5]:
            print(f"{title}: {steps[0] * 1000:4.0f} ms, {sum(steps) * 1000:6.0f} ms in {len(steps)} parts: {given}")


# --- callbacks beside open overviews ---


class Overviews:
    """Browsers with an open overview each, which refresh it every five seconds, spread over them."""

    def __init__(self, port: int, browsers: int) -> None:
        self._ended = threading.Event()
        self._browsers = [Browser(port) for _ in range(browsers)]
        self._threads = [
            threading.Thread(target=self._refresh, args=(browser, number * _REFRESHED_EVERY / browsers))
            for number, browser in enumerate(self._browsers)
        ]
        self.seconds: list[float] = []

    def __enter__(self) -> "Overviews":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _refresh(self, browser: Browser, after: float) -> None:
        while not self._ended.wait(after):
            self.seconds.append(browser.get("/")[0])
            after = _REFRESHED_EVERY


def beside_overviews(url: str, rate: float, seconds: float, rounds: int, connections: int) -> None:
    """Posts callbacks in turns with and without open overviews; prints p50 and p99 of the answers."""
    number = int(time.time()) * 1000 % 10**12
    latencies: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with served(url) as (_, port):
        load = Load(
            port=port, path="/callbacks/bandwidth/v2", connections=connections, seconds=seconds, first=0, rate=rate
        )
        for turn in range(2 * rounds):
            is_open = (turn + turn // 2) % 2 == 1
            number += 1_000_000
            with Overviews(port, _OVERVIEWS if is_open else 0) as overviews:
                result = run(replace(load, first=number), lambda: None)
            latencies[is_open].append({**result.latencies, "rate": result.rate})
            shown = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in result.latencies.items())
            refreshed = f", {len(overviews.seconds)} refreshes, p50 {percentile(overviews.seconds, 50) * 1000:.0f} ms"
            print(f"{'ten overviews' if is_open else 'none':14} {result.rate:7.0f}/s {shown}{refreshed}", flush=True)
    for name in latencies[True][0]:
        pairs = zip(latencies[True], latencies[False], strict=True)
        ratio = statistics.median(beside[name] / alone[name] for beside, alone in pairs)
        print(f"{name}: {ratio:.2f} of that without overviews")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("fill", "time", "filters", "overviews"))
    parser.add_argument("url", help="the address of the database")
    parser.add_argument("--messages", type=int, default=10_000_000, help="how many messages `fill` stores")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1, help="of the random filters")
    parser.add_argument("--only", default="", help="a regular expression for the names of the pages")
    parser.add_argument("--rate", type=float, default=300, help="callbacks per second beside the overviews; 0: most")
    parser.add_argument("--seconds", type=float, default=15, help="of each turn beside the overviews")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    if options.measure == "fill":
        with tempfile.TemporaryDirectory() as folder:
            receiver(Path(folder), "migrate", DATABASE_URL=options.url)
        asyncio.run(fill(options.url, options.messages))
    elif options.measure == "time":
        time_pages(options.url, options.only, options.rounds or ROUNDS)
    elif options.measure == "filters":
        time_filters(options.url, options.rounds or 300, options.seed)
    else:
        beside_overviews(options.url, options.rate, options.seconds, options.rounds or 4, options.connections)


if __name__ == "__main__":
    main()
