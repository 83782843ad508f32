"""What every built-in sink does, and then what the files and streams do besides."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import orjson
import pytest

from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.sinks.base import SinkSettings
from receiver.sinks.registry import GROUP, ConfiguredSink, configure
from tests.fault_server import FaultServer, fault_server
from tests.servers import free_port

pytestmark = pytest.mark.anyio

KINDS = sorted(entry_points(group=GROUP).names)


def publications(count: int, *, lane: str | None = None, first: int = 1) -> list[Publication]:
    return [
        Publication(
            id=f"e{number}",
            position=number,
            lane=lane or f"v2:{number}",
            type="message.sent",
            received_at=datetime(2026, 1, 1, tzinfo=UTC),
            event={"id": f"e{number}"},
            body=orjson.dumps({"id": f"e{number}", "data": {"text": "two\nlines Ü \u2028"}}),
        )
        for number in range(first, first + count)
    ]


@dataclass
class Kind:
    """A built-in sink in a place where it works; `arrived` reads the ids of what it was given."""

    configured: ConfiguredSink
    arrived: Callable[[], list[str]]

    @property
    def sink(self) -> Any:
        return self.configured.sink


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as served:
        yield served


@pytest.fixture(params=KINDS)
async def kind(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: FaultServer,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> AsyncIterator[Kind]:
    printed = bytearray()

    def of_stdout() -> list[str]:
        printed.extend(capfdbinary.readouterr().out)
        return ids(bytes(printed))

    fields: dict[str, Any] = {"jsonl": {"path": str(tmp_path / "events.jsonl")}, "webhook": {"url": server.url("/200")}}
    [configured] = configure([{"name": "one", "type": request.param, **fields.get(request.param, {})}])
    arrived: dict[str, Callable[[], list[str]]] = {
        "jsonl": lambda: ids((tmp_path / "events.jsonl").read_bytes()),
        "memory": lambda: [one.id for one in configured.sink.published],  # type: ignore[attr-defined]
        "stdout": of_stdout,
        "webhook": lambda: [request.headers["webhook-id"] for request in server.requests if request.method == "POST"],
    }
    await configured.sink.start()
    yield Kind(configured, arrived[request.param])
    await configured.sink.stop()


def ids(lines: bytes) -> list[str]:
    return [orjson.loads(line)["id"] for line in lines.splitlines() if line]


async def test_it_declares_what_the_dispatcher_needs(kind: Kind) -> None:
    sink = kind.sink
    assert issubclass(sink.Settings, SinkSettings)
    assert sink.max_batch >= 1
    assert sink.concurrency >= 1
    assert sink.max_event_bytes >= 64 * 1024
    assert sink.keep_attempts in ("all", "failures")
    # whoever keeps the order of a batch is given one at a time
    assert not sink.keeps_order or sink.concurrency == 1


async def test_it_gives_one_result_for_each_event_in_their_order(kind: Kind) -> None:
    batch = publications(kind.sink.max_batch)
    results = await kind.sink.publish(batch)
    assert [type(result) for result in results] == [Published] * len(batch)
    assert kind.arrived() == [one.id for one in batch]


async def test_one_batch_follows_the_other(kind: Kind) -> None:
    for number in range(1, 4):
        await kind.sink.publish(publications(1, first=number))
    assert kind.arrived() == ["e1", "e2", "e3"]


async def test_the_same_event_may_come_twice(kind: Kind) -> None:
    for _ in range(2):
        [result] = await kind.sink.publish(publications(1))
        assert isinstance(result, Published)
    assert kind.arrived() == ["e1", "e1"]


async def test_it_can_be_stopped_and_started_again(kind: Kind) -> None:
    await kind.sink.publish(publications(1))
    await kind.sink.stop()
    await kind.sink.stop()
    await kind.sink.start()
    await kind.sink.publish(publications(1, first=2))
    assert kind.arrived() == ["e1", "e2"]


async def test_a_check_finds_nothing_wrong_and_publishes_nothing(kind: Kind) -> None:
    assert await kind.sink.check() is None
    await kind.sink.publish(publications(1))
    assert kind.arrived() == ["e1"]


async def test_as_many_as_it_allows_can_be_under_way(kind: Kind) -> None:
    batches = [publications(1, first=number) for number in range(1, kind.sink.concurrency + 1)]
    results = await asyncio.gather(*(kind.sink.publish(batch) for batch in batches))
    assert [type(result) for [result] in results] == [Published] * len(batches)


async def test_an_event_as_large_as_it_allows_arrives(kind: Kind) -> None:
    [small] = publications(1)
    padding = "x" * (kind.sink.max_event_bytes - len(b'{"id":"e1","pad":""}'))
    body = orjson.dumps({"id": "e1", "pad": padding})
    assert len(body) == kind.sink.max_event_bytes
    large = Publication(**{**{name: getattr(small, name) for name in Publication.__slots__}, "body": body})
    [result] = await kind.sink.publish([large])
    assert isinstance(result, Published)
    assert kind.arrived() == ["e1"]


# where there is nothing to publish to: (type, its fields)
UNREACHABLE = [
    ("webhook", {"url": f"http://127.0.0.1:{free_port()}/"}),
    ("jsonl", {"path": "/nonexistent/directory/events.jsonl"}),
    ("jsonl", {"path": "/"}),
]


@pytest.mark.parametrize(("type_name", "fields"), UNREACHABLE)
async def test_without_anything_there_it_is_down(type_name: str, fields: dict[str, Any]) -> None:
    [configured] = configure([{"name": "one", "type": type_name, **fields}])
    await configured.sink.start()
    [result] = await configured.sink.publish(publications(1))
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
        await sink.publish(publications(1))
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o077 == 0


async def test_what_is_in_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"id":"e0"}\n')
    async with jsonl(tmp_path / "events.jsonl") as sink:
        await sink.publish(publications(1))
    assert ids((tmp_path / "events.jsonl").read_bytes()) == ["e0", "e1"]


async def test_a_torn_last_line_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":"e0"}\n{"id":"torn')
    async with jsonl(path) as sink:
        [one] = publications(1)
        await sink.publish([one])
    assert path.read_bytes().splitlines() == [b'{"id":"e0"}', b'{"id":"torn', one.body]


@pytest.mark.parametrize("rotate", [lambda path: path.rename(path.with_suffix(".1")), os.unlink], ids=["moved", "gone"])
async def test_a_rotated_file_is_opened_anew(tmp_path: Path, rotate: Callable[[Path], Any]) -> None:
    path = tmp_path / "events.jsonl"
    async with jsonl(path) as sink:
        await sink.publish(publications(1))
        rotate(path)
        await sink.publish(publications(1, first=2))
    assert ids(path.read_bytes()) == ["e2"]


async def test_a_file_replaced_by_another_is_opened_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    async with jsonl(path) as sink:
        await sink.publish(publications(1))
        other.write_bytes(b"")
        other.replace(path)
        await sink.publish(publications(1, first=2))
    assert ids(path.read_bytes()) == ["e2"]


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
        assert await sink.publish(publications(1)) == [SinkDown(reason="Input/output error")]


async def test_a_batch_is_one_write_and_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    async with jsonl(tmp_path / "events.jsonl") as sink:
        await sink.publish(publications(1))
        for name in ("write", "fsync"):
            original = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *told, o=original, n=name: (calls.append(n), o(*told))[1])
        await sink.publish(publications(100, first=2))
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
                await sink.publish(publications(1))
        assert await sink.publish(publications(1)) == [SinkDown(reason="the disk does not finish an earlier write")]
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
    results = [result for one in publications(4) for result in await sink.publish([one])]
    assert results == [*told, Published()]
    assert [one.id for one in sink.attempted] == ["e1", "e2", "e3", "e4"]
    assert [one.id for one in sink.published] == ["e2", "e4"]
    sink.answer = lambda one: SinkDown(reason=one.id)
    assert await sink.publish(publications(1, first=9)) == [SinkDown(reason="e9")]
