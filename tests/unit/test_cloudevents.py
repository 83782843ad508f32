"""What others are given of an entry of the log."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from receiver.api.events import server_sent
from receiver.cli.events import sample_alert_event, sample_event
from receiver.domain.cloudevents import ALERT_EVENT_TYPES, MESSAGE_EVENT_TYPES, cloud_event, rfc3339, schema_uri
from receiver.domain.events import MessageFields, Status, TagVerdict
from receiver.domain.publication import LogEntry, Snapshot
from receiver.models.columns import shown_names
from receiver.models.published import AlertCloudEvent, CloudEvent, MessageEventData
from receiver.providers.published import alert_source
from tests import event_schema
from tests.factories import at, make_event

SOURCE = "/bandwidth/v2"
SCHEMA = "https://sms.example.com/schemas/message-event/1"
REASON = {"name": "x", "description": "y", "category": "carrier", "retryable": False, "billable": None}


def entry(*, event: Any = None, message: dict[str, Any] | None = None, **changes: Any) -> LogEntry:
    fields: dict[str, Any] = {
        "position": 7,
        "event": event or make_event(Status.SENT, received=3),
        "previous_status": "sending",
        "changed": False,
        "delivery": Snapshot(
            status="delivered", state="sent", delivery_state="delivered", code=0, description="ok", contradicted=True
        ),
        "message": message or {},
    }
    return LogEntry(**{**fields, **changes})


def test_an_entry_becomes_exactly_this() -> None:
    event = make_event(
        Status.SENT,
        message_id="m1",
        time=1.5,
        received=3,
        fields={
            "owner": "+15559999",
            "application_id": "app",
            "tag": "order-1",
            "segment_count": 2,
            "channel": "SMS",
            "carrier_name": "ACME",
        },
        tag_verdict=TagVerdict.VALID,
    )
    logged = entry(event=event, message={"text": "hello", "media": ["https://media.example/1"]})
    assert orjson.loads(orjson.dumps(cloud_event(logged, SOURCE, REASON, SCHEMA))) == {
        "specversion": "1.0",
        "id": event.id,
        "source": "/bandwidth/v2",
        "type": "message.sent",
        "subject": "m1",
        "time": "2026-01-01T00:00:01.500000Z",
        "datacontenttype": "application/json",
        "dataschema": SCHEMA,
        "data": {
            "messageId": "m1",
            "api": "v2",
            "direction": "out",
            "recipient": "+15550001",
            "from": "+15559999",
            "to": ["+15550001"],
            "status": "delivered",
            "previousStatus": "sending",
            "changed": False,
            "state": "sent",
            "deliveryState": "delivered",
            "deliveryCode": 0,
            "deliveryDescription": "ok",
            "reason": REASON,
            "tag": "order-1",
            "tagVerdict": "valid",
            "applicationId": "app",
            "segmentCount": 2,
            "channel": "SMS",
            "carrierName": "ACME",
            "text": "hello",
            "media": ["https://media.example/1"],
            "contradicted": True,
            "route": "primary",
            "receivedTime": "2026-01-01T00:00:03Z",
            "sequence": 7,
        },
    }


def test_without_an_event_time_the_time_received_stands_in() -> None:
    logged = entry(event=make_event(Status.SENT, time=None, received=9))
    assert cloud_event(logged, SOURCE, None, SCHEMA)["time"] == rfc3339(at(9))


OF_THE_MESSAGE = {
    "sender": "+1999",
    "recipients": ["+1888"],
    "application_id": "of-message",
    "tag": "of-message",
    "segment_count": 9,
    "channel": "RBM",
    "carrier_name": "of-message",
}
OF_THE_EVENT = {
    "sender": "+1111",
    "recipients": ("+1222",),
    "application_id": "own",
    "tag": "own",
    "segment_count": 1,
    "channel": "SMS",
    "carrier_name": "own",
}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("sender", "from"),
        ("recipients", "to"),
        ("application_id", "applicationId"),
        ("tag", "tag"),
        ("segment_count", "segmentCount"),
        ("channel", "channel"),
        ("carrier_name", "carrierName"),
    ],
)
def test_field_is_the_event_s_own_else_its_message_s(name: str, field: str) -> None:
    event = make_event()
    logged = entry(event=replace(event, fields=MessageFields(**OF_THE_EVENT)), message=OF_THE_MESSAGE)  # type: ignore[arg-type]
    silent = entry(event=replace(event, fields=MessageFields()), message=OF_THE_MESSAGE)
    own, of_message = OF_THE_EVENT[name], OF_THE_MESSAGE[name]
    assert cloud_event(logged, SOURCE, None, SCHEMA)["data"][field] == (list(own) if isinstance(own, tuple) else own)
    assert cloud_event(silent, SOURCE, None, SCHEMA)["data"][field] == of_message


def test_a_forgotten_message_leaves_gaps_and_breaks_nothing() -> None:
    data = cloud_event(entry(message={"text": None, "media": None, "recipients": None}), SOURCE, None, SCHEMA)["data"]
    assert (data["text"], data["media"], data["reason"]) == (None, [], None)


def test_text_never_comes_from_the_event() -> None:
    event = replace(make_event(), fields=MessageFields(text="stale", media=("https://stale.example",)))
    data = cloud_event(entry(event=event), SOURCE, None, SCHEMA)["data"]
    assert (data["text"], data["media"]) == (None, [])


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31T00:00:00Z"),
        (datetime(2026, 1, 31, 1, tzinfo=timezone(timedelta(hours=1))), "2026-01-31T00:00:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
    ],
    ids=["whole", "another zone", "a year of one digit"],
)
def test_times_are_rfc_3339_in_utc(moment: datetime, written: str) -> None:
    assert rfc3339(moment) == written


def test_dataschema_without_a_public_url_is_a_name_that_ends_alike() -> None:
    assert schema_uri(None) == "urn:bandwidth-receiver:schemas/message-event/1"
    assert schema_uri("https://sms.example.com/") == "https://sms.example.com/schemas/message-event/1"


@pytest.mark.parametrize("type_", sorted(ALERT_EVENT_TYPES))
def test_every_alert_event_is_as_its_schema_says(type_: str) -> None:
    event = orjson.loads(orjson.dumps(sample_alert_event(type_)))
    assert event["type"] == type_
    assert set(event) == set(shown_names(AlertCloudEvent))
    event_schema.check(event)
    assert event["source"] == "/bandwidth/alerts"
    assert event["data"]["status"] == {"alert.fired": "firing", "alert.resolved": "resolved"}[type_]
    assert event["data"]["id"] == event["subject"]
    assert set(event["data"]) == {
        *("id", "rule", "name", "severity", "status", "group", "summary", "evidence", "messages", "link", "runbook"),
        *("firedTime", "updatedTime", "resolvedTime", "acknowledgedTime", "mutedUntil"),
    }
    assert set(event["data"]["evidence"]) == {"value", "threshold", "volume", "before"}
    assert event["time"] == event["data"]["firedTime" if type_ == "alert.fired" else "resolvedTime"]


def test_source_of_alert_events_begins_as_that_of_other_events() -> None:
    assert alert_source("/sms/staging/") == "/sms/staging/alerts"


@pytest.mark.parametrize("type_", sorted(MESSAGE_EVENT_TYPES))
def test_every_event_is_as_its_schema_says(type_: str) -> None:
    event = orjson.loads(orjson.dumps(sample_event(type_)))
    assert event["type"] == type_
    assert event["data"]["status"] == type_.removeprefix("message.")
    assert set(event) == set(shown_names(CloudEvent))
    event_schema.check(event)
    assert tuple(event["data"]) == shown_names(MessageEventData)
    assert CloudEvent.model_validate(event).data.message_id == event["subject"]


def test_event_of_a_stream_is_one_line_for_every_client() -> None:
    """Many clients take more characters for the end of a line than the line feed; a sender may write them."""
    event = {"id": "e", "data": {"text": "a\u2028data: {}\u2029id: 9\u0085b\nc"}}
    lines = server_sent(7, event).decode().splitlines()
    assert lines[0] == "id: 7"
    assert json.loads(lines[1].removeprefix("data: ")) == event
    assert lines[2:] == [""]
