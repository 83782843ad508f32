"""The published form of an entry of the event log, CloudEvents 1.0 in JSON, and the filter of a sink."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from receiver.domain.events import Direction, Event, Status, number_key
from receiver.domain.publication import LogEntry


def event_type(event: Event) -> str:
    """The CloudEvents type, from the event's own status and not from that of its delivery."""
    return f"message.{event.status}"


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


SCHEMA_PATH: Final = "/schemas/message-event/1"


def schema_uri(public_url: str | None) -> str:
    """The `dataschema` of published events: where the schema is, or without a public URL its name.

    A name, since CloudEvents wants an absolute URI and consumers cannot reach an address such as 127.0.0.1:8080.
    """
    return f"{public_url.rstrip('/')}{SCHEMA_PATH}" if public_url else f"urn:bandwidth-receiver:{SCHEMA_PATH[1:]}"


def cloud_event(entry: LogEntry, source: str, reason: Mapping[str, Any] | None, schema: str) -> dict[str, Any]:
    """The CloudEvent of an entry.

    `source` is its provider's, `reason` the meaning of its delivery's code, `schema` the URI from `schema_uri`.
    """
    event = entry.event
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": event_type(event),
        "subject": event.message_id,
        "time": rfc3339(event.occurred_at or event.received_at),
        "datacontenttype": "application/json",
        "dataschema": schema,
        "data": _data(entry, reason),
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


EVENT_TYPES: Final = frozenset(f"message.{status}" for status in Status if status is not Status.UNKNOWN)

RESERVED_EVENT_TYPES: Final = frozenset({"alert.fired", "alert.resolved"})
"""Types that a later version publishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The filter of a sink. An event passes if it meets every condition; an empty condition is met by all events.

    A registration never passes: it is the sender's own, and tells a sink nothing that happened.

    `number_prefixes` have no plus, and match the number of the sender or of a recipient.
    """

    types: frozenset[str] = frozenset()
    changes_only: bool = False
    direction: Direction | None = None
    applications: frozenset[str] = frozenset()
    number_prefixes: tuple[str, ...] = ()
    tag_prefixes: tuple[str, ...] = ()

    def passes(self, entry: LogEntry) -> bool:
        return (
            not entry.event.is_registration
            and (not self.types or event_type(entry.event) in self.types)
            and (entry.changed or not self.changes_only)
            and (self.direction is None or entry.event.direction == self.direction)
            and (not self.applications or message_field(entry, "application_id") in self.applications)
            and (not self.number_prefixes or any(key.startswith(self.number_prefixes) for key in _number_keys(entry)))
            and (not self.tag_prefixes or (message_field(entry, "tag") or "").startswith(self.tag_prefixes))
        )


def _number_keys(entry: LogEntry) -> Iterable[str]:
    """The numbers of an event: its sender, and its own recipient if it has one, else the recipients of its message."""
    recipient = entry.event.recipient
    named = (recipient,) if recipient else message_field(entry, "recipients") or ()
    return (number_key(number) for number in (message_field(entry, "sender"), *named) if number)
