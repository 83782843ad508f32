"""The published samples that lie beside the project, when they do: everything their `expect` says must come true."""

import json
from datetime import datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.events import Api, Direction, Event, Status, TagVerdict
from receiver.domain.message import fold
from receiver.providers import parse
from tests.factories import request

FOLDER = Path(__file__).parents[3] / "shared" / "bandwidth" / "callbacks"
FILES = sorted(FOLDER.glob("*.json"))
OUTCOMES = {
    Status.RECEIVED: "inbound",
    Status.QUEUED: "in_progress",
    Status.SENDING: "in_progress",
    Status.SENT: "in_progress",
    Status.DELIVERED: "delivered",
    Status.READ: "read",
    Status.FAILED: "failed",
    Status.UNCONFIRMED: "unconfirmed",
}

pytestmark = pytest.mark.skipif(not FILES, reason="no published samples beside the project (../shared/bandwidth)")


SAMPLES = [pytest.param(json.loads(file.read_bytes()), id=file.stem) for file in FILES]


def body_of(sample: dict[str, Any]) -> bytes:
    """A text is sent as it is, null is no body, anything else is JSON."""
    body = sample["body"]
    if isinstance(body, str):
        return body.encode()
    return b"" if body is None else json.dumps(body).encode()


def events_of(sample: dict[str, Any]) -> list[Event]:
    callback = request(Api(sample["api"]), sample["method"], sample["raw_query"] or "", body_of(sample))
    elements = list(parse(callback))
    assert all(isinstance(element, Event) for element in elements), elements
    return [element for element in elements if isinstance(element, Event)]


def utc(time: datetime | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if time else None


def event_fields(event: Event) -> dict[str, Any]:
    """An event in the words of the samples."""
    fields = event.fields
    return {
        "message_id": event.message_id,
        "event_type": event.type,
        "effective_direction": event.direction,
        "outcome": OUTCOMES[event.status],
        "state": event.state,
        "delivery_state": event.delivery_state,
        "code": event.code,
        "description": event.description,
        "tag": fields.tag,
        "from": fields.sender,
        "to": list(fields.recipients),
        "recipient": event.recipient,
        "owner": fields.owner,
        "application_id": fields.application_id,
        "media": list(fields.media),
        "text": fields.text,
        "event_time_utc": utc(event.occurred_at),
        "message_time_utc": utc(fields.created_at),
        "read_time_utc": utc(event.read_at),
        "segment_count": fields.segment_count,
        # the samples have the channel as on the wire; for v1 we take it from eventType
        "channel": fields.channel if event.api is Api.V2 else None,
        "carrier": fields.carrier_name,
    }


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_published_sample_is_read_as_it_says(sample: dict[str, Any]) -> None:
    expected = [
        {key: value for key, value in event.items() if key != "direction"} for event in sample["expect"]["events"]
    ]
    events = events_of(sample)
    assert [event_fields(event) for event in events] == expected
    assert len(events) == sample["expect"]["event_count"]
    assert {event.api for event in events} == {sample["api"]}


@pytest.mark.parametrize("sample", SAMPLES)
def test_only_inbound_events_have_no_tag_to_check(sample: dict[str, Any]) -> None:
    for event in events_of(sample):
        inbound = event.direction is Direction.IN
        assert event.tag_verdict is (TagVerdict.NOT_APPLICABLE if inbound else TagVerdict.UNCHECKED)


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_recipients_of_a_published_sample_end_where_it_says(sample: dict[str, Any]) -> None:
    final = sample["expect"].get("final_by_recipient", {})
    for events in permutations(events_of(sample)):
        rows = {row.number: row.delivery for row in fold(events).recipients()}
        for number, expected in final.items():
            assert OUTCOMES[rows[number].status] == expected["outcome"]
            assert rows[number].code == expected["code"]
