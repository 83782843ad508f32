"""The conformance kit for every built-in sink, and further tests of the file sinks and the memory sink."""

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
from receiver.testing import SinkConformance, SinkTarget, publications
from tests.contract import sink_targets
from tests.contract.sink_targets import ids

pytestmark = pytest.mark.anyio


class Conformance(SinkConformance):
    """Waits longer than the default: the servers share a busy machine with other tests."""

    timeout = 60.0


class TestMemory(Conformance):
    @pytest.fixture
    def target(self) -> Iterator[SinkTarget]:
        with sink_targets.memory() as target:
            yield target


class TestPython(Conformance):
    @pytest.fixture
    def target(self) -> Iterator[SinkTarget]:
        with sink_targets.python("plain") as target:
            yield target


class TestPythonAsync(Conformance):
    @pytest.fixture
    def target(self) -> Iterator[SinkTarget]:
        with sink_targets.python("asynchronous") as target:
            yield target


class TestStdout(Conformance):
    @pytest.fixture
    async def target(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SinkTarget]:
        async with sink_targets.stdout(monkeypatch) as target:
            yield target


class TestJsonl(Conformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[SinkTarget]:
        with sink_targets.jsonl(tmp_path) as target:
            yield target


class TestWebhook(Conformance):
    @pytest.fixture
    async def target(self) -> AsyncIterator[SinkTarget]:
        async with sink_targets.webhook() as target:
            yield target


class TestNats(Conformance):
    @pytest.fixture
    async def target(self, nats_url: str) -> AsyncIterator[SinkTarget]:
        async with sink_targets.nats(nats_url) as target:
            yield target


class TestRedis(Conformance):
    @pytest.fixture
    async def target(self, redis_url: str) -> AsyncIterator[SinkTarget]:
        async with sink_targets.redis(redis_url) as target:
            yield target


class TestKafka(Conformance):
    @pytest.fixture
    async def target(self) -> AsyncIterator[SinkTarget]:
        async with sink_targets.kafka() as target:
            yield target


class TestRabbitmq(Conformance):
    @pytest.fixture
    async def target(self, rabbitmq_url: str) -> AsyncIterator[SinkTarget]:
        async with sink_targets.rabbitmq(rabbitmq_url) as target:
            yield target


def test_every_built_in_sink_is_tested() -> None:
    tested = {kind.__name__.removeprefix("Test").lower() for kind in Conformance.__subclasses__()}
    assert set(entry_points(group=GROUP).names) <= tested


# Sinks whose destination does not exist: (type, fields).
UNREACHABLE = [
    ("webhook", {"url": "http://127.0.0.1:1/", "egress_allow": ["127.0.0.0/8"]}),
    ("webhook", {"url": "http://127.0.0.1/"}),
    ("jsonl", {"path": "/nonexistent/directory/events.jsonl"}),
    ("jsonl", {"path": "/"}),
]


@pytest.mark.parametrize(("type_name", "fields"), UNREACHABLE)
async def test_unreachable_destination_means_sink_down(type_name: str, fields: dict[str, Any]) -> None:
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


async def test_jsonl_line_is_the_cloud_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with jsonl(path) as sink:
        batch = publications(3)
        await sink.publish(batch)
    assert path.read_bytes() == b"".join(one.body + b"\n" for one in batch)


async def test_jsonl_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    async with jsonl(tmp_path / "events.jsonl") as sink:
        await sink.publish(publications())
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o077 == 0


async def test_jsonl_appends_to_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"id":"e0"}\n')
    async with jsonl(tmp_path / "events.jsonl") as sink:
        [one] = batch = publications()
        await sink.publish(batch)
    assert ids((tmp_path / "events.jsonl").read_bytes()) == ["e0", one.id]


async def test_jsonl_does_not_follow_a_symbolic_link(tmp_path: Path) -> None:
    """Not at first, and not where the file is replaced by a link while the sink runs."""
    secret, path = tmp_path / "secret", tmp_path / "events.jsonl"
    secret.touch()
    [one, two] = publications(2)
    async with jsonl(path) as sink:
        assert await sink.publish([one]) == [Published()]
        path.unlink()
        path.symlink_to(secret)
        assert await sink.publish([two]) == [SinkDown(reason="path is a symbolic link; name the file that it leads to")]
        assert await sink.check() == "path is a symbolic link; name the file that it leads to"
    assert secret.read_bytes() == b""


async def test_jsonl_ends_a_torn_last_line_first(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":"e0"}\n{"id":"torn')
    async with jsonl(path) as sink:
        [one] = publications()
        await sink.publish([one])
    assert path.read_bytes().splitlines() == [b'{"id":"e0"}', b'{"id":"torn', one.body]


@pytest.mark.parametrize("rotate", [lambda path: path.rename(path.with_suffix(".1")), os.unlink], ids=["moved", "gone"])
async def test_jsonl_reopens_a_rotated_file(tmp_path: Path, rotate: Callable[[Path], Any]) -> None:
    path = tmp_path / "events.jsonl"
    async with jsonl(path) as sink:
        await sink.publish(publications())
        rotate(path)
        [one] = batch = publications()
        await sink.publish(batch)
    assert ids(path.read_bytes()) == [one.id]


async def test_jsonl_reopens_a_replaced_file(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    async with jsonl(path) as sink:
        await sink.publish(publications())
        other.write_bytes(b"")
        other.replace(path)
        [one] = batch = publications()
        await sink.publish(batch)
    assert ids(path.read_bytes()) == [one.id]


async def test_jsonl_begins_a_new_line_after_a_partial_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_jsonl_event_is_published_only_after_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    async with jsonl(tmp_path / "events.jsonl") as sink:
        monkeypatch.setattr(os, "fsync", broken)
        assert await sink.publish(publications()) == [SinkDown(reason="Input/output error")]


async def test_jsonl_batch_is_one_write_and_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    async with jsonl(tmp_path / "events.jsonl") as sink:
        await sink.publish(publications())
        for name in ("write", "fsync"):
            original = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *arguments, o=original, n=name: (calls.append(n), o(*arguments))[1])
        await sink.publish(publications(100))
    assert calls == ["write", "fsync"]


async def test_jsonl_hanging_disk_blocks_only_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_stdout_broken_pipe_means_sink_down(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        [configured] = configure([{"name": "out", "type": "stdout"}])
        assert await configured.sink.publish(publications(2)) == [SinkDown(reason="Broken pipe")] * 2


async def test_memory_returns_the_results_that_were_set() -> None:
    [configured] = configure([{"name": "m", "type": "memory"}])
    sink: Any = configured.sink
    expected: Sequence[Result] = (Retry(reason="a"), Published(), Refused(reason="b"))
    sink.return_next(*expected)
    batch = publications(4)
    results = [result for one in batch for result in await sink.publish([one])]
    assert results == [*expected, Published()]
    assert sink.attempted == batch
    assert sink.published == [batch[1], batch[3]]
    sink.answer = lambda one: SinkDown(reason=one.id)
    assert await sink.publish(batch[:1]) == [SinkDown(reason=batch[0].id)]


async def test_jsonl_check_does_not_end_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":"half of')
    async with jsonl(path) as sink:
        assert await sink.check() is None
    assert path.read_bytes() == b'{"id":"half of'
