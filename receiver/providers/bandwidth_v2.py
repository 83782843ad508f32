"""Version 2 of Bandwidth's messaging API: one event out of one member of a callback's array.

An event is judged by its `type` alone: `description`, `direction` and the presence of a code have all been seen to
say otherwise in Bandwidth's own samples.
"""

from typing import Final

from receiver.domain.callbacks import Callback, Element, Unread
from receiver.domain.events import Api, Direction, Event, Facts, Failure, Quarantine, Status, TagVerdict, event_id
from receiver.providers.bandwidth_codes import failure_side, proves_nothing
from receiver.providers.values import Fields, moment, moment_text, number, number_text, text, texts, too_many, urls

STATUSES: Final = {
    "message-received": Status.RECEIVED,
    "suggestion-response": Status.RECEIVED,
    # one event, three spellings in three editions of the specification
    "request-location-response": Status.RECEIVED,
    "requested-location-response": Status.RECEIVED,
    "location-request-response": Status.RECEIVED,
    "message-queued": Status.QUEUED,
    "message-sending": Status.SENDING,
    "message-sent": Status.SENT,
    "message-delivered": Status.DELIVERED,
    "message-read": Status.READ,
    "message-failed": Status.FAILED,
    # the beta of 2017; today message-failed 4432
    "message-rejected-forbidden-country": Status.FAILED,
    # the multichannel envelope of April to July 2025
    "QUEUED": Status.QUEUED,
    "SENDING": Status.SENDING,
    "DELIVERED": Status.DELIVERED,
    "FAILED": Status.FAILED,
}
_REFUSALS: Final = frozenset({"message-rejected-forbidden-country"})


def recognises(fields: Fields) -> bool:
    """Whether an object is a v2 event of a known type."""
    kind = fields.get("type")
    return type(kind) is str and kind in STATUSES


def read_event(fields: Fields, index: int, callback: Callback) -> Element:
    """The event that a recognised object is, or why it is none."""
    message = _object(fields.get("message"))
    message_id = text(message.get("id")) or text(message.get("messageId"))
    if not message_id:
        return Unread(index, Quarantine.NO_MESSAGE_ID, f"{fields['type']} without a message id")
    if told := too_many(message.get("to")) or too_many(fields.get("to")):
        return Unread(index, Quarantine.TOO_LARGE, told)
    return _event(fields, message, message_id, callback)


def _event(fields: Fields, message: Fields, message_id: str, callback: Callback) -> Event:
    kind, code = fields["type"], number(fields.get("errorCode"))
    status, failure = judge(kind, code)
    facts = _facts(fields, message)
    recipient = _recipient(fields.get("to"), facts.recipients)
    occurred_at = moment(fields.get("time"))
    inbound = status is Status.RECEIVED
    return Event(
        id=event_id(
            api=Api.V2,
            message_id=message_id,
            recipient=recipient,
            type=kind,
            time=moment_text(occurred_at) if occurred_at else text(fields.get("time")),
            code=number_text(fields.get("errorCode")),
        ),
        api=Api.V2,
        message_id=message_id,
        direction=Direction.IN if inbound else Direction.OUT,
        type=kind,
        status=status,
        recipient=recipient,
        occurred_at=occurred_at,
        read_at=moment(fields.get("eventTime")),
        code=code,
        description=text(fields.get("description")),
        failure=failure,
        tag_verdict=TagVerdict.NOT_APPLICABLE if inbound else TagVerdict.UNCHECKED,
        facts=facts,
        received_at=callback.received_at,
        route=callback.route,
        callback_id=callback.id,
    )


def judge(kind: str, code: int | None) -> tuple[Status, Failure | None]:
    """The status an event gives and, if it is a failure, its side."""
    status = STATUSES[kind]
    if status is not Status.FAILED:
        return status, None
    if kind in _REFUSALS:
        return status, Failure.REFUSED
    if proves_nothing(Api.V2, code):
        return Status.UNCONFIRMED, None
    return status, failure_side(Api.V2, code)


def _recipient(to: object, recipients: tuple[str, ...]) -> str | None:
    """The number an event is about: the one it names, else the only recipient of the message."""
    named = texts(to) or recipients
    return named[0] if len(named) == 1 else None


def _facts(fields: Fields, message: Fields) -> Facts:
    content = _object(message.get("content"))
    message_text, media = _text(message, content), urls(message.get("media")) or urls(content.get("media"))
    return Facts(
        sender=text(message.get("from")),
        recipients=texts(message.get("to")),
        owner=text(message.get("owner")),
        application_id=text(message.get("applicationId")),
        text=message_text,
        has_text=bool(message_text),
        media=media,
        has_media=bool(media),
        tag=text(message.get("tag")),
        segment_count=number(message.get("segmentCount")),
        channel=text(message.get("channel")),
        carrier_name=text(fields.get("carrierName")),
        priority=text(message.get("priority")),
        created_at=moment(message.get("time")),
    )


def _text(message: Fields, content: Fields) -> str | None:
    """The text of a message; RCS has it in `content`. The words of a suggestion are its sender's, whoever tapped it."""
    told = text(message.get("text"))
    return told or text(content.get("text")) or told


def _object(value: object) -> Fields:
    return value if type(value) is dict else {}
