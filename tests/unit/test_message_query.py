"""Contradictory message queries, which no message can match by the rules of parser and merge."""

import itertools
from typing import Any

import pytest

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Direction, Event, TagVerdict
from receiver.domain.message import fold
from receiver.models.message_queries import MessageQuery
from receiver.providers import parse
from receiver.providers.states import DELIVERY_STATES
from receiver.storage.bulk import Spelling
from receiver.storage.messages import MESSAGE_COLUMNS, rows_of
from tests.factories import callback, v1_event, v2_event

STATES = ("received", "queued", "sending", "sent", "error", "other", None)
RECEIPTS = ("waiting", "delivered", "not-delivered", "other", None)
CODES = ("902", "999", "4720", None)

AS_THEY_ARE = Spelling(time=lambda time: time, flag=lambda flag: flag)


def v1_events() -> list[Event]:
    """The events of every combination of v1 fields, to one recipient and to two."""
    found = []
    words = itertools.product(("in", "out", None), STATES, RECEIPTS, CODES, ("+15550001", ["+15550001", "+15550002"]))
    for direction, state, receipt, code, to in words:
        payload = {"direction": direction, "state": state, "deliveryState": receipt, "deliveryCode": code, "to": to}
        found += [element for element in parse(callback(v1_event("m", **payload))) if isinstance(element, Event)]
    return found


def v2_events() -> list[Event]:
    types = ("message-sending", "message-sent", "message-delivered", "message-failed", "message-read")
    codes, tos = (None, 4301, 4720, 9902), ("+15550001", "+15550002", None)
    outbound = [
        v2_event("m", kind, errorCode=code, to=to, message={"to": ["+15550001", "+15550002"]})
        for kind, code, to in itertools.product(types, codes, tos)
    ]
    inbound = v2_event("m", "message-received", message={"direction": "in"})
    return [event for event in parse(callback([*outbound, inbound])) if isinstance(event, Event)]


def values(event: Event, *more: Event, conflict: FinalConflict) -> dict[str, Any]:
    """The message row after these events."""
    row = rows_of(fold([event, *more], conflict), AS_THEY_ARE).message
    return dict(zip(MESSAGE_COLUMNS, row, strict=True))


@pytest.mark.parametrize("conflict", FinalConflict)
def test_no_message_that_events_make_contradicts_a_query_for_its_own_values(conflict: FinalConflict) -> None:
    for events in (v1_events(), v2_events()):
        distinct = {(e.direction, e.status, e.state, e.delivery_state, e.recipient, e.failure): e for e in events}
        pairs = itertools.combinations_with_replacement(distinct.values(), 2)
        for one, other in pairs:
            if one.key != other.key:
                continue
            row = values(one, other, conflict=conflict)
            query = MessageQuery(
                direction=Direction(row["direction"]),
                status=row["status"],
                state=row["state"],
                delivery_state=row["delivery_state"],
                tag_verdict=TagVerdict(row["tag_verdict"]),
            )
            assert query.alternatives(), row


def test_every_status_of_a_message_is_known() -> None:
    schema = MessageQuery.model_json_schema()["properties"]["status"]
    assert set(schema["items"]["enum"]) == set(DELIVERY_STATES)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "failed", "delivery_state": "delivered"},
        {"status": "delivered", "delivery_state": "waiting"},
        {"status": "partial", "delivery_state": "waiting"},
        {"direction": Direction.IN, "status": "failed"},
        {"direction": Direction.OUT, "state": "received"},
        {"direction": Direction.OUT, "tag_verdict": TagVerdict.NOT_APPLICABLE},
        {"status": "received", "tag_verdict": TagVerdict.VALID},
    ],
)
def test_values_that_exclude_each_other_are_contradictory(fields: dict[str, Any]) -> None:
    assert MessageQuery(**fields).alternatives() == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"status": "failed"},
        {"status": "failed", "delivery_state": "waiting"},
        {"direction": Direction.IN, "status": "received", "delivery_state": "delivered"},
        {"status": "delivered", "state": "error"},
        {"direction": Direction.OUT, "tag_verdict": TagVerdict.UNCHECKED},
    ],
)
def test_values_that_can_occur_together_are_not(fields: dict[str, Any]) -> None:
    assert len(MessageQuery(**fields).alternatives()) == 1
