"""Whole traces in memory: of one callback, from its answer over the processor to every sink."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from receiver.app import create_app
from receiver.domain.events import Callback
from receiver.errors import StorageUnavailable
from receiver.intake.journal import Journal
from receiver.settings import GivenSettings
from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Sink, SinkSettings
from receiver.storage import callbacks
from receiver.tracing import recorder
from receiver.tracing.spans import Tracer, with_otlp
from tests.collectors import collector
from tests.factories import v2_event
from tests.fault_servers import fault_server
from tests.processes import PATIENT
from tests.waiting import eventually
from tests.web import serving

pytestmark = pytest.mark.anyio

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRETS = ("+15550001", "+15559999", "canary text", "canary tag", "canary-password")


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    """The tracer provider of the application; there can be one in a process."""
    found = trace.get_tracer_provider()
    if not isinstance(found, TracerProvider):
        found = TracerProvider(shutdown_on_exit=False)
        trace.set_tracer_provider(found)
    return found


@pytest.fixture
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


class Failing(Sink):
    """Publishes an event at the second attempt."""

    def __init__(self, settings: SinkSettings) -> None:
        self.published: list[Publication] = []

    async def publish(self, batch: list[Publication]) -> list[Result]:
        self.published += batch
        return [Published() if len(self.published) > 1 else Retry(reason="not yet")]


class Refusing(Sink):
    def __init__(self, settings: SinkSettings) -> None: ...

    async def publish(self, batch: list[Publication]) -> list[Result]:
        return [Refused(reason="never") for _ in batch]


@asynccontextmanager
async def running(
    folder: Path, sinks: list[dict[str, Any]], **tracing: Any
) -> AsyncIterator[tuple[Any, httpx2.AsyncClient]]:
    receiver = create_app(
        GivenSettings(
            data_dir=folder / "data",
            callback_credentials=["user:canary-password"],
            api_auth="none",
            metrics_auth="none",
            sinks=[{"start": "beginning", **sink} for sink in sinks],
            tracing={"exporter": "application", **tracing},
        )
    )
    async with (
        serving(receiver) as base,
        httpx2.AsyncClient(base_url=base, **PATIENT) as client,
    ):
        yield receiver, client


async def post(client: httpx2.AsyncClient, *events: dict[str, Any], **headers: str) -> None:
    answer = await client.post(
        "/callbacks/bandwidth/v2", json=list(events), auth=("user", "canary-password"), headers=headers
    )
    assert answer.status_code == 200


async def spans_of(exporter: InMemorySpanExporter, number: int) -> list[ReadableSpan]:
    await eventually(lambda: len(exporter.get_finished_spans()) >= number)
    return list(exporter.get_finished_spans())


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"


EVENT = v2_event("m1", message={"text": "canary text", "tag": "canary tag"})


async def test_one_callback_makes_one_trace_to_every_sink(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    async with fault_server() as server:
        sinks = [
            {"name": "crm", "type": "webhook", "url": server.url("/200"), "egress_allow": ["127.0.0.1/32"]},
            {"name": "file", "type": "jsonl", "path": str(tmp_path / "events.jsonl")},
        ]
        async with running(tmp_path, sinks) as (_, client):
            await post(client, EVENT)
            spans = await spans_of(exporter, 4)
    [callback], [process] = named(spans, "POST /callbacks/bandwidth/v2"), named(spans, "process callbacks")
    [crm], [file] = named(spans, "publish crm"), named(spans, "publish file")
    assert len(spans) == 4
    assert [span.kind for span in (callback, process, crm, file)] == [
        SpanKind.SERVER,
        SpanKind.CONSUMER,
        SpanKind.PRODUCER,
        SpanKind.PRODUCER,
    ]
    assert len({span.get_span_context().trace_id for span in spans}) == 1
    assert callback.parent is None
    assert process.parent.span_id == callback.get_span_context().span_id
    assert {span.parent.span_id for span in (crm, file)} == {process.get_span_context().span_id}
    # whoever reads the event continues the trace
    [request] = [one for one in server.requests if one.method == "POST"]
    assert request.headers["traceparent"] == traceparent(crm)
    [line] = (tmp_path / "events.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["traceparent"] == traceparent(file)
    assert callback.attributes["http.response.status_code"] == 200
    assert process.attributes["receiver.result"] == "accepted"
    assert process.attributes["receiver.message.ids"] == ("m1",)
    assert crm.attributes["receiver.outcome"] == "published"
    assert crm.attributes["receiver.attempt"] == 1
    assert crm.attributes["http.response.status_code"] == 200
    assert callback.start_time <= callback.end_time <= process.end_time
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)
    shown = "".join(span.to_json() for span in spans)
    assert [secret for secret in SECRETS if secret in shown] == []


async def test_retries_are_further_spans_with_their_errors(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    sinks = [
        {"name": "slow", "type": f"{__name__}:Failing", "schedule": ["1s"]},
        {"name": "never", "type": f"{__name__}:Refusing"},
    ]
    async with running(tmp_path, sinks) as (_, client):
        await post(client, EVENT)
        spans = await spans_of(exporter, 5)
    first, second = named(spans, "publish slow")
    [refused] = named(spans, "publish never")
    assert [one.attributes["receiver.attempt"] for one in (first, second)] == [1, 2]
    assert [one.attributes["receiver.outcome"] for one in (first, second, refused)] == ["retry", "published", "refused"]
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "not yet")
    assert (second.status.status_code, refused.status.description) == (StatusCode.UNSET, "never")
    assert first.attributes["error.type"] == "not yet"
    assert first.parent == second.parent == refused.parent
    assert first.get_span_context().span_id != second.get_span_context().span_id


async def test_no_span_is_made_before_its_callback_and_those_committed_with_it_are_answered(
    tmp_path: Path, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    make = Tracer.make

    def slow_make(self: Tracer, name: str, **fields: Any) -> None:
        order.append(name)
        make(self, name, **fields)

    monkeypatch.setattr(Tracer, "make", slow_make)
    # Longer than the event loop is held up between a commit and its answers.
    monkeypatch.setattr(recorder, "_ANSWERS_FIRST_SECONDS", 1.0)
    accepted = Journal.append

    def append(self: Journal, callback: Callback) -> Any:
        future = accepted(self, callback)

        async def wait() -> None:
            await future
            # As a request goes on to its answer: a few turns of the event loop after the commit.
            for _ in range(3):
                await asyncio.sleep(0)
            order.append("answered")

        waiting.append(asyncio.ensure_future(wait()))
        return future

    waiting: list[Any] = []
    monkeypatch.setattr(Journal, "append", append)
    async with running(tmp_path, []) as (_, client):
        await asyncio.gather(*(post(client, {**EVENT, "time": f"2026-01-01T00:00:0{n}Z"}) for n in range(5)))
        await spans_of(exporter, 10)
    of_callbacks = [name for name in order if name != "process callbacks"]
    assert of_callbacks.count("answered") == 5
    assert of_callbacks[0] == "answered"


async def test_a_replay_is_marked(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    sinks = [{"name": "file", "type": "jsonl", "path": str(tmp_path / "events.jsonl")}]
    async with running(tmp_path, sinks) as (_, client):
        await post(client, EVENT)
        await spans_of(exporter, 3)

        async def is_settled() -> bool:
            return (await client.get("/api/sinks/file")).json()["lag"] == 0

        # A replay ends where the cursor is.
        await eventually(is_settled)
        answer = await client.post("/api/sinks/file/replay", json={"from": "beginning"})
        assert answer.status_code < 300, answer.text
        spans = await spans_of(exporter, 4)
    first, again = named(spans, "publish file")
    assert "receiver.replayed" not in first.attributes
    assert again.attributes["receiver.replayed"] is True
    assert "receiver.attempt" not in again.attributes
    assert again.parent == first.parent


async def test_a_repeated_callback_links_to_the_one_that_brought_the_event(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    async with running(tmp_path, []) as (_, client):
        await post(client, EVENT)
        await spans_of(exporter, 2)
        await post(client, EVENT)
        spans = await spans_of(exporter, 4)
    first, second = named(spans, "process callbacks")
    assert second.attributes["receiver.result"] == "duplicate"
    assert [link.context.span_id for link in second.links] == [first.get_span_context().span_id]
    assert first.get_span_context().trace_id != second.get_span_context().trace_id


async def test_a_quarantined_callback_names_its_reasons(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    async with running(tmp_path, []) as (_, client):
        await post(client, {"canary text": 1})
        spans = await spans_of(exporter, 2)
    [process] = named(spans, "process callbacks")
    assert process.attributes["receiver.result"] == "quarantined"
    assert process.attributes["receiver.quarantine.reasons"] == ("unknown-type",)


async def test_refused_requests_make_no_span(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    async with running(tmp_path, []) as (_, client):
        answer = await client.post(
            "/callbacks/bandwidth/v2", json=[EVENT], headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}
        )
        assert answer.status_code == 401
        await post(client, EVENT)
        spans = await spans_of(exporter, 2)
    assert len(spans) == 2


async def test_without_sampling_nothing_is_exported_and_sinks_are_told(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    file = tmp_path / "events.jsonl"
    async with running(tmp_path, [{"name": "file", "type": "jsonl", "path": str(file)}], ratio=0) as (_, client):
        # the decision of a caller that nobody trusts changes nothing
        await post(client, EVENT, traceparent=f"00-{TRACE}-{SPAN}-01")
        await eventually(lambda: file.exists() and file.read_text("utf-8").endswith("\n"))
        event = json.loads(file.read_text("utf-8"))
    assert event["traceparent"].endswith("-00")
    assert exporter.get_finished_spans() == ()


async def test_a_trace_links_to_the_caller_and_to_the_request_of_the_application(
    tmp_path: Path, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    tracer = provider.get_tracer("application")

    def instrumented(app: Any) -> Any:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            with tracer.start_as_current_span("request"):
                await app(scope, receive, send)

        return around

    async with running(tmp_path, []) as (receiver, client):
        receiver.middleware_stack = instrumented(receiver.middleware_stack or receiver.build_middleware_stack())
        await post(client, EVENT, traceparent=f"00-{TRACE}-{SPAN}-00")
        spans = await spans_of(exporter, 3)
    [callback], [request] = named(spans, "POST /callbacks/bandwidth/v2"), named(spans, "request")
    assert callback.parent is None
    assert {(link.context.trace_id, link.context.span_id) for link in callback.links} == {
        (int(TRACE, 16), int(SPAN, 16)),
        (request.get_span_context().trace_id, request.get_span_context().span_id),
    }


async def test_the_trace_of_a_trusted_caller_is_continued_to_the_sinks(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    file = tmp_path / "events.jsonl"
    sinks = [{"name": "file", "type": "jsonl", "path": str(file)}]
    async with running(tmp_path, sinks, parent="continue", ratio=0) as (_, client):
        await post(client, EVENT, traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="vendor=1")
        spans = await spans_of(exporter, 3)
        await post(client, v2_event("m2"), traceparent=f"00-{TRACE}-{SPAN}-00")
        await eventually(lambda: file.read_text("utf-8").count("\n") == 2)
    [callback], [process], [publish] = (
        named(spans, name) for name in ("POST /callbacks/bandwidth/v2", "process callbacks", "publish file")
    )
    assert {format_trace_id(span.get_span_context().trace_id) for span in spans} == {TRACE}
    assert format_span_id(callback.parent.span_id) == SPAN
    assert process.parent.span_id == callback.get_span_context().span_id
    assert publish.parent.span_id == process.get_span_context().span_id
    first, second = (json.loads(line) for line in file.read_text("utf-8").splitlines())
    assert (first["traceparent"], first["tracestate"]) == (traceparent(publish), "vendor=1")
    assert second["traceparent"].startswith(f"00-{TRACE}-")
    assert second["traceparent"].endswith("-00")
    assert len(exporter.get_finished_spans()) == 3


async def test_a_span_processor_that_raises_disturbs_nothing(tmp_path: Path, provider: TracerProvider) -> None:
    class Raising(SpanProcessor):
        is_armed = True
        raised = 0

        def on_end(self, span: ReadableSpan) -> None:
            if self.is_armed:
                self.raised += 1
                raise RuntimeError("canary")

    raising = Raising()
    provider.add_span_processor(raising)
    file = tmp_path / "events.jsonl"
    try:
        async with running(tmp_path, [{"name": "file", "type": "jsonl", "path": str(file)}]) as (_, client):
            await post(client, EVENT)
            await eventually(lambda: raising.raised >= 3)
            assert file.read_text("utf-8").count("\n") == 1
    finally:
        raising.is_armed = False


async def test_callers_that_cannot_be_read_stop_neither_processing_nor_publishing(
    tmp_path: Path, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any) -> Any:
        raise RuntimeError("canary")

    monkeypatch.setattr(callbacks, "headers_of", fails)
    file = tmp_path / "events.jsonl"
    sinks = [{"name": "file", "type": "jsonl", "path": str(file)}]
    async with running(tmp_path, sinks, parent="continue") as (_, client):
        await post(client, EVENT, traceparent=f"00-{TRACE}-{SPAN}-01")
        spans = await spans_of(exporter, 3)
        assert file.read_text("utf-8").count("\n") == 1
    [callback], [process] = named(spans, "POST /callbacks/bandwidth/v2"), named(spans, "process callbacks")
    assert format_trace_id(callback.get_span_context().trace_id) == TRACE
    assert format_trace_id(process.get_span_context().trace_id) != TRACE


def test_the_queue_is_bounded_and_a_stop_does_not_wait_for_a_collector() -> None:
    with collector() as collecting:
        collecting.status = 0
        tracer = with_otlp(collecting.url, {}, None)
        for number in range(1, 6001):
            tracer.make(
                "callback", kind="server", span=(number, number), parent=None, times=(number, number), attributes={}
            )
        # One batch at most is under way.
        assert 6000 - 4096 - 512 <= tracer.dropped <= 6000 - 4096
        started = time.monotonic()
        tracer.stop()
        assert time.monotonic() - started < 10
        assert tracer.dropped >= 6000 - 512


async def test_a_callback_that_cannot_be_committed_has_an_error(
    tmp_path: Path, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, []) as (receiver, client):

        async def fails(_: Any) -> int:
            raise StorageUnavailable("the disk is full")

        monkeypatch.setattr(receiver.state.receiver.journal._writer, "append", fails)
        answer = await client.post("/callbacks/bandwidth/v2", json=[EVENT], auth=("user", "canary-password"))
        assert answer.status_code == 503
        [callback] = await spans_of(exporter, 1)
    assert callback.attributes["http.response.status_code"] == 503
    assert (callback.status.status_code, callback.status.description) == (StatusCode.ERROR, "StorageUnavailable")
