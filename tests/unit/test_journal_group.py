"""The journal's group commit with a writer that does as it is told: groups, bounds, the watchdog, the stop, the log."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from receiver.domain.events import Callback
from receiver.errors import JournalFull, StorageUnavailable
from receiver.intake import journal as journal_module
from receiver.intake.journal import ANSWER_SECONDS, Journal
from tests.factories import callback

pytestmark = pytest.mark.anyio

MEBIBYTE = b"x" * 1024 * 1024


class FakeWriter:
    """A writer that commits while its gate is open, and fails with `error` where that is set."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0
        self.active = 0
        self.probes = 0
        self.is_closed = False

    async def append(self, callbacks: Sequence[Callback]) -> int:
        await self._transaction()
        self.groups.append([one.id for one in callbacks])
        return len(callbacks)

    async def probe(self) -> None:
        await self._transaction()
        self.probes += 1

    async def close(self) -> None:
        self.is_closed = True

    async def _transaction(self) -> None:
        self.begun += 1
        self.active += 1
        assert self.active == 1, "two transactions at once"
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.active -= 1


class Appended:
    """An observer that remembers the sizes of the groups."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None:
        self.sizes.append(callbacks)
        assert len(list(waited_seconds)) == callbacks


@asynccontextmanager
async def running(
    writer: FakeWriter, observer: Appended | None = None, on_append: Callable[[], None] = lambda: None
) -> AsyncIterator[Journal]:
    journal = Journal(writer, observer=observer or Appended(), on_append=on_append)
    await journal.start()
    yield journal
    writer.gate.set()
    writer.error = None
    await journal.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def outcomes(futures: Iterable[asyncio.Future[None]]) -> list[type | None]:
    """The type of each future's exception, or None."""
    async with asyncio.timeout(20):
        found = await asyncio.gather(*futures, return_exceptions=True)
    return [type(one) if one is not None else None for one in found]


@asynccontextmanager
async def hanging(writer: FakeWriter, journal: Journal) -> AsyncIterator[asyncio.Future[None]]:
    """While the block runs the writer hangs in the commit of one callback, whose future this is."""
    writer.gate.clear()
    begun = writer.begun
    first = journal.append(callback(b""))
    await until(lambda: writer.begun > begun)
    yield first
    writer.gate.set()


async def test_concurrent_appends_share_a_commit() -> None:
    writer, observer = FakeWriter(), Appended()
    async with running(writer, observer) as journal:
        assert set(await outcomes([journal.append(callback(b"")) for _ in range(1000)])) == {None}
    assert observer.sizes == [512, 488]


async def test_next_group_gathers_while_a_commit_runs() -> None:
    writer = FakeWriter()
    async with running(writer) as journal:
        async with hanging(writer, journal) as first:
            others = [journal.append(callback(b"")) for _ in range(40)]
            assert journal.waiting == 41
        assert await outcomes([first, *others]) == [None] * 41
        assert journal.waiting == 0
    assert [len(group) for group in writer.groups] == [1, 40]


async def test_order_of_arrival_is_the_order_of_the_journal() -> None:
    writer = FakeWriter()
    callbacks = [callback(b"") for _ in range(1500)]
    async with running(writer) as journal:
        await outcomes([journal.append(one) for one in callbacks])
    assert [id_ for group in writer.groups for id_ in group] == [one.id for one in callbacks]


async def test_group_is_bounded_in_bytes() -> None:
    writer = FakeWriter()
    async with running(writer) as journal:
        assert await outcomes([journal.append(callback(MEBIBYTE)) for _ in range(40)]) == [None] * 40
    assert [len(group) for group in writer.groups] == [16, 16, 8]


@pytest.mark.parametrize(("body", "bound"), [(b"", 4096), (MEBIBYTE, 64)], ids=["number", "bytes"])
async def test_journal_is_full_when_too_much_waits(body: bytes, bound: int) -> None:
    writer = FakeWriter()
    async with running(writer) as journal:
        async with hanging(writer, journal):
            waiting = [journal.append(callback(body)) for _ in range(bound)]
            with pytest.raises(JournalFull):
                journal.append(callback(body))
            with pytest.raises(JournalFull):
                await journal.probe()
        assert await outcomes(waiting) == [None] * bound
        assert await outcomes([journal.append(callback(body))]) == [None]


def test_watchdog_answers_within_five_seconds() -> None:
    assert ANSWER_SECONDS + ANSWER_SECONDS / 20 < 5


