"""The readiness probe: its answer comes in time, whatever the database does."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from starlette.applications import Starlette

from receiver.api import health
from receiver.api.health import Health

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr(health, "_PROBE_EVERY_SECONDS", 0.0)


def asking(probe: Callable[[], Awaitable[None]]) -> httpx2.AsyncClient:
    app = Starlette(routes=Health(probe).routes())
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://receiver")


async def test_readyz_answers_in_time_and_starts_no_second_probe() -> None:
    unlocked = asyncio.Event()
    started: list[str] = []

    async def stuck() -> None:
        started.append("one")
        try:
            await unlocked.wait()
        except asyncio.CancelledError:
            await unlocked.wait()  # as a driver whose thread is in the middle of a statement

    async with asking(stuck) as client, asyncio.timeout(30):
        assert [(await client.get("/readyz")).status_code for _ in range(2)] == [503, 503]
        assert started == ["one"]
        unlocked.set()
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0)


async def test_readyz_repeats_a_failed_probe() -> None:
    answers = iter([ValueError("broken"), None])

    async def probe() -> None:
        if error := next(answers):
            raise error

    async with asking(probe) as client:
        assert [(await client.get("/readyz")).status_code for _ in range(2)] == [503, 200]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_head_is_answered_as_get(path: str) -> None:
    async def probe() -> None: ...

    async with asking(probe) as client:
        answer = await client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
