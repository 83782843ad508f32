"""What has a span in one process: callbacks that are accepted, processed and published, and with which attributes."""

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from receiver.domain.events import REGISTERED, Callback, Event, Quarantine
from receiver.domain.publication import Outcome, PendingPublication, Publication, Published, Result
from receiver.errors import JournalFull, SettingsError
from receiver.logs import Sampled
from receiver.providers.registry import URLS
from receiver.tracing.ids import Caller, Trace, trace_of
from receiver.tracing.settings import TracingSettings

if TYPE_CHECKING:
    from receiver.tracing import spans

log = structlog.get_logger("receiver.tracing")

_SETTING: Final = "RECEIVER_TRACING__EXPORTER"
# An event loop gets a turn for other work after as many spans.
_YIELD_EVERY: Final = 100
# The spans of callbacks are made after this time, so many in a turn of the event loop, before more than so many wait.
_ANSWERS_FIRST_SECONDS: Final = 0.002
_SPANS_AT_ONCE: Final = 4
_MAX_ENDED: Final = 4096
# More than a batch of the processor names.
_MAX_CALLERS: Final = 16_384
_MAX_LISTED: Final = 10
_PATHS: Final = {(provider.api, url.route): url.path for provider, url in URLS}


class Appends(Protocol):
    def append(self, callback: Callback) -> asyncio.Future[None]: ...


class Processed(Protocol):
    """A callback that the processor has processed."""

    @property
    def callback(self) -> Callback: ...
    @property
    def new(self) -> Sequence[Event]: ...
    @property
    def known(self) -> Sequence[str]: ...
    @property
    def reasons(self) -> Counter[Quarantine]: ...
    @property
    def is_quarantined(self) -> bool: ...
    @property
    def is_repeat(self) -> bool: ...


Headers = Callable[[Sequence[str]], Awaitable[Mapping[str, Mapping[str, str]]]]
"""Reads the headers of callbacks by their ids."""


def configured_tracing(settings: TracingSettings, headers: Headers | None = None) -> "Tracing | None":
    """The traces that the settings ask for; None if they ask for none."""
    return Tracing(settings, headers) if settings.exporter != "none" else None


