"""What every built-in sink does, by the conformance kit, and then what the files and streams do besides."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.publication import Published, Refused, Result, Retry, SinkDown
from receiver.sinks.registry import GROUP, configure
from receiver.testing import Place, SinkConformance, publications
from tests.contract import places
from tests.contract.places import ids

pytestmark = pytest.mark.anyio


class Conformance(SinkConformance):
    """On servers that share a busy machine with much else."""

    patience = 60.0


class TestMemory(Conformance):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with places.memory() as place:
            yield place


class TestStdout(Conformance):
    @pytest.fixture
    async def place(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
        async with places.stdout(monkeypatch) as place:
            yield place


class TestJsonl(Conformance):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with places.jsonl(tmp_path) as place:
            yield place


class TestWebhook(Conformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with places.webhook() as place:
            yield place


class TestNats(Conformance):
    @pytest.fixture
    async def place(self, nats_url: str) -> AsyncIterator[Place]:
        async with places.nats(nats_url) as place:
            yield place


class TestRedis(Conformance):
    @pytest.fixture
    async def place(self, redis_url: str) -> AsyncIterator[Place]:
        async with places.redis(redis_url) as place:
            yield place


class TestKafka(Conformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with places.kafka() as place:
            yield place


class TestRabbitmq(Conformance):
    @pytest.fixture
    async def place(self, rabbitmq_url: str) -> AsyncIterator[Place]:
        async with places.rabbitmq(rabbitmq_url) as place:
            yield place


def test_every_built_in_sink_is_on_trial() -> None:
    trials = {kind.__name__.removeprefix("Test").lower() for kind in Conformance.__subclasses__()}
    assert set(entry_points(group=GROUP).names) <= trials


# where there is nothing to publish to: (type, its fields)
UNREACHABLE = [
    ("webhook", {"url": "http://127.0.0.1:1/", "egress_allow": ["127.0.0.0/8"]}),
    ("webhook", {"url": "http://127.0.0.1/"}),
    ("jsonl", {"path": "/nonexistent/directory/events.jsonl"}),
    ("jsonl", {"path": "/"}),
]


@pytest.mark.parametrize(("type_name", "fields"), UNREACHABLE)
async def test_without_anything_there_it_is_down(type_name: str, fields: dict[str, Any]) -> None:
    [configured] = configure([{"name": "one", "type": type_name, **fields}])
    await configured.sink.start()
    [result] = await configured.sink.publish(publications())
    assert isinstance(result, SinkDown)
    assert await configured.sink.check() is not None
    await configured.sink.stop()


@asynccontextmanager
async def jsonl(path: Path) -> AsyncIterator[Any]:
    [configured] = configure([{"name": "file", "type": "jsonl", "path": str(path)}])
    await configured.sink.start()
    try:
        yield configured.sink
    finally:
        await configured.sink.stop()


async def test_a_line_is_the_cloud_event_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with jsonl(path) as sink:
        batch = publications(3)
        await sink.publish(batch)
    assert path.read_bytes() == b"".join(one.body + b"\n" for one in batch)


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with jsonl(tmp_path / "events.jsonl") as sink:
        await sink.publish(publications())
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o077 == 0


async def test_what_is_in_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"id":"e0"}\n')
    async with jsonl(tmp_path / "events.jsonl") as sink:
        [one] = batch = publications()
        await sink.publish(batch)
    assert ids((tmp_path / "events.jsonl").read_bytes()) == ["e0", one.id]


async def test_a_torn_last_line_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":"e0"}\n{"id":"torn')
    async with jsonl(path) as sink:
        [one] = publications()
        await sink.publish([one])
    assert path.read_bytes().splitlines() == [b'{"id":"e0"}', b'{"id":"torn', one.body]


@pytest.mark.parametrize("rotate", [lambda path: path.rename(path.with_suffix(".1")), os.unlink], ids=["moved", "gone"])
async def test_a_rotated_file_is_opened_anew(tmp_path: Path, rotate: Callable[[Path], Any]) -> None:
    path = tmp_path / "events.jsonl"
    async with jsonl(path) as sink:
        await sink.publish(publications())
        rotate(path)
        [one] = batch = publications()
        await sink.publish(batch)
    assert ids(path.read_bytes()) == [one.id]


async def test_a_file_replaced_by_another_is_opened_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    async with jsonl(path) as sink:
        await sink.publish(publications())
        other.write_bytes(b"")
        other.replace(path)
        [one] = batch = publications()
        await sink.publish(batch)
    assert ids(path.read_bytes()) == [one.id]


async def test_after_a_write_that_failed_half_way_the_next_begins_on_its_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write, calls = tmp_path / "events.jsonl", os.write, 0

    def short_then_full(descriptor: int, content: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[:10] if calls == 1 else content)

    async with jsonl(path) as sink:
        monkeypatch.setattr(os, "write", short_then_full)
        batch = publications(2)
        results = await sink.publish(batch)
        assert results == [SinkDown(reason="No space left on device")] * 2
        await sink.publish(batch)
    first, *rest = path.read_bytes().splitlines()
    assert first == batch[0].body[:10]
    assert rest == [one.body for one in batch]


async def test_an_event_counts_as_published_only_once_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    async with jsonl(tmp_path / "events.jsonl") as sink:
        monkeypatch.setattr(os, "fsync", broken)
        assert await sink.publish(publications()) == [SinkDown(reason="Input/output error")]


async def test_a_batch_is_one_write_and_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    async with jsonl(tmp_path / "events.jsonl") as sink:
        await sink.publish(publications())
        for name in ("write", "fsync"):
            original = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *told, o=original, n=name: (calls.append(n), o(*told))[1])
        await sink.publish(publications(100))
    assert calls == ["write", "fsync"]


async def test_a_disk_that_hangs_holds_up_one_thread_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        released.wait(30)
        fsync(descriptor)

    async with jsonl(tmp_path / "events.jsonl") as sink:
        monkeypatch.setattr(os, "fsync", slow)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sink.publish(publications())
        assert await sink.publish(publications()) == [SinkDown(reason="the disk does not finish an earlier write")]
        released.set()


async def test_a_reader_that_went_away_means_that_standard_output_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        [configured] = configure([{"name": "out", "type": "stdout"}])
        assert await configured.sink.publish(publications(2)) == [SinkDown(reason="Broken pipe")] * 2


async def test_the_memory_answers_as_it_is_told() -> None:
    [configured] = configure([{"name": "m", "type": "memory"}])
    sink: Any = configured.sink
    told: Sequence[Result] = (Retry(reason="a"), Published(), Refused(reason="b"))
    sink.tell(*told)
    batch = publications(4)
    results = [result for one in batch for result in await sink.publish([one])]
    assert results == [*told, Published()]
    assert sink.attempted == batch
    assert sink.published == [batch[1], batch[3]]
    sink.answer = lambda one: SinkDown(reason=one.id)
    assert await sink.publish(batch[:1]) == [SinkDown(reason=batch[0].id)]


async def test_who_asks_after_a_file_does_not_touch_a_line_that_another_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":"half of')
    async with jsonl(path) as sink:
        assert await sink.check() is None
    assert path.read_bytes() == b'{"id":"half of'
