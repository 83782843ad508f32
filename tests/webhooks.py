"""A webhook sink for tests, and publications to post with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from receiver.domain.publication import Publication, Result
from receiver.sinks.registry import configure


def publication(number: int = 1, **changes: Any) -> Publication:
    fields = {
        "id": f"e{number}",
        "position": number,
        "ordering_key": f"v2:{number}",
        "type": "message.sent",
        "received_at": datetime(2026, 1, 1, tzinfo=UTC),
        "event": {},
        "body": b'{"id":"e"}',
    }
    return Publication(**fields | changes)


@asynccontextmanager
async def webhook(url: str, **fields: Any) -> AsyncIterator[Any]:
    [configured] = configure([{"name": "crm", "type": "webhook", "url": url, "timeout": "10s", **fields}])
    await configured.sink.start()
    try:
        yield configured.sink
    finally:
        await configured.sink.stop()


async def post(sink: Any, **changes: Any) -> Result:
    [result] = await sink.publish([publication(**changes)])
    answer: Result = result
    return answer


async def posted(url: str, **fields: Any) -> Result:
    async with webhook(url, **fields) as sink:
        return await post(sink)
