"""The metrics for Prometheus: few of them, and no label whose values a stranger can choose."""

from collections import Counter as Count
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector

from receiver.domain.events import Quarantine, Status, TagVerdict
from receiver.domain.publication import DeadLetterReason, Outcome
from receiver.domain.reconciliation import Answer
from receiver.explanation.installation import DatabaseSize
from receiver.providers.registry import catalogue

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ARRIVAL_SECONDS: Final = (*_SECONDS, 30, 60, 300, 1800, 3600, 21_600, 86_400)
_BREAKER_STATES: Final = {"closed": 0, "half-open": 1, "open": 2}
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_RESULTS: Final = ("accepted", "duplicate", "quarantined")
_RETRY_STATES: Final = ("due", "held", "parked")
_PRUNE_RESULTS: Final = ("done", "failed")
_NOTIFICATION_OUTCOMES: Final = ("sent", "retry", "failed", "withdrawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """The measurements of one batch of the processor: callbacks by result, new events by status and by verdict.

    `duplicates` are events that the log had already, `reasons` counts rejected elements by reason, `failures` new
    events with the status failed by API and delivery code (`other` if no document lists the code, `none` without one),
    `deliveries` those whose status changed by their new status, `categories` those with a code by status and category.
    `lag_seconds` has for each callback the time from receipt until its status was visible, but nothing for imported
    callbacks, which are as old as they are.
    """

    results: Count[str]
    events: Count[str]
    verdicts: Count[str]
    failures: Count[tuple[str, str]] = field(default_factory=Count)
    deliveries: Count[str] = field(default_factory=Count)
    categories: Count[tuple[str, str]] = field(default_factory=Count)
    duplicates: int
    reasons: Count[str]
    seconds: float
    lag_seconds: Sequence[float]


class _ProcessMetrics:
    """What each process measures about itself; `prefix` tells the processes apart on a page that has both."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        Info(f"{prefix}_build", "The version of this program", registry=registry).info(
            {"version": version("bandwidth-receiver")}
        )
        self._delay = Histogram(
            f"{prefix}_loop_lag_seconds",
            "How late a timer of the event loop was, measured twice a second",
            registry=registry,
            buckets=_SECONDS,
        )
        self._dropped = Counter(
            f"{prefix}_log_lines_dropped", "Lines of the log that nobody read in time", registry=registry
        )
        self._dropped_before = 0

    def loop_delayed(self, seconds: float) -> None:
        self._delay.observe(seconds)

    def log_lines_dropped(self, lines: int) -> None:
        """Sets the lines that this process has dropped since its start."""
        self._dropped.inc(lines - self._dropped_before)
        self._dropped_before = lines


