"""The metrics for Prometheus: few of them, and no label whose values a stranger can choose."""

from collections import Counter as Count
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ARRIVAL_SECONDS: Final = (*_SECONDS, 30, 60, 300, 1800, 3600, 21_600, 86_400)
_BREAKER_STATES: Final = {"closed": 0, "half-open": 1, "open": 2}
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_RESULTS: Final = ("accepted", "duplicate", "quarantined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """The measurements of one batch of the processor: callbacks by result, new events by status and by verdict.

    `duplicates` are events that the log had already, `reasons` counts rejected elements by reason. `lag_seconds` has
    for each callback the time from receipt until its status was visible.
    """

    results: Count[str]
    events: Count[str]
    verdicts: Count[str]
    duplicates: int
    reasons: Count[str]
    seconds: float
    lag_seconds: Sequence[float]


CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class WebMetrics:
    """The metrics of the web process: requests to the callback routes, and commits of the journal."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._accepted = Counter("receiver_accepted", "Callbacks answered 200", registry=registry)
        self._rejected = Counter(
            "receiver_refused", "Requests to callback routes that were refused", ["reason"], registry=registry
        )
        self._ack = Histogram(
            "receiver_ack_seconds",
            "From the last byte of a callback to the commit before its 200",
            registry=registry,
            buckets=_SECONDS,
        )
        self._group = Histogram(
            "receiver_commit_batch_size", "Callbacks in one commit of the journal", registry=registry, buckets=_SIZES
        )
        self._commit = Histogram(
            "receiver_commit_seconds", "Duration of one commit of the journal", registry=registry, buckets=_SECONDS
        )
        self._pending = Gauge(
            "receiver_pending_callbacks", "Accepted callbacks that are not processed yet", registry=registry
        )
        self._oldest = Gauge(
            "receiver_pending_oldest_seconds", "Age of the oldest callback that is not processed yet", registry=registry
        )
        self._worker = Gauge(
            "receiver_worker_up", "1 while the worker of this web process reports, else 0", registry=registry
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None:
        self._accepted.inc(callbacks)
        self._group.observe(callbacks)
        self._commit.observe(commit_seconds)
        for seconds in waited_seconds:
            self._ack.observe(seconds)

    def backlog_measured(self, callbacks: int, oldest_seconds: float) -> None:
        self._pending.set(callbacks)
        self._oldest.set(oldest_seconds)

    def worker_seen(self, is_up: bool) -> None:
        self._worker.set(is_up)


class WorkerMetrics:
    """The metrics of a worker: its processor and its dispatchers."""

    def __init__(self, *, own_process: bool = False) -> None:
        registry = self.registry = CollectorRegistry()
        if own_process:
            ProcessCollector(namespace="receiver_worker", registry=registry)
        callbacks = Counter("receiver_callbacks", "Callbacks processed", ["result"], registry=registry)
        self._results = {result: callbacks.labels(result) for result in _RESULTS}
        self._duplicates = Counter("receiver_duplicates", "Events that were stored already", registry=registry)
        self._quarantined = Counter(
            "receiver_quarantined", "Quarantined elements of callbacks", ["reason"], registry=registry
        )
        self._events = Counter("receiver_events", "New events", ["type"], registry=registry)
        self._verdicts = Counter("receiver_tag_verdicts", "New events by tag verdict", ["verdict"], registry=registry)
        self._processing = Histogram(
            "receiver_processor_batch_seconds",
            "Duration of one batch of the processor",
            registry=registry,
            buckets=_SECONDS,
        )
        self._lag = Histogram(
            "receiver_processor_lag_seconds",
            "From the receipt of a callback to the commit of its status",
            registry=registry,
            buckets=_ARRIVAL_SECONDS,
        )
        self._stuck = Gauge(
            "receiver_processor_stuck", "1 while the processor fails and retries, else 0", registry=registry
        )
        self._attempts = Counter(
            "receiver_publish_attempts",
            "Attempts to publish an event to a sink",
            ["sink", "outcome"],
            registry=registry,
        )
        self._publish = Histogram(
            "receiver_publish_seconds",
            "Duration of publishing one batch to a sink",
            ["sink"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._arrival = Histogram(
            "receiver_callback_to_sink_seconds",
            "From the receipt of a callback to the publication of its event to a sink",
            ["sink"],
            registry=registry,
            buckets=_ARRIVAL_SECONDS,
        )
        self._sink_lag = Gauge("receiver_sink_lag_events", "Events after a sink's cursor", ["sink"], registry=registry)
        self._oldest = Gauge(
            "receiver_sink_oldest_seconds", "Age of the oldest event that waits for a sink", ["sink"], registry=registry
        )
        self._retries = Gauge(
            "receiver_retries",
            "Events that wait for a retry, or behind one (parked)",
            ["sink", "state"],
            registry=registry,
        )
        self._dead = Gauge("receiver_dead_letters", "Dead letters", ["sink", "reason"], registry=registry)
        self._superseded = Counter(
            "receiver_superseded",
            "Events that were not published because a newer event of their delivery superseded them",
            ["sink"],
            registry=registry,
        )
        self._leases = Counter(
            "receiver_lease_lost", "Leases of a sink that this process lost", ["sink"], registry=registry
        )
        self._breaker = Gauge(
            "receiver_breaker_state",
            "Circuit breaker of a sink: 0 closed, 1 half-open, 2 open",
            ["sink"],
            registry=registry,
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def processed(self, batch: Processed) -> None:
        for result, callbacks in batch.results.items():
            self._results[result].inc(callbacks)
        for status, events in batch.events.items():
            self._events.labels(f"message.{status}").inc(events)
        for verdict, events in batch.verdicts.items():
            self._verdicts.labels(verdict).inc(events)
        for reason, elements in batch.reasons.items():
            self._quarantined.labels(reason).inc(elements)
        self._duplicates.inc(batch.duplicates)
        self._processing.observe(batch.seconds)
        for seconds in batch.lag_seconds:
            self._lag.observe(seconds)

    def stuck(self, is_stuck: bool) -> None:
        self._stuck.set(is_stuck)

    def attempt_ended(self, sink: str, outcome: str, seconds: float) -> None:
        self._attempts.labels(sink, outcome).inc()
        self._publish.labels(sink).observe(seconds)

    def event_published(self, sink: str, seconds: float) -> None:
        self._arrival.labels(sink).observe(seconds)

    def events_superseded(self, sink: str, events: int) -> None:
        self._superseded.labels(sink).inc(events)

    def backlog_measured(
        self,
        sink: str,
        events: int,
        oldest_seconds: float,
        retries: Mapping[str, int],
        dead_letters: Mapping[str, int],
    ) -> None:
        self._sink_lag.labels(sink).set(events)
        self._oldest.labels(sink).set(oldest_seconds)
        self._set_all(self._retries, sink, retries)
        self._set_all(self._dead, sink, dead_letters)

    def breaker_moved(self, sink: str, state: str) -> None:
        self._breaker.labels(sink).set(_BREAKER_STATES[state])

    def lease_lost(self, sink: str) -> None:
        self._leases.labels(sink).inc()

    def sink_left(self, sink: str) -> None:
        for gauge in (self._sink_lag, self._oldest, self._breaker, self._retries, self._dead):
            gauge.remove_by_labels({"sink": sink})

    @staticmethod
    def _set_all(gauge: Gauge, sink: str, values: Mapping[str, int]) -> None:
        gauge.remove_by_labels({"sink": sink})
        for label, value in values.items():
            gauge.labels(sink, label).set(value)
