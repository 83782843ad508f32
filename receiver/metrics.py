"""What is measured, for Prometheus: few metrics, and no label whose values a stranger can choose."""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_RESULTS: Final = ("accepted", "duplicate", "quarantined")

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """One process's metrics, in a registry of its own. It observes the callback routes and the intake."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        callbacks = Counter("receiver_callbacks", "Callbacks answered 200", ["result"], registry=registry)
        self._results = {result: callbacks.labels(result) for result in _RESULTS}
        self._refused = Counter("receiver_refused", "Requests not taken in", ["reason"], registry=registry)
        self._ack = Histogram(
            "receiver_ack_seconds", "From a callback's headers to its 200", registry=registry, buckets=_SECONDS
        )
        self._batch = Histogram(
            "receiver_commit_batch_size", "Callbacks in one commit", registry=registry, buckets=_SIZES
        )
        self._commit = Histogram(
            "receiver_commit_seconds", "One intake transaction", registry=registry, buckets=_SECONDS
        )
        self._duplicates = Counter("receiver_duplicates", "Events that were already known", registry=registry)
        self._quarantined = Counter("receiver_quarantined", "Elements not read", ["reason"], registry=registry)
        self._events = Counter("receiver_events", "New events", ["type"], registry=registry)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, seconds: float) -> None:
        self._ack.observe(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def committed(self, callbacks: int, seconds: float) -> None:
        self._batch.observe(callbacks)
        self._commit.observe(seconds)

    def taken(self, statuses: Sequence[str], duplicates: int, reasons: Sequence[str]) -> None:
        """One callback's new events by their status, the number of its known ones, and why elements were not read."""
        result = "quarantined" if reasons else "accepted" if statuses or not duplicates else "duplicate"
        self._results[result].inc()
        for status in statuses:
            self._events.labels(f"message.{status}").inc()
        for reason in reasons:
            self._quarantined.labels(reason).inc()
        if duplicates:
            self._duplicates.inc(duplicates)