class _DroppedSpans:
    """Counts the spans of traces that a process has not exported."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self._counter = Counter(f"{prefix}_spans_dropped", "Spans of traces that were not exported", registry=registry)
        self._before = 0

    def set(self, spans: int) -> None:
        """Sets the spans that this process has dropped since its start."""
        self._counter.inc(spans - self._before)
        self._before = spans


class WebMetrics:
    """The metrics of the web process: requests to the callback routes, commits of the journal, size of the database.

    `reasons` and `closed` are the labels of refused requests and closed connections, `routes` the API and the route of
    each callback URL: their series are there, with 0, before anything happens.
    """

    def __init__(
        self, *, reasons: Iterable[str] = (), closed: Iterable[str] = (), routes: Iterable[tuple[str, str]] = ()
    ) -> None:
        registry = self.registry = CollectorRegistry()
        self.totals: Count[str] = Count()
        """The callbacks accepted, and the requests refused by reason, since the start."""
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._process = _ProcessMetrics(registry, "receiver")
        self.loop_delayed, self.log_lines_dropped = self._process.loop_delayed, self._process.log_lines_dropped
        self.spans_dropped = _DroppedSpans(registry, "receiver").set
        self._accepted = Counter("receiver_accepted", "Callbacks answered 200", registry=registry)
        self._rejected = Counter(
            "receiver_refused", "Requests that were refused before they were stored", ["reason"], registry=registry
        )
        # Looked up once: each v2 callback is refused once, before it comes with credentials.
        self._rejected_for = {reason: self._rejected.labels(reason) for reason in reasons}
        self._closed = Counter(
            "receiver_connections_closed",
            "Connections that were closed because of what their client did, or did not do",
            ["reason"],
            registry=registry,
        )
        for reason in closed:
            self._closed.labels(reason)
        self._last = Gauge(
            "receiver_last_callback_timestamp_seconds",
            "When the latest callback that is processed was received, in seconds since 1970; 0: never",
            ["api", "route"],
            registry=registry,
        )
        for api, route in routes:
            self._last.labels(api, route)
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
        event_streams = Gauge(
            "receiver_event_streams", "Clients that follow the event log in this process", registry=registry
        )
        self.event_streams = event_streams.set
        self._bytes = Gauge(
            "receiver_database_bytes",
            "Size of a part of the database: database and journal",
            ["part"],
            registry=registry,
        )
        # Not a part of the size above: it comes and goes. It is on the page once it is known.
        self._wal = Gauge("receiver_wal_bytes", "Size of SQLite's write-ahead logs", registry=None)
        self._has_wal = False
        self._free = Gauge(
            "receiver_disk_free_bytes",
            "Free space on the disk of the database, where that is known",
            ["disk"],
            registry=registry,
        )

    def rejected(self, reason: str) -> None:
        self.totals[reason] += 1
        (self._rejected_for.get(reason) or self._rejected.labels(reason)).inc()

    def connection_closed(self, reason: str) -> None:
        self._closed.labels(reason).inc()

    def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None:
        self.totals["accepted"] += callbacks
        self._accepted.inc(callbacks)
        self._group.observe(callbacks)
        self._commit.observe(commit_seconds)
        for seconds in waited_seconds:
            self._ack.observe(seconds)

    def backlog_measured(self, callbacks: int, oldest_seconds: float) -> None:
        self._pending.set(callbacks)
        self._oldest.set(oldest_seconds)

    def last_callback(self, api: str, route: str, timestamp: float) -> None:
        self._last.labels(api, route).set(timestamp)

    def database_measured(self, size: DatabaseSize) -> None:
        parts = {"database": size.bytes, "journal": size.journal_bytes}
        for part, number in parts.items():
            if number is not None:
                self._bytes.labels(part).set(number)
        if size.wal_bytes is not None:
            self._wal.set(size.wal_bytes)
            if not self._has_wal:
                self.registry.register(self._wal)
                self._has_wal = True
        if size.disk_free_bytes is not None:
            self._free.labels("database").set(size.disk_free_bytes)

    def worker_seen(self, is_up: bool) -> None:
        self._worker.set(is_up)


class WorkerMetrics:
    """The metrics of a worker: its processor, its dispatchers and its pruner.

    With `own_process` those of the process too; otherwise the web process measures it. `sinks` are the names of the
    configured sinks.
    """

    def __init__(self, *, own_process: bool = False, sinks: Iterable[str] = ()) -> None:
        registry = self.registry = CollectorRegistry()
        self.totals: Count[str] = Count()
        """The callbacks processed by result since the start."""
        self._process: _ProcessMetrics | None = None
        if own_process:
            ProcessCollector(namespace="receiver_worker", registry=registry)
            self._process = _ProcessMetrics(registry, "receiver_worker")
        self.spans_dropped = _DroppedSpans(registry, "receiver_worker").set
        callbacks = Counter("receiver_callbacks", "Callbacks processed", ["result"], registry=registry)
        self._results = {result: callbacks.labels(result) for result in _RESULTS}
        self._duplicates = Counter("receiver_duplicates", "Events that were stored already", registry=registry)
        self._quarantined = Counter(
            "receiver_quarantined", "Quarantined elements of callbacks", ["reason"], registry=registry
        )
        for reason in Quarantine:
            self._quarantined.labels(reason)
        self._events = Counter("receiver_events", "New events", ["type"], registry=registry)
        for status in Status:
            if status is not Status.UNKNOWN:
                self._events.labels(f"message.{status}")
        self._verdicts = Counter("receiver_tag_verdicts", "New events by tag verdict", ["verdict"], registry=registry)
        for verdict in TagVerdict:
            self._verdicts.labels(verdict)
        self._deliveries = Counter(
            "receiver_deliveries",
            "Deliveries (a message to one recipient) that reached a status",
            ["status"],
            registry=registry,
        )
        for status in Status:
            self._deliveries.labels(status)
        self._categories = Counter(
            "receiver_delivery_categories",
            "Deliveries with a delivery code that reached a status, by the category of the code; other: not listed",
            ["status", "category"],
            registry=registry,
        )
        for entry in catalogue():
            self._categories.labels(entry.outcome, entry.category)
        self._categories.labels(Status.FAILED, "other")
        self._failures = Counter(
            "receiver_failures",
            "New events with the status failed, by delivery code: those that documents list, other, and none",
            ["api", "code"],
            registry=registry,
        )
        for entry in catalogue():
            for code in (str(entry.code), "other", "none"):
                if entry.outcome == "failed" or code in ("other", "none"):
                    self._failures.labels(entry.api, code)
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
        self._unexpected_duplicates = Counter(
            "receiver_unexpected_duplicates",
            "Events that a sink's destination acknowledged as duplicates on their first attempt",
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
        self._held = Gauge(
            "receiver_sink_held", "1 while this process publishes to the sink, else 0", ["sink"], registry=registry
        )
        self._lookups = Counter(
            "receiver_reconciliation_requests",
            "Requests for messages without a final event, by what was answered",
            ["api", "answer"],
            registry=registry,
        )
        self._reconciliation_failing = Gauge(
            "receiver_reconciliation_failing",
            "1 while requests for messages without a final event fail, else 0",
            ["api"],
            registry=registry,
        )
        self._notifications = Counter(
            "receiver_notifications", "Notifications of people about alerts", ["outcome"], registry=registry
        )
        for outcome in _NOTIFICATION_OUTCOMES:
            self._notifications.labels(outcome)
        self._prunes = Counter("receiver_prune_runs", "Runs of the pruner", ["result"], registry=registry)
        for result in _PRUNE_RESULTS:
            self._prunes.labels(result)
        self._pruned = Counter("receiver_pruned_rows", "Rows that the pruner removed", ["kind"], registry=registry)
        self._alerts = Gauge("receiver_alerts", "Alerts that fire now", ["rule", "severity"], registry=registry)
        self._evaluation = Histogram(
            "receiver_alert_evaluation_seconds",
            "Duration of evaluating all alerts",
            registry=registry,
            buckets=_SECONDS,
        )
        self._evaluated = Gauge(
            "receiver_alert_evaluation_timestamp_seconds",
            "When this process last evaluated the alerts, in seconds since 1970; 0: never",
            registry=registry,
        )
        self._evaluation_failures = Counter(
            "receiver_alert_evaluation_failures",
            "Evaluations that failed, and evaluations in which a rule could not be evaluated",
            registry=registry,
        )
        self.name_sinks(sinks)

    def name_sinks(self, sinks: Iterable[str]) -> None:
        """Makes the series of these sinks, with 0."""
        for sink in sinks:
            self._held.labels(sink)
            for outcome in Outcome:
                self._attempts.labels(sink, outcome)
            for metric in (self._publish, self._arrival, self._superseded, self._unexpected_duplicates, self._leases):
                metric.labels(sink)

    def loop_delayed(self, seconds: float) -> None:
        if self._process is not None:
            self._process.loop_delayed(seconds)

    def log_lines_dropped(self, lines: int) -> None:
        if self._process is not None:
            self._process.log_lines_dropped(lines)

    def processed(self, batch: Processed) -> None:
        for result, callbacks in batch.results.items():
            self._results[result].inc(callbacks)
        self.totals.update(batch.results)
        for status, events in batch.events.items():
            self._events.labels(f"message.{status}").inc(events)
        for verdict, events in batch.verdicts.items():
            self._verdicts.labels(verdict).inc(events)
        for reason, elements in batch.reasons.items():
            self._quarantined.labels(reason).inc(elements)
        for status, deliveries in batch.deliveries.items():
            self._deliveries.labels(status).inc(deliveries)
        for (status, category), deliveries in batch.categories.items():
            self._categories.labels(status, category).inc(deliveries)
        for (api, code), events in batch.failures.items():
            self._failures.labels(api, code).inc(events)
        self._duplicates.inc(batch.duplicates)
        self._processing.observe(batch.seconds)
        for seconds in batch.lag_seconds:
            self._lag.observe(seconds)

    def stuck(self, is_stuck: bool) -> None:
        self._stuck.set(is_stuck)

    def notified(self, outcome: str) -> None:
        self._notifications.labels(outcome).inc()

    def pruned(self, rows: Mapping[str, int] | None) -> None:
        self._prunes.labels("failed" if rows is None else "done").inc()
        for kind, number in (rows or {}).items():
            self._pruned.labels(kind).inc(number)

    def name_reconciled(self, apis: Iterable[str]) -> None:
        """Makes the series of the APIs that are queried, with 0."""
        for api in apis:
            self._reconciliation_failing.labels(api)
            for answer in Answer:
                self._lookups.labels(api, answer)

    def message_looked_up(self, api: str, answer: str) -> None:
        self._lookups.labels(api, answer).inc()

    def reconciliation_paused(self, api: str, is_paused: bool) -> None:
        self._reconciliation_failing.labels(api).set(is_paused)

    def alerts_evaluated(self, firing: Mapping[tuple[str, str], int], seconds: float, timestamp: float) -> None:
        """The firing alerts by the kind of rule and severity, after an evaluation."""
        self.alerts_left()
        for (rule, severity), number in firing.items():
            self._alerts.labels(rule, severity).set(number)
        self._evaluation.observe(seconds)
        self._evaluated.set(timestamp)

    def alert_evaluation_failed(self) -> None:
        self._evaluation_failures.inc()

    def alerts_left(self) -> None:
        """Another process evaluates the alerts."""
        self._alerts.clear()

    def attempt_ended(self, sink: str, outcome: str) -> None:
        self._attempts.labels(sink, outcome).inc()

    def batch_ended(self, sink: str, seconds: float) -> None:
        self._publish.labels(sink).observe(seconds)

    def event_published(self, sink: str, seconds: float) -> None:
        self._arrival.labels(sink).observe(seconds)

    def events_superseded(self, sink: str, events: int) -> None:
        self._superseded.labels(sink).inc(events)

    def unexpected_duplicate(self, sink: str) -> None:
        self._unexpected_duplicates.labels(sink).inc()

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
        self._set_all(self._retries, sink, {**dict.fromkeys(_RETRY_STATES, 0), **retries})
        self._set_all(self._dead, sink, {**dict.fromkeys(DeadLetterReason, 0), **dead_letters})

    def breaker_moved(self, sink: str, state: str) -> None:
        self._breaker.labels(sink).set(_BREAKER_STATES[state])
        self._held.labels(sink).set(1)

    def lease_lost(self, sink: str) -> None:
        self._leases.labels(sink).inc()

    def sink_left(self, sink: str) -> None:
        for gauge in (self._sink_lag, self._oldest, self._breaker, self._retries, self._dead):
            gauge.remove_by_labels({"sink": sink})
        self._held.labels(sink).set(0)

    @staticmethod
    def _set_all(gauge: Gauge, sink: str, values: Mapping[str, int]) -> None:
        gauge.remove_by_labels({"sink": sink})
        for label, value in values.items():
            gauge.labels(sink, label).set(value)
