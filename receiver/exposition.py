"""The page `/metrics`: the metrics of several processes as one page, in the text format or as OpenMetrics.

A worker reports its metrics as plain values, so that the web process renders one page of both: OpenMetrics allows
neither two pages behind each other nor a page without its end.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# No escaping changes our names and labels. This one does not look at each of their characters, and takes
# a third of the time, during which nothing else is answered.
_ESCAPING: Final = ALLOWUTF8
_UNITS: Final = ("seconds", "bytes")

Families = list[dict[str, Any]]
"""Metrics in the types of JSON."""


def families(registry: Collector) -> Families:
    """The metrics of a registry, with their samples of this moment."""
    return [
        {
            "name": metric.name,
            "help": metric.documentation,
            "type": metric.type,
            "samples": [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        }
        for metric in registry.collect()
    ]


def page(*processes: Families, accept: str = "") -> tuple[bytes, str]:
    """The page of these processes and its content type, for a client with this Accept header."""
    collected = chain.from_iterable(map(_metrics, processes))
    if prefers_openmetrics(accept):
        content: bytes = generate_openmetrics(_Collected(collected), _ESCAPING)  # type: ignore[no-untyped-call]
        return content, OPENMETRICS
    # In the text format the times of creation would be series of their own, twice as many as there are counters.
    plain = (_without_created(metric) for metric in collected)
    return generate_latest(_Collected(plain), _ESCAPING), CONTENT_TYPE_PLAIN_0_0_4


def prefers_openmetrics(accept: str) -> bool:
    """Whether a client names OpenMetrics 1.0 in its Accept header, and does not prefer the text format."""
    openmetrics = plain = 0.0
    for part in accept.lower().split(","):
        name, *pieces = (piece.strip() for piece in part.split(";"))
        parameters = dict(piece.partition("=")[::2] for piece in pieces)
        if name == "application/openmetrics-text" and parameters.get("version", "1.0.0") in _VERSIONS:
            openmetrics = max(openmetrics, _quality(parameters))
        elif name == "text/plain":
            plain = max(plain, _quality(parameters))
    return openmetrics > 0 and openmetrics >= plain


# What clients of OpenMetrics 1.0 call it.
_VERSIONS: Final = ("0.0.1", "1.0.0", '"1.0.0"')


def _quality(parameters: dict[str, str]) -> float:
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 0.0


class _Collected:
    """Metrics in the place of a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metrics(process: Families) -> Iterator[Metric]:
    for family in process:
        metric = Metric(family["name"], family["help"], family["type"])
        metric.unit = next((unit for unit in _UNITS if metric.name.endswith(f"_{unit}")), "")
        metric.samples = [Sample(name, labels, value) for name, labels, value in family["samples"]]
        yield metric


def _without_created(metric: Metric) -> Metric:
    metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    return metric