def refuse_other_process(settings: TracingSettings, worker: str) -> None:
    """Raises SettingsError if a worker process would need the tracer provider of an application."""
    if settings.exporter == "application" and worker == "process":
        raise SettingsError(
            f"{_SETTING}: application reaches no worker process: set RECEIVER_WORKER to inline or none, "
            "or the exporter to otlp",
            topic="tracing",
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """A callback that was accepted, or not, at a time in nanoseconds since 1970; its span is not made yet."""

    callback: Callback
    around: "spans.SpanId | None"
    status: int | None
    error: str | None
    at: int


class Tracing:
    """Makes the spans of one process. No method raises, except for `start`.

    `headers` reads the headers of stored callbacks: processor and dispatchers need them to continue a caller's trace.
    """

    def __init__(self, settings: TracingSettings, headers: Headers | None = None) -> None:
        self._settings = settings
        self._continues = settings.parent == "continue"
        self._headers = headers
        self._callers: dict[str, Caller | None] = {}
        self._unread = Sampled(log, "callers' traces are not continued, their callbacks cannot be read")
        self._tracer: spans.Tracer | None = None
        self._ended: deque[_Ended] = deque()
        self._is_making = False

    def start(self) -> None:
        """Starts the export; raises SettingsError if that cannot be done."""
        from receiver.tracing import spans

        settings = self._settings
        if settings.exporter == "application":
            self._tracer = spans.of_application()
            if self._tracer is None:
                raise SettingsError(
                    f"{_SETTING}: application needs a tracer provider: create one of OpenTelemetry's SDK and call "
                    "set_tracer_provider before the application starts",
                    topic="tracing",
                )
            return
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        try:
            self._tracer = spans.with_otlp(settings.endpoint, headers, settings.service_name)
        except Exception as error:
            raise SettingsError(
                f"{_SETTING}: the exporter cannot be made, check the OTEL_EXPORTER variables: {type(error).__name__}",
                topic="tracing",
            ) from error

    async def stop(self) -> None:
        """Exports what waits, for some seconds at most."""
        while self._ended:
            self._make_some()
            await asyncio.sleep(0)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.stop)

    @property
    def dropped(self) -> int:
        """How many spans this process has not exported."""
        return self._tracer.dropped if self._tracer is not None else 0

    def journal(self, journal: Appends) -> Appends:
        """The journal for the callback routes: it makes the span of each callback that it appends, or cannot append."""
        return _TracedJournal(journal, self)

    def appended(
        self, callback: Callback, around: "spans.SpanId | None", status: int | None, error: str | None
    ) -> None:
        """Has the span of a callback made: from the last byte of its body to the commit before its answer, now.

        A span takes a third of a millisecond. It is made when those who posted the callbacks of a batch are answered.
        """
        self._ended.append(_Ended(callback, around, status, error, time.time_ns()))
        if len(self._ended) >= _MAX_ENDED:
            self._make_some()
        if not self._is_making:
            self._is_making = True
            asyncio.get_running_loop().call_later(_ANSWERS_FIRST_SECONDS, self._go_on_making)

    def _go_on_making(self) -> None:
        """Makes some of the spans that wait; between them the event loop gets a turn for other work."""
        self._make_some()
        self._is_making = bool(self._ended)
        if self._is_making:
            asyncio.get_running_loop().call_soon(self._go_on_making)

    def _make_some(self) -> None:
        for _ in range(min(_SPANS_AT_ONCE, len(self._ended))):
            self._make_appended(self._ended.popleft())

    def _make_appended(self, ended: "_Ended") -> None:
        callback, around, error = ended.callback, ended.around, ended.error
        caller = Caller.of(callback.headers)
        trace = trace_of(callback.id, self._settings.ratio, caller if self._continues else None)
        if self._tracer is None or not trace.is_sampled:
            return
        path = _PATHS[callback.api, callback.route]
        named = [(caller.trace_id, caller.span_id)] if caller is not None else []
        parent = caller.span_id if caller is not None and self._continues else None
        self._tracer.make(
            f"{callback.method} {path}",
            kind="server",
            span=(trace.id, trace.callback),
            parent=parent,
            state=trace.state,
            times=(round(callback.received_at.timestamp() * 1e9), ended.at),
            attributes={
                "http.request.method": callback.method,
                "http.route": path,
                "http.request.body.size": len(callback.body),
                "http.response.status_code": ended.status,
                "error.type": error,
                "receiver.callback.id": callback.id,
            },
            links=[*(named if parent is None else ()), *([around] if around is not None else ())],
            error=error,
        )

    async def processed(self, batch: Sequence[Processed], seconds: float) -> None:
        """Makes the spans of callbacks that were processed together within these seconds."""
        end = time.time_ns()
        times = end - round(seconds * 1e9), end
        # Callers of repeats too: their spans link to the callbacks that had their events first.
        await self._read_callers([id_ for one in batch for id_ in (one.callback.id, *one.known[:_MAX_LISTED])])
        for place, one in enumerate(batch, start=1):
            self._make_processing(one, times, len(batch))
            if place % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _make_processing(self, one: Processed, times: tuple[int, int], batch: int) -> None:
        trace = self._trace(one.callback.id)
        if self._tracer is None or not trace.is_sampled:
            return
        earlier = [self._trace(id_) for id_ in dict.fromkeys(one.known[:_MAX_LISTED]) if id_ != one.callback.id]
        self._tracer.make(
            "process callbacks",
            kind="consumer",
            span=(trace.id, trace.processing),
            # Nobody posted a registration to a callback route.
            parent=trace.callback if one.callback.route != REGISTERED else None,
            state=trace.state,
            times=times,
            attributes={
                "messaging.system": "receiver",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": "callbacks",
                "messaging.message.id": one.callback.id,
                "messaging.batch.message_count": batch,
                "receiver.callback.id": one.callback.id,
                "receiver.result": _result(one),
                "receiver.quarantine.reasons": sorted(map(str, one.reasons)) or None,
                "receiver.events": len(one.new),
                "receiver.message.ids": list(dict.fromkeys(event.message_id for event in one.new[:_MAX_LISTED]))
                or None,
            },
            links=[(other.id, other.processing) for other in earlier],
        )

    async def attempts(self, sink: str, system: str, batch: Sequence[PendingPublication]) -> "Attempts":
        """The attempts to publish these events to a sink of a type, which begin now."""
        await self._read_callers([pending.publication.callback_id for pending in batch])
        traces = [self._trace(pending.publication.callback_id) for pending in batch]
        return Attempts(
            sink,
            system,
            batch,
            traces,
            [secrets.randbits(64) or 1 if one.is_sampled else one.processing for one in traces],
        )

    def attempted(self, attempts: "Attempts", results: Sequence[Result], seconds: float) -> None:
        """Makes the spans of attempts that ended with these results after some seconds."""
        end = time.time_ns()
        times = end - round(seconds * 1e9), end
        for pending, trace, span_id, result in zip(
            attempts.batch, attempts.traces, attempts.span_ids, results, strict=True
        ):
            if self._tracer is not None and trace.is_sampled:
                reason = None if isinstance(result, Published) else result.reason
                self._tracer.make(
                    f"publish {attempts.sink}",
                    kind="producer",
                    span=(trace.id, span_id),
                    parent=trace.processing,
                    state=trace.state,
                    times=times,
                    attributes=_of_attempt(attempts, pending, result),
                    error=reason,
                )

    # --- callers ---

    def _trace(self, callback_id: str) -> Trace:
        return trace_of(callback_id, self._settings.ratio, self._callers.get(callback_id))

    async def _read_callers(self, callback_ids: Sequence[str]) -> None:
        """Reads who sent these callbacks, where their traces are continued.

        A callback whose headers cannot be read, or that retention has removed, has the trace of its own.
        """
        if not self._continues or self._headers is None:
            return
        missing = [id_ for id_ in dict.fromkeys(callback_ids) if id_ not in self._callers]
        if not missing:
            return
        try:
            found = await self._headers(missing)
        except Exception as error:
            # The processor has committed already, and an event must not wait for its trace.
            self._unread.add(error=type(error).__name__)
            return
        self._callers |= {id_: Caller.of(found[id_]) if id_ in found else None for id_ in missing}
        while len(self._callers) > _MAX_CALLERS:
            del self._callers[next(iter(self._callers))]


