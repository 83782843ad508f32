"""The spans of traces, made and exported with OpenTelemetry; importing this module imports OpenTelemetry.

A span is made when it has ended, with the ids that it is given. A thread exports the spans:
its queue is bounded, and what finds it full or cannot be exported is dropped and counted.
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, Literal
from uuid import uuid4

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from receiver.logs import Sampled

SCOPE: Final = "receiver"
"""The instrumentation scope of the spans."""

# Some seconds of callbacks under load.
_MAX_WAITING: Final = 4096
_BATCH_SPANS: Final = 512
_EXPORT_EVERY_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0
_MAX_ERROR_LENGTH: Final = 200

log = structlog.get_logger("receiver.tracing")

SpanId = tuple[int, int]
"""The ids of a trace and of a span in it."""

_KINDS: Final = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER, "producer": SpanKind.PRODUCER}


class Tracer:
    """Makes spans with given ids, and passes them to a tracer provider. `make` does not raise."""

    def __init__(self, provider: TracerProvider, exporting: "_Exporting | None" = None) -> None:
        self._exporting = exporting
        self._lost = Sampled(log, "spans were lost")
        tracer: Any = provider.get_tracer(SCOPE, version("bandwidth-receiver"))
        # Whether a trace is sampled is decided before a span of it is made.
        tracer.id_generator, tracer.sampler = _IDS, ALWAYS_ON
        self._tracer = tracer

    @property
    def dropped(self) -> int:
        """The number of spans that were not exported, as far as that is known here."""
        return self._exporting.dropped if self._exporting is not None else 0

    def stop(self) -> None:
        """Exports the spans that wait, for two seconds at most."""
        if self._exporting is not None:
            self._exporting.shutdown()

    def make(
        self,
        name: str,
        *,
        kind: Literal["server", "consumer", "producer"],
        span: SpanId,
        parent: int | None,
        state: str | None = None,
        times: tuple[int, int],
        attributes: Mapping[str, Any],
        links: Sequence[SpanId] = (),
        error: str | None = None,
    ) -> None:
        """Makes a span that has ended. `parent` is a span of the same trace; `times` are nanoseconds since 1970."""
        begin, end = times
        try:
            _IDS.trace_id, _IDS.span_id = span
            made = self._tracer.start_span(
                name,
                context=_context((span[0], parent), state) if parent is not None else Context(),
                kind=_KINDS[kind],
                attributes={key: value for key, value in attributes.items() if value is not None},
                links=[Link(SpanContext(*link, is_remote=True)) for link in links],
                start_time=begin,
            )
            if error is not None:
                made.set_status(Status(StatusCode.ERROR, error))
            made.end(end_time=max(begin, end))
        except Exception as failure:
            # A span processor of the application may raise anything.
            self._lost.add(error=type(failure).__name__)


def _context(span: SpanId, state: str | None) -> Context:
    parsed = TraceState.from_header([state]) if state else None
    parent = SpanContext(*span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED), trace_state=parsed)
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


class _Ids(threading.local):
    """Gives the next span of a thread the ids that were set before.

    Web process and worker may be two threads of a process, and a provider has one tracer for both.
    """

    trace_id = span_id = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return False


_IDS: Final = _Ids()


def current_span() -> SpanId | None:
    """The span of the application around this request, if its own instrumentation has begun one."""
    context = trace.get_current_span().get_span_context()
    return (context.trace_id, context.span_id) if context.is_valid else None


def of_application() -> Tracer | None:
    """A tracer that uses the tracer provider of the application; None if the application has set none."""
    provider = trace.get_tracer_provider()
    return Tracer(provider) if isinstance(provider, TracerProvider) else None


def with_otlp(endpoint: str | None, headers: Mapping[str, str], service_name: str | None) -> Tracer:
    """A tracer that exports by OTLP over HTTP; what is None comes from the variables `OTEL_…` or their defaults.

    May raise what the exporter raises, if a variable has a wrong value.
    """
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint is not None else None
    exporter = trace_exporter.OTLPSpanExporter(endpoint=url, headers=dict(headers) or None)
    exporting = _Exporting(exporter, logging.getLogger(trace_exporter.__name__))
    provider = TracerProvider(resource=_resource(service_name), shutdown_on_exit=False)
    provider.add_span_processor(exporting)
    return Tracer(provider, exporting)


def _resource(service_name: str | None) -> Resource:
    found = Resource.create({"service.version": version("bandwidth-receiver"), "service.instance.id": str(uuid4())})
    if service_name is None and str(found.attributes.get("service.name", "")).startswith("unknown_service"):
        service_name = "receiver"
    return found.merge(Resource({"service.name": service_name})) if service_name is not None else found


class _Exporting(SpanProcessor):
    """Queues spans for a thread that exports them. The SDK's own processor does not count what it drops."""

    def __init__(self, exporter: SpanExporter, logger: logging.Logger) -> None:
        self.dropped = 0
        self._exporter = exporter
        # Two threads count what is dropped.
        self._counting = threading.Lock()
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._is_stopping = self._is_abandoned = False
        self._failures = Sampled(log, "spans could not be exported")
        self._full = Sampled(log, "spans were dropped, because too many wait to be exported")
        self._thread = threading.Thread(target=self._run, name="receiver-spans", daemon=True)
        self._errors = _Errors(self._thread, logger)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        if self._is_stopping or len(self._waiting) >= _MAX_WAITING:
            self._drop(1)
            self._full.add()
            return
        self._waiting.append(span)
        if len(self._waiting) >= _BATCH_SPANS:
            self._wake.set()

    def shutdown(self) -> None:
        self._is_stopping = True
        self._wake.set()
        self._thread.join(_FLUSH_SECONDS)
        self._is_abandoned = True
        # Ends the pause before a repetition. A request that hangs is left to its thread, which ends with the process.
        self._exporter.shutdown()
        self._drop(len(self._waiting))

    def _drop(self, spans: int) -> None:
        with self._counting:
            self.dropped += spans

    def _run(self) -> None:
        try:
            while not self._is_abandoned and (self._waiting or not self._is_stopping):
                self._wake.wait(_EXPORT_EVERY_SECONDS)
                self._wake.clear()
                while self._waiting and not self._is_abandoned:
                    self._export([self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH_SPANS))])
        finally:
            self._errors.stop()

    def _export(self, batch: Sequence[ReadableSpan]) -> None:
        self._errors.first = None
        try:
            is_exported = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:
            is_exported, self._errors.first = False, type(error).__name__
        if not is_exported:
            self._drop(len(batch))
            self._failures.add(spans=len(batch), error=self._errors.first)


class _Errors(logging.Filter):
    """Takes the lines that the exporter logs in one thread out of the log: there is one for each try of each batch."""

    def __init__(self, thread: threading.Thread, logger: logging.Logger) -> None:
        super().__init__()
        self.first: str | None = None
        self._thread, self._logger = thread, logger
        logger.addFilter(self)

    def stop(self) -> None:
        self._logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.current_thread() is not self._thread:
            return True
        if self.first is None:
            # The text of an exception names the whole URL, which may contain a secret.
            arguments = record.args if isinstance(record.args, tuple) else ()
            shown = (type(one).__name__ if isinstance(one, Exception) else one for one in arguments)
            self.first = (str(record.msg) % tuple(shown))[:_MAX_ERROR_LENGTH]
        return False
