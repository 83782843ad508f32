"""The primary of PostgreSQL fails and its standby is promoted: every process goes on in seconds and loses nothing."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.brokers.own import HOST
from tests.factories import v2_event
from tests.fault_servers import Proxy, proxy
from tests.faults.audit import arrive, audit
from tests.faults.load import Load, published
from tests.processes import PATIENT, Server, receiver, serving, until
from tests.servers import on_postgres
from tests.standby import OwnPostgres, primary_and_standby

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

FILE = {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}
SETTINGS = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["token"]'}
# From the promotion until every process takes callbacks. Publishing may wait for a lease too.
PROMISED_SECONDS = 10.0
# A busy machine takes its time to start processes and to count a lease out.
BUSY_SECONDS = 20.0
READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on"


@pytest.fixture
def servers() -> Iterator[tuple[OwnPostgres, OwnPostgres]]:
    """A primary, and a standby that has every commit before it counts."""
    with primary_and_standby() as (primary, standby):
        on_postgres(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        yield primary, standby


async def crash(primary: OwnPostgres, standby: OwnPostgres) -> None:
    """The primary ends with all its connections."""
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.promote)


async def demotion(primary: OwnPostgres, standby: OwnPostgres) -> None:
    """The primary stays, with all its connections, and takes no writes any more."""
    await asyncio.to_thread(on_postgres, primary.url, READ_ONLY, "SELECT pg_reload_conf()")
    await asyncio.sleep(1)
    await asyncio.to_thread(standby.promote)


async def silence(primary: OwnPostgres, standby: OwnPostgres) -> None:
    """The primary stays reachable and does not answer, as a machine that hangs."""
    primary.freeze()
    await asyncio.to_thread(standby.promote)


async def test_failover_to_the_second_host_of_the_url(
    servers: tuple[OwnPostgres, OwnPostgres], tmp_path: Path, failure: Callable[..., Awaitable[None]]
) -> None:
    primary, standby = servers
    url = f"postgresql://postgres@{HOST}:{primary.port},{HOST}:{standby.port}/postgres"
    await fail_over(url, servers, tmp_path, lambda: failure(primary, standby))


async def test_failover_of_an_address_that_moves_to_the_new_primary(
    servers: tuple[OwnPostgres, OwnPostgres], tmp_path: Path, failure: Callable[..., Awaitable[None]]
) -> None:
    primary, standby = servers

    async def failed(between: Proxy) -> None:
        # The address moves first, so that it leads to a standby for a while.
        between.lead_to(HOST, standby.port)
        await failure(primary, standby)

    async with proxy(HOST, primary.port) as between:
        url = f"postgresql://postgres@{HOST}:{between.port}/postgres"
        await fail_over(url, servers, tmp_path, lambda: failed(between))


@pytest.fixture(params=[crash, demotion, silence], ids=["crash", "demotion", "silence"])
def failure(request: pytest.FixtureRequest) -> Callable[..., Awaitable[None]]:
    fail: Callable[..., Awaitable[None]] = request.param
    return fail


async def fail_over(
    url: str, servers: tuple[OwnPostgres, OwnPostgres], folder: Path, fail: Callable[[], Awaitable[None]]
) -> None:
    primary, standby = servers
    first, second = folder / "with-worker", folder / "web"
    first.mkdir()
    second.mkdir()
    events = first / "events.jsonl"
    settings = {**SETTINGS, "DATABASE_URL": url, "SINKS": json.dumps([FILE])}
    assert (await asyncio.to_thread(receiver, folder, "migrate", **settings)).returncode == 0
    load = Load()
    with ExitStack() as stack:
        # In threads: a proxy of this test runs on the event loop.
        one = await asyncio.to_thread(stack.enter_context, serving(first, settings=settings))
        web = {**settings, "WORKER": "none"}
        two = await asyncio.to_thread(stack.enter_context, serving(second, settings=web))
        async with load.on(one.url, "a", pause=0.05), load.on(two.url, "b", pause=0.05):
            await asyncio.to_thread(until, events.exists)
            await fail()
            promoted = time.monotonic()
            await asyncio.gather(accepting(one), accepting(two))
            accepted = time.monotonic() - promoted
            size = events.stat().st_size
            await asyncio.to_thread(until, lambda: events.stat().st_size > size)
            published_after = time.monotonic() - promoted
        print(f"after the promotion: accepting {accepted:.1f} s, publishing {published_after:.1f} s; {load.answers}")
        assert accepted < PROMISED_SECONDS
        assert published_after < 2 * PROMISED_SECONDS + BUSY_SECONDS
        assert set(load.answers) <= {200, 503}
        found = await audit(standby.url, load)
        await arrive(lambda: published(events), found)
        primary.thaw()
        assert [await asyncio.to_thread(server.stop) for server in (one, two)] == [0, 0]


async def accepting(server: Server) -> None:
    """Waits until a server is ready and takes a callback."""
    async with httpx2.AsyncClient(base_url=server.url, auth=("u", "p"), **PATIENT) as client:
        while (await client.post("/callbacks/bandwidth/v2", json=[v2_event("probe")])).status_code != 200:
            await asyncio.sleep(0.1)
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)