async def test_hanging_writer_fails_all_that_wait_and_the_journal_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "ANSWER_SECONDS", 0.2)
    writer = FakeWriter()
    async with running(writer) as journal:
        async with hanging(writer, journal) as first:
            waiting = [journal.append(callback(b"")) for _ in range(3)]
            assert await outcomes([first, *waiting]) == [StorageUnavailable] * 4
        assert await outcomes([journal.append(callback(b""))]) == [None]
    # the first one is stored all the same; those whose sender was answered 503 before their group are not
    assert [len(group) for group in writer.groups] == [1, 1]


async def test_cancelled_append_is_not_committed() -> None:
    writer = FakeWriter()
    async with running(writer) as journal:
        async with hanging(writer, journal):
            gone, there = journal.append(callback(b"")), journal.append(callback(b""))
            gone.cancel()
        await there
    assert [len(group) for group in writer.groups] == [1, 1]


@pytest.mark.parametrize("error", [StorageUnavailable("no"), RuntimeError("no"), MemoryError()], ids=repr)
async def test_error_of_the_writer_costs_its_group_alone(error: Exception) -> None:
    writer, observer = FakeWriter(), Appended()
    async with running(writer, observer) as journal:
        writer.error = error
        assert await outcomes([journal.append(callback(b"")) for _ in range(3)]) == [StorageUnavailable] * 3
        writer.error = None
        assert await outcomes([journal.append(callback(b"")) for _ in range(2)]) == [None] * 2
    assert observer.sizes == [2]


async def test_observer_that_raises_costs_no_callback() -> None:
    class Broken(Appended):
        def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None:
            raise RuntimeError("no metrics today")

    async with running(FakeWriter(), Broken()) as journal:
        for _ in range(3):
            assert await outcomes([journal.append(callback(b""))]) == [None]


async def test_wakeup_that_raises_costs_no_callback() -> None:
    def broken() -> None:
        raise RuntimeError("the worker is gone")

    async with running(FakeWriter(), on_append=broken) as journal:
        for _ in range(3):
            assert await outcomes([journal.append(callback(b""))]) == [None]


async def test_stop_commits_what_waits_and_rejects_the_rest() -> None:
    writer = FakeWriter()
    journal = Journal(writer, observer=Appended())
    await journal.start()
    accepted = [journal.append(callback(b"")) for _ in range(700)]
    stopping = asyncio.create_task(journal.stop())
    await asyncio.sleep(0)
    with pytest.raises(JournalFull):
        journal.append(callback(b""))
    with pytest.raises(JournalFull):
        await journal.probe()
    await stopping
    assert await outcomes(accepted) == [None] * 700
    assert writer.is_closed


async def test_probe_takes_its_turn_between_two_commits() -> None:
    writer = FakeWriter()
    async with running(writer) as journal:
        async with hanging(writer, journal) as first:
            probing = asyncio.create_task(journal.probe())
            await asyncio.sleep(0)
            second = journal.append(callback(b""))
        await asyncio.gather(first, second, probing)
    assert writer.probes == 1


async def test_probe_fails_as_append_does() -> None:
    writer = FakeWriter()
    async with running(writer) as journal:
        writer.error = StorageUnavailable("no")
        with pytest.raises(StorageUnavailable):
            await journal.probe()
        writer.error = None
        await journal.probe()


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def test_failure_is_logged_once_a_minute_with_the_number_of_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, writer = Clock(), FakeWriter()
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    with capture_logs() as lines:
        async with running(writer) as journal:
            writer.error = StorageUnavailable("disk full")
            for seconds in (0, 1, 58, 1, 1, 59):
                clock.now += seconds
                await outcomes([journal.append(callback(b"")), journal.append(callback(b""))])
            writer.error = None
            for _ in range(2):
                await journal.append(callback(b""))
    failures = [(line["callbacks"], line["error"]) for line in lines if line["log_level"] == "error"]
    assert failures == [(2, "disk full"), (6, "disk full"), (4, "disk full")]
    assert [line["event"] for line in lines if line["log_level"] == "info"] == ["callbacks are committed again"]


async def test_each_late_callback_is_counted_once_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(journal_module, "_LOG_EVERY_SECONDS", 0.0)
    writer = FakeWriter()
    with capture_logs() as lines:
        async with running(writer) as journal, hanging(writer, journal) as first:
            waiting = [journal.append(callback(b"")) for _ in range(3)]
            await outcomes([first, *waiting])
            # by the time this one is late, the watchdog has looked at the others many times
            await outcomes([journal.append(callback(b""))])
    assert sum(line["callbacks"] for line in lines if line["log_level"] == "error") == 5
