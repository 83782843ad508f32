"""The sink that calls a Python function: the page's application, and what becomes of what a function does."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from receiver.domain.publication import Published, Refused, Result, Retry, SinkDown
from receiver.errors import SettingsError
from receiver.sinks.base import Sink
from receiver.sinks.python import APPLICATION_LOOP
from receiver.sinks.registry import configure
from receiver.testing import publications
from tests import event_schema, processes
from tests.factories import v2_event
from tests.pages import blocks, page
from tests.processes import until
from tests.waiting import eventually
from tests.web import serving

pytestmark = pytest.mark.anyio

CREDENTIALS = ("user", "password")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the module `shop`, which a test writes."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "shop.py"
    sys.modules.pop("shop", None)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module `functions`, which a test gives its functions."""
    made = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "functions", made)  # type: ignore[arg-type]
    return made


@asynccontextmanager
async def started(target: str = "functions:handle", **more: Any) -> AsyncIterator[Sink]:
    [configured] = configure([{"name": "shop", "type": "python", "target": target, **more}])
    sink = configured.sink
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop()


async def result_of(sink: Sink) -> Result:
    [result] = await sink.publish(publications(1))
    return result


async def test_application_on_the_page_gets_its_events_on_its_own_loop(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVER_CALLBACK_CREDENTIALS", json.dumps([":".join(CREDENTIALS)]))
    [shown] = blocks(page("python"), "python")
    assert len([line for line in shown.splitlines() if line]) <= 15
    module.write_text(f"{shown}\n{WATCHED}", "utf-8")  # noqa: ASYNC240
    import shop  # type: ignore[import-not-found]

    async with serving(shop.app) as base, httpx2.AsyncClient(base_url=f"{base}/sms", **processes.PATIENT) as client:
        body = json.dumps([v2_event("m1", "message-failed", errorCode=4720)])
        assert (await client.post("/callbacks/bandwidth/v2", content=body, auth=CREDENTIALS)).status_code == 200
        await eventually(lambda: shop.undeliverable)
    assert shop.loops == {asyncio.get_running_loop()}
    [event] = shop.events
    event_schema.check(event)
    assert shop.undeliverable == {event["data"]["recipient"]}


WATCHED = """
import asyncio
inner, loops, events = handle, set(), []


async def handle(event):
    loops.add(asyncio.get_running_loop())
    events.append(event)
    await inner(event)
"""


async def test_plain_function_is_called_in_a_thread_and_gets_a_copy(functions: SimpleNamespace) -> None:
    threads = []

    def handle(event: dict[str, Any]) -> None:
        threads.append(threading.current_thread())
        event["data"].clear()

    functions.handle = handle
    async with started() as sink:
        [publication] = publications(1)
        assert await sink.publish([publication]) == [Published()]
        assert publication.event["data"]
        assert threads != [threading.main_thread()]
    await eventually(lambda: not threads[0].is_alive())


async def test_blocking_async_function_does_not_block_the_worker(functions: SimpleNamespace) -> None:
    async def handle(_: dict[str, Any]) -> None:
        time.sleep(0.2)  # noqa: ASYNC251

    functions.handle = handle
    async with started() as sink:
        publishing = asyncio.create_task(result_of(sink))
        beats = 0
        while not publishing.done():
            await asyncio.sleep(0.01)
            beats += 1
    assert beats > 5


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    ("error", "name"),
    [(KeyError, "KeyError"), (SystemExit, "SystemExit"), (StopIteration, "StopIteration|RuntimeError")],
)
async def test_exception_is_a_retry_with_its_class_and_line_and_without_its_text(
    functions: SimpleNamespace, error: type[BaseException], name: str, is_async: bool
) -> None:
    def plain(_: dict[str, Any]) -> None:
        raise error("secret")

    async def asynchronous(_: dict[str, Any]) -> None:
        raise error("secret")

    functions.handle = asynchronous if is_async else plain
    async with started() as sink:
        first, second = await result_of(sink), await result_of(sink)
    assert isinstance(first, Retry)
    assert first.reason == second.reason  # type: ignore[union-attr]
    assert first.reason.split(" at ")[0] in name.split("|")
    if error is not StopIteration:
        assert f" at {Path(__file__).name}:{functions.handle.__code__.co_firstlineno + 1}" in first.reason
    assert "secret" not in first.reason