class _TracedJournal:
    def __init__(self, journal: Appends, tracing: Tracing) -> None:
        self._journal, self._tracing = journal, tracing

    def append(self, callback: Callback) -> asyncio.Future[None]:
        from receiver.tracing import spans

        around = spans.current_span()
        try:
            accepted = self._journal.append(callback)
        except JournalFull as error:
            self._tracing.appended(callback, around, 503, type(error).__name__)
            raise
        accepted.add_done_callback(lambda done: self._ended(callback, around, done))
        return accepted

    def _ended(self, callback: Callback, around: "spans.SpanId | None", done: asyncio.Future[None]) -> None:
        if done.cancelled():
            # The caller has hung up, nobody was answered.
            self._tracing.appended(callback, around, None, "disconnected")
            return
        error = done.exception()
        self._tracing.appended(
            callback, around, 200 if error is None else 503, type(error).__name__ if error is not None else None
        )


def _result(one: Processed) -> str:
    """The result of a callback, as the metrics name it."""
    return "quarantined" if one.is_quarantined else "duplicate" if one.is_repeat else "accepted"


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts to publish events together to a sink, with the trace and the span of each."""

    sink: str
    system: str
    batch: Sequence[PendingPublication]
    traces: Sequence[Trace]
    span_ids: Sequence[int]

    @property
    def publications(self) -> list[Publication]:
        """The events, which name their spans to those who read them."""
        return [
            replace(pending.publication, traceparent=trace.traceparent(span_id), tracestate=trace.state)
            for pending, trace, span_id in zip(self.batch, self.traces, self.span_ids, strict=True)
        ]


def _of_attempt(attempts: Attempts, pending: PendingPublication, result: Result) -> Mapping[str, Any]:
    """The attributes of an attempt: no text, number or tag, and not the address of the sink, which may be secret."""
    publication = pending.publication
    return {
        "messaging.system": attempts.system,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": attempts.sink,
        "messaging.message.id": publication.id,
        "messaging.message.body.size": len(publication.body),
        "messaging.batch.message_count": len(attempts.batch),
        "cloudevents.event_type": publication.type,
        "http.response.status_code": getattr(result, "response_code", None),
        "error.type": None if isinstance(result, Published) else result.reason,
        "receiver.message.id": str(publication.event["subject"]),
        "receiver.sink": attempts.sink,
        "receiver.outcome": str(Outcome.of(result)),
        # A replay stores no attempts that could be counted.
        "receiver.attempt": None if publication.replayed else pending.attempts + 1,
        "receiver.replayed": publication.replayed or None,
    }
