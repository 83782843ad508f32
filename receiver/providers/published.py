"""The CloudEvent of an entry of the event log, as sinks and the API publish it."""

from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final

from receiver.domain.cloudevents import ALERT_SCHEMA_PATH, alert_cloud_event, cloud_event, schema_uri
from receiver.domain.events import Api
from receiver.domain.publication import AlertEntry, Entry, LogEntry
from receiver.providers import registry

_PREFIX: Final = "/bandwidth"


def published(entry: Entry, source: str | None = None, public_url: str | None = None) -> dict[str, Any]:
    """The CloudEvent of an entry. `source` and `public_url` are the settings of these names."""
    if type(entry) is AlertEntry:
        return alert_cloud_event(entry, alert_source(source), schema_uri(public_url, ALERT_SCHEMA_PATH))
    assert type(entry) is LogEntry  # noqa: S101
    meaning = _meaning(entry.event.api, entry.delivery.code)
    return cloud_event(entry, registry.source(entry.event.api, source), meaning, schema_uri(public_url))


def alert_source(prefix: str | None) -> str:
    """The `source` of alert events: alerts belong to no provider."""
    return f"{(prefix if prefix is not None else _PREFIX).rstrip('/')}/alerts"


@lru_cache(maxsize=1024)
def _meaning(api: Api, code: int | None) -> dict[str, Any] | None:
    meaning = registry.meaning(api, code)
    return asdict(meaning) if meaning else None
