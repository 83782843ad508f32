"""The published form of an entry of the event log, CloudEvents 1.0 in JSON, and the filter of a sink."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from receiver.domain.events import Direction, Status, number_key
from receiver.domain.publication import AlertEntry, Entry, LogEntry


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


SCHEMA_PATH: Final = "/schemas/message-event/1"
ALERT_SCHEMA_PATH: Final = "/schemas/alert/1"


def schema_uri(public_url: str | None, path: str = SCHEMA_PATH) -> str:
    """The `dataschema` of published events: where the schema is, or without a public URL its name.

    A name, since CloudEvents wants an absolute URI and consumers cannot reach an address such as 127.0.0.1:8080.
    """
    return f"{public_url.rstrip('/')}{path}" if public_url else f"urn:bandwidth-receiver:{path[1:]}"


def cloud_event(entry: LogEntry, source: str, reason: Mapping[str, Any] | None, schema: str) -> dict[str, Any]:
    """The CloudEvent of an event of a message.

    `source` is its provider's, `reason` the meaning of its delivery's code, `schema` the URI from `schema_uri`.
    """
    event = entry.event
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": entry.type,
        "subject": event.message_id,
        "time": rfc3339(event.occurred_at or event.received_at),
        "datacontenttype": "application/json",
        "dataschema": schema,
        "data": _data(entry, reason),
    }


def alert_cloud_event(entry: AlertEntry, source: str, schema: str) -> dict[str, Any]:
    """The CloudEvent of a change of an alert; `source` and `schema` as for `cloud_event`."""
    event = entry.event
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": entry.type,
        "subject": event.alert_id,
        "time": rfc3339(event.occurred_at),
        "datacontenttype": "application/json",
        "dataschema": schema,
        "data": event.alert,
    }


def _data(entry: LogEntry, reason: Mapping[str, Any] | None) -> dict[str, Any]:
    event, delivery = entry.event, entry.delivery
    return {
        "messageId": event.message_id,
        "api": event.api,
        "direction": event.direction,
        "recipient": event.recipient,
        "from": message_field(entry, "sender"),
        "to": list(message_field(entry, "recipients") or ()),
        "status": delivery.status,
        "previousStatus": entry.previous_status,
        "changed": entry.changed,
        "state": delivery.state,
        "deliveryState": delivery.delivery_state,
        "deliveryCode": delivery.code,
        "deliveryDescription": delivery.description,
        "reason": dict(reason) if reason is not None else None,
        "tag": message_field(entry, "tag"),
        "tagVerdict": event.tag_verdict,
        "applicationId": message_field(entry, "application_id"),
        "segmentCount": message_field(entry, "segment_count"),
        "channel": message_field(entry, "channel"),
        "carrierName": message_field(entry, "carrier_name"),
        "text": entry.message.get("text"),
        "media": list(entry.message.get("media") or ()),
        "contradicted": delivery.contradicted,
        "route": event.route,
        "receivedTime": rfc3339(event.received_at),
        "sequence": entry.position,
    }


def message_field(entry: LogEntry, name: str) -> Any:
    """A field of the message: the event's own value, else the value stored with the message."""
    value = getattr(entry.event.fields, name)
    return entry.message.get(name) if value in (None, "", ()) else value


MESSAGE_EVENT_TYPES: Final = frozenset(f"message.{status}" for status in Status if status is not Status.UNKNOWN)
ALERT_EVENT_TYPES: Final = frozenset({"alert.fired", "alert.resolved"})
EVENT_TYPES: Final = MESSAGE_EVENT_TYPES | ALERT_EVENT_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The filter of a sink. An event passes if it meets every condition; an empty condition is met by all events.

    A registration never passes: it is the sender's own, and tells a sink nothing that happened.

    An alert event passes only if its type is named: the other conditions are about messages, and without types a
    consumer gets events of messages alone. If the rule names sinks, it passes for them alone, whatever they ask for.

    `sink` is the name of the sink (None: the consumer is none). `number_prefixes` have no plus, and match the number
    of the sender or of a recipient.
    """

    sink: str | None = None
    types: frozenset[str] = frozenset()
    changes_only: bool = False
    direction: Direction | None = None
    applications: frozenset[str] = frozenset()
    number_prefixes: tuple[str, ...] = ()
    tag_prefixes: tuple[str, ...] = ()

    def passes(self, entry: Entry) -> bool:
        if type(entry) is AlertEntry:
            return self._passes_alert(entry)
        assert type(entry) is LogEntry  # noqa: S101
        return (
            not entry.event.is_registration
            and (not self.types or entry.type in self.types)
            and (entry.changed or not self.changes_only)
            and (self.direction is None or entry.event.direction == self.direction)
            and (not self.applications or message_field(entry, "application_id") in self.applications)
            and (not self.number_prefixes or any(key.startswith(self.number_prefixes) for key in _number_keys(entry)))
            and (not self.tag_prefixes or (message_field(entry, "tag") or "").startswith(self.tag_prefixes))
        )

    def _passes_alert(self, entry: AlertEntry) -> bool:
        if self.sink is not None and entry.event.sinks is not None:
            return self.sink in entry.event.sinks
        return entry.type in self.types


def _number_keys(entry: LogEntry) -> Iterable[str]:
    """The numbers of an event: its sender, and its own recipient if it has one, else the recipients of its message."""
    recipient = entry.event.recipient
    named = (recipient,) if recipient else message_field(entry, "recipients") or ()
    return (number_key(number) for number in (message_field(entry, "sender"), *named) if number)
