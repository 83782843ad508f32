"""Outages of a broker, the same for every kind, and what the sink must do about them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from receiver.domain.publication import LogEntry, Published, SinkDown
from receiver.sinks.registry import ConfiguredSink
from receiver.storage.database import Database
from tests.brokers.own import OwnServer
from tests.dispatching import append, audit, life, memory, memory_sink, messages, rows, running, sink_row
from tests.factories import batch, make_publication
from tests.fault_servers import Proxy
from tests.waiting import eventually

# An attempt that timed out is repeated after a minute.
_SECONDS_TO_SETTLE = 120


class Stream(Protocol):
    """The destination of the events."""

    async def ids(self) -> list[str]: ...

    def holds(self, count: int) -> Callable[[], Any]:
        """Whether at least `count` events have arrived, duplicates included."""


def settled(database: Database, sink: ConfiguredSink, entries: Sequence[LogEntry]) -> Callable[[], Any]:
    """Whether the cursor is at the end and no retry is left. The number of arrived events alone does not show it."""

    async def is_settled() -> bool:
        cursor = (await sink_row(database, sink.name)).cursor
        return bool(cursor == entries[-1].position) and not await rows(database)

    return is_settled


def reports_error(database: Database, sink: ConfiguredSink, reason: str) -> Callable[[], Any]:
    """Whether the sink is down with this reason."""

    async def is_known() -> bool:
        return bool((await sink_row(database, sink.name)).last_error == reason)

    return is_known


async def away_at_the_start(database: Database, server: OwnServer, sink: ConfiguredSink, stream: Stream) -> None:
    """All events wait for the server; other sinks go on."""
    server.stop()
    entries, other = await append(database, messages(5)), memory_sink("other")
    async with running(database, sink, other):
        await eventually(lambda: len(memory(other).published) == len(entries))
        assert (await sink_row(database, sink.name)).cursor == 0
        server.start()
        await eventually(settled(database, sink, entries), _SECONDS_TO_SETTLE)
    assert audit(entries, await stream.ids()) == 0


async def killed_under_load(database: Database, server: OwnServer, sink: ConfiguredSink, stream: Stream) -> None:
    """Everything arrives; events under way may arrive twice."""
    entries = await append(database, messages(500))
    share = len(entries) // 5
    async with running(database, sink) as run:
        for killing in range(1, 4):
            await eventually(stream.holds(killing * share), _SECONDS_TO_SETTLE)
            server.kill()
            # However far the sink has come, it sees that the server is down.
            entries += await append(database, life(f"outage {killing}"))
            await eventually(lambda: run.observed.breaker.count("open") >= killing)  # noqa: B023
            server.start()
        await eventually(settled(database, sink, entries), _SECONDS_TO_SETTLE)
    audit(entries, await stream.ids())


async def frozen(database: Database, server: OwnServer, sink: ConfiguredSink, stream: Stream) -> None:
    """A frozen server delays no other sink and costs no attempts."""
    other = memory_sink("other")
    async with running(database, sink, other):
        entries = await append(database, life("first"))
        await eventually(settled(database, sink, entries), _SECONDS_TO_SETTLE)
        server.freeze()
        entries += await append(database, messages(100))
        await eventually(lambda: len(memory(other).published) == len(entries))
        await eventually(reports_error(database, sink, "timeout"))
        server.thaw()
        await eventually(settled(database, sink, entries), _SECONDS_TO_SETTLE)
    audit(entries, await stream.ids())


async def refused(between: Proxy, sink: Any) -> None:
    """Nothing listens at the address of the connection any more."""
    await sink.publish([make_publication()])
    await between.refuse()
    assert await sink.publish(batch(2)) == [SinkDown(reason="ConnectionRefusedError")] * 2
    await between.forward()
    assert await sink.publish(batch(2)) == [Published()] * 2


async def unanswered(between: Proxy, sink: Any) -> None:
    """The connections accept everything and answer nothing: the sink must open a new one."""

    async def is_back() -> bool:
        return bool(await sink.publish([make_publication(2)]) == [Published()])

    await eventually(is_back)
    await between.blackhole()
    # More than the buffers of the connection hold.
    large = [make_publication(number, text="x" * 900_000) for number in range(20)]
    assert await sink.publish(large) == [SinkDown(reason="timeout")] * 20
    assert await sink.publish([make_publication(2)]) == [SinkDown(reason="timeout")]
    await between.forward()
    await eventually(is_back)
