"""Version 1 of Bandwidth's messaging API (Catapult): one event out of a POSTed object or a GET's query string.

An event is judged by `deliveryState`, by `state` only where that says nothing yet. `time` is when the message was
made, the same in every event of it, so no v1 event has a time of its own.
"""

from typing import Final

import msgspec

from receiver.domain.callbacks import Callback, Element, Rejected
from receiver.domain.events import (
    Api,
    Direction,
    Event,
    Failure,
    MessageFields,
    Quarantine,
    Status,
    TagVerdict,
    event_id,
)
from receiver.providers.bandwidth_codes import failure_side, proves_nothing
from receiver.providers.fields import Fields, moment, number, number_text, quoted, text, texts, too_many, urls

_CHANNELS: Final = {"sms": "SMS", "mms": "MMS"}
_STATES: Final = {
    "queued": Status.QUEUED,
    "sending": Status.SENDING,
    "sent": Status.SENT,
    "error": Status.FAILED,
    # the receipt of Bandwidth's how-to page, with `errorcode` and `error` in place of the delivery fields
    "not-delivered": Status.FAILED,
}
_FINAL_DELIVERY_STATES: Final = {"delivered": Status.DELIVERED, "not-delivered": Status.FAILED}
_OWN_STATES: Final = frozenset({"queued", "sending", "sent", "received", "error"})
_OWN_DELIVERY_STATES: Final = frozenset({"waiting", "delivered", "not-delivered"})


class _Report(msgspec.Struct, frozen=True, gc=False):
    """What an event says of its delivery, in its own words."""

    direction: str | None
    state: str | None
    delivery_state: str | None
    code: str | None
    description: str | None


def recognises(fields: Fields) -> bool:
    """Whether an object is a v1 message event; voice has an `eventType` too."""
    kind = fields.get("eventType")
    return type(kind) is str and kind in _CHANNELS


def parse_event(fields: Fields, index: int, callback: Callback) -> Element:
    """The event that a recognised object is, or why it is none."""
    report = _report(fields)
    direction = _direction(report)
    status = _status(direction, report)
    if status is None:
        return Rejected(index, Quarantine.UNKNOWN_TYPE, _misfit(report))
    message_id = text(fields.get("messageId"))
    if not message_id:
        return Rejected(index, Quarantine.NO_MESSAGE_ID, f"{fields['eventType']} without a messageId")
    if told := too_many(fields.get("to")):
        return Rejected(index, Quarantine.TOO_LARGE, told)
    return _event(fields, message_id, direction, status, report, callback)


def _event(
    fields: Fields, message_id: str, direction: Direction, status: Status, report: _Report, callback: Callback
) -> Event:
    kind, facts, code = fields["eventType"], _facts(fields), number(report.code)
    recipient = facts.recipients[0] if len(facts.recipients) == 1 else None
    status, failure = _judge_failure(status, report.state, code)
    return Event(
        id=event_id(
            api=Api.V1,
            message_id=message_id,
            recipient=recipient,
            type=kind,
            time=None,
            delivery=(report.state, report.delivery_state, report.code, report.description),
            code=report.code,
        ),
        api=Api.V1,
        message_id=message_id,
        direction=direction,
        type=kind,
        status=status,
        recipient=recipient,
        occurred_at=None,
        code=code,
        description=report.description,
        failure=failure,
        state=report.state if report.state in _OWN_STATES else None,
        delivery_state=report.delivery_state if report.delivery_state in _OWN_DELIVERY_STATES else None,
        contradicted=report.state == "error" and status is Status.DELIVERED,
        tag_verdict=TagVerdict.NOT_APPLICABLE if direction is Direction.IN else TagVerdict.UNCHECKED,
        facts=facts,
        received_at=callback.received_at,
        route=callback.route,
        callback_id=callback.id,
    )


def _report(fields: Fields) -> _Report:
    return _Report(
        direction=text(fields.get("direction")),
        state=text(fields.get("state")),
        delivery_state=text(fields.get("deliveryState")),
        code=number_text(_either(fields, "deliveryCode", "errorcode")),
        description=text(_either(fields, "deliveryDescription", "error")),
    )


def _either(fields: Fields, name: str, other: str) -> object:
    value = fields.get(name)
    return fields.get(other) if value is None else value


def _direction(report: _Report) -> Direction:
    """The direction as given, else as the state has it."""
    if report.direction in ("in", "out"):
        return Direction(report.direction)
    return Direction.IN if report.state == "received" else Direction.OUT


def _status(direction: Direction, report: _Report) -> Status | None:
    """What an event says; None for a combination that no message event has.

    Inbound is received and nothing else. A `deliveryState` of waiting beside no known `state` says as much as sent.
    """
    if direction is Direction.IN or report.state == "received":
        return Status.RECEIVED if direction is Direction.IN and report.state == "received" else None
    status = _FINAL_DELIVERY_STATES.get(report.delivery_state or "") or _STATES.get(report.state or "")
    return Status.SENT if status is None and report.delivery_state == "waiting" else status


def _judge_failure(status: Status, state: str | None, code: int | None) -> tuple[Status, Failure | None]:
    """The status with the code looked at and, if it is a failure, its side: state error is a refusal."""
    if status is not Status.FAILED:
        return status, None
    if proves_nothing(Api.V1, code):
        return Status.UNCONFIRMED, None
    return status, Failure.REFUSED if state == "error" else failure_side(Api.V1, code)


def _facts(fields: Fields) -> MessageFields:
    message_text, media = text(fields.get("text")), urls(fields.get("media"))
    return MessageFields(
        sender=text(fields.get("from")),
        recipients=texts(fields.get("to")),
        application_id=text(fields.get("applicationId")),
        text=message_text,
        has_text=bool(message_text),
        media=media,
        has_media=bool(media),
        tag=text(fields.get("tag")),
        segment_count=number(fields.get("segmentCount")),
        channel=_CHANNELS[fields["eventType"]],
        created_at=moment(fields.get("time")),
    )


def _misfit(report: _Report) -> str:
    """The words of an event that fit no status, for people."""
    words = {"direction": report.direction, "state": report.state, "deliveryState": report.delivery_state}
    told = ", ".join(f"{name} {quoted(word, 40)}" for name, word in words.items() if word is not None)
    return f"no message event has {told}" if told else "neither state nor deliveryState"