async def test_function_may_return_a_result_and_anything_else_is_published(functions: SimpleNamespace) -> None:
    returned: list[Any] = [Refused(reason="no such order"), SinkDown(reason="closed"), None, False, "whatever"]
    functions.handle = lambda _: returned.pop(0)
    async with started() as sink:
        assert await result_of(sink) == Refused(reason="no such order")
        assert await result_of(sink) == SinkDown(reason="closed")
        assert [await result_of(sink) for _ in range(3)] == [Published()] * 3


async def test_awaitable_of_a_plain_function_is_awaited(functions: SimpleNamespace) -> None:
    async def later() -> Refused:
        return Refused(reason="no such order")

    functions.handle = lambda _: later()
    async with started() as sink:
        assert await result_of(sink) == Refused(reason="no such order")


async def test_plain_function_that_does_not_return_takes_no_second_thread(functions: SimpleNamespace) -> None:
    goes_on, calls = threading.Event(), []

    def handle(event: dict[str, Any]) -> None:
        calls.append(event)
        goes_on.wait()

    functions.handle = handle
    async with started(timeout="100ms") as sink:
        stuck = SinkDown(reason="earlier calls of the function have not returned")
        assert [await result_of(sink) for _ in range(3)] == [stuck] * 3
        assert len(calls) == 1
        assert await sink.check() == stuck.reason
        goes_on.set()
        await eventually(lambda: sink._threads.free == 1)  # type: ignore[attr-defined]
        assert await result_of(sink) == Published()


async def test_async_function_is_cancelled_after_the_timeout(functions: SimpleNamespace) -> None:
    cancelled = threading.Event()

    async def handle(_: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    functions.handle = handle
    async with started(timeout="100ms") as sink:
        assert await result_of(sink) == Retry(reason="timeout", overloaded=True)
        until(cancelled.is_set)


async def test_sink_is_down_once_the_loop_of_the_application_has_ended(functions: SimpleNamespace) -> None:
    async def handle(_: dict[str, Any]) -> None: ...

    functions.handle = handle
    ended = asyncio.new_event_loop()
    ended.close()
    token = APPLICATION_LOOP.set(ended)
    try:
        async with started() as sink:
            assert await sink.check() == "the event loop of the application has ended"
            assert await result_of(sink) == SinkDown(reason="the event loop of the application has ended")
    finally:
        APPLICATION_LOOP.reset(token)


def test_worker_of_serve_calls_a_function_again_until_it_returns(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.write_text(IN_A_WORKER, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    table = {"name": "shop", "type": "python", "target": "shop:handle", "start": "beginning", "schedule": ["1s"]}
    with processes.serving(tmp_path, settings={"SINKS": json.dumps([table]), "CALLBACK_AUTH": "none"}) as server:
        body = json.dumps([v2_event("m1", "message-sent"), v2_event("m1", "message-delivered")])
        assert httpx2.post(f"{server.url}/callbacks/bandwidth/v2", content=body, **processes.PATIENT).status_code == 200
        taken = tmp_path / "taken.jsonl"
        until(lambda: len(processes.whole_lines(taken)) == 2)
        assert server.stop() == 0
    events = [json.loads(line) for line in processes.whole_lines(taken)]
    assert [event["type"] for event in events] == ["message.sent", "message.delivered"]
    for event in events:
        event_schema.check(event)


IN_A_WORKER = """
import json
failures = ["once"]


def handle(event):
    if failures:
        raise OSError(failures.pop())
    with open("taken.jsonl", "a") as file:
        file.write(json.dumps(event) + chr(10))
"""


WRONG = {
    "handle": 'target: must be a module and a function such as "shop.events:handle"',
    "no_such_module:handle": "target: no_such_module:handle cannot be loaded: No module named",
    "functions:nothing": "define it before create_app() is called, or in a module of its own",
    "functions:number": "target: functions:number is not a function",
    "functions:Class": "target: functions:Class is not a function",
    "functions:generator": "target: functions:generator is a generator, which a call does not run",
    "functions:without": "target: functions:without must take one argument, the event",
}


@pytest.mark.parametrize("target", WRONG)
def test_wrong_target_is_refused_in_one_line(functions: SimpleNamespace, target: str) -> None:
    class Class: ...

    def generator(event: Any) -> Iterator[Any]:
        yield event

    functions.number, functions.Class, functions.generator, functions.without = 1, Class, generator, lambda: None
    with pytest.raises(SettingsError) as refused:
        configure([{"name": "shop", "type": "python", "target": target}])
    assert WRONG[target] in str(refused.value)
    assert "\n" not in str(refused.value)
