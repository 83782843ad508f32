"""Version 1 of Bandwidth's messaging API (Catapult): one event from a POSTed object or from the query string of a GET.

`deliveryState` decides the status; `state` decides it only if `deliveryState` is absent or `waiting`. `time` is the
creation of the message, the same in each of its events, so no v1 event has a time of its own.
"""

from typing import Final

import msgspec

from receiver.domain.events import (
    Api,
    Callback,
    Direction,
    Element,
    Event,
    Failure,
    MessageFields,
    Quarantine,
    Rejected,
    Status,
    TagVerdict,
    event_id,
)
from receiver.providers.bandwidth_codes import failure_side, proves_nothing
from receiver.providers.fields import Payload, moment, number, number_text, quoted, text, texts, too_many, urls

_CHANNELS: Final = {"sms": "SMS", "mms": "MMS"}
_STATES: Final = {
    "queued": Status.QUEUED,
    "sending": Status.SENDING,
    "sent": Status.SENT,
    "error": Status.FAILED,
    # Only the receipt on Bandwidth's how-to page has this state, with `errorcode` and `error` as its delivery fields.
    "not-delivered": Status.FAILED,
}
_FINAL_DELIVERY_STATES: Final = {"delivered": Status.DELIVERED, "not-delivered": Status.FAILED}
_OWN_STATES: Final = frozenset({"queued", "sending", "sent", "received", "error"})
_OWN_DELIVERY_STATES: Final = frozenset({"waiting", "delivered", "not-delivered"})


class _Report(msgspec.Struct, frozen=True, gc=False):
    """What an event says about its delivery, in v1's words."""

    direction: str | None
    state: str | None
    delivery_state: str | None
    code: str | None
    description: str | None


def recognises(payload: Payload) -> bool:
    """Whether an object is a v1 message event; voice events have an `eventType` too."""
    kind = payload.get("eventType")
    return type(kind) is str and kind in _CHANNELS


def expects_receipt(delivery_state: str | None) -> bool:
    """Whether a final event follows: only if receipts were requested, and then every event has a `deliveryState`."""
    return delivery_state is not None


def parse_event(payload: Payload, index: int, callback: Callback) -> Element:
    """Parses a recognised object into an event, or rejects it; `index` is its place in the callback."""
    report = _report(payload)
    direction = _direction(report)
    status = _status(direction, report)
    if status is None:
        return Rejected(index, Quarantine.UNKNOWN_TYPE, _misfit(report))
    message_id = text(payload.get("messageId"))
    if not message_id:
        return Rejected(index, Quarantine.NO_MESSAGE_ID, f"{payload['eventType']} without a messageId")
    if detail := too_many(payload.get("to")):
        return Rejected(index, Quarantine.TOO_LARGE, detail)
    return _event(payload, message_id, direction, status, report, callback)


def _event(
    payload: Payload, message_id: str, direction: Direction, status: Status, report: _Report, callback: Callback
) -> Event:
    kind, fields, code = payload["eventType"], _fields(payload), number(report.code)
    recipient = fields.recipients[0] if len(fields.recipients) == 1 else None
    status, failure = _status_and_failure(status, report.state, code)
    delivery_state = report.delivery_state if report.delivery_state in _OWN_DELIVERY_STATES else None
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
        delivery_state=delivery_state,
        receipt_expected=expects_receipt(delivery_state),
        contradicted=report.state == "error" and status is Status.DELIVERED,
        tag_verdict=TagVerdict.NOT_APPLICABLE if direction is Direction.IN else TagVerdict.UNCHECKED,
        fields=fields,
        received_at=callback.received_at,
        route=callback.route,
        callback_id=callback.id,
    )


def _report(payload: Payload) -> _Report:
    return _Report(
        direction=text(payload.get("direction")),
        state=text(payload.get("state")),
        delivery_state=text(payload.get("deliveryState")),
        code=number_text(_either(payload, "deliveryCode", "errorcode")),
        description=text(_either(payload, "deliveryDescription", "error")),
    )


def _either(payload: Payload, name: str, other: str) -> object:
    value = payload.get(name)
    return payload.get(other) if value is None else value


def _direction(report: _Report) -> Direction:
    """The direction as given, else the one that the state implies."""
    if report.direction in ("in", "out"):
        return Direction(report.direction)
    return Direction.IN if report.state == "received" else Direction.OUT


def _status(direction: Direction, report: _Report) -> Status | None:
    """The status of an event; None for a combination that no message event has.

    An inbound event is received, and nothing else. A `deliveryState` of waiting without a known `state` means sent.
    """
    if direction is Direction.IN or report.state == "received":
        return Status.RECEIVED if direction is Direction.IN and report.state == "received" else None
    status = _FINAL_DELIVERY_STATES.get(report.delivery_state or "") or _STATES.get(report.state or "")
    return Status.SENT if status is None and report.delivery_state == "waiting" else status


def _status_and_failure(status: Status, state: str | None, code: int | None) -> tuple[Status, Failure | None]:
    """Refines a failure by its code: unconfirmed, or failed with its side. The state `error` is always a refusal."""
    if status is not Status.FAILED:
        return status, None
    if proves_nothing(Api.V1, code):
        return Status.UNCONFIRMED, None
    return status, Failure.REFUSED if state == "error" else failure_side(Api.V1, code)


def _fields(payload: Payload) -> MessageFields:
    message_text, media = text(payload.get("text")), urls(payload.get("media"))
    return MessageFields(
        sender=text(payload.get("from")),
        recipients=texts(payload.get("to")),
        application_id=text(payload.get("applicationId")),
        text=message_text,
        has_text=bool(message_text),
        media=media,
        has_media=bool(media),
        tag=text(payload.get("tag")),
        segment_count=number(payload.get("segmentCount")),
        channel=_CHANNELS[payload["eventType"]],
        created_at=moment(payload.get("time")),
    )


def _misfit(report: _Report) -> str:
    """Describes for people an event whose words fit no status."""
    words = {"direction": report.direction, "state": report.state, "deliveryState": report.delivery_state}
    given = ", ".join(f"{name} {quoted(word, 40)}" for name, word in words.items() if word is not None)
    return f"no message event has {given}" if given else "neither state nor deliveryState"
