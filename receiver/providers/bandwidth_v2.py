"""Version 2 of Bandwidth's messaging API: one event out of one member of a callback's array.

An event is judged by its `type` alone: `description`, `direction` and the presence of a code have all been seen to
say otherwise in Bandwidth's own samples.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from receiver.domain.callbacks import Callback, Element, Rejected
from receiver.domain.events import (
    MAX_RECIPIENTS,
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
from receiver.providers.fields import (
    LARGEST,
    LONGEST,
    Fields,
    moment,
    moment_text,
    number,
    number_text,
    text,
    texts,
    too_many,
    urls,
)

_Id = Annotated[str, Meta(min_length=1, max_length=LONGEST)]
_Text = Annotated[str, Meta(max_length=LONGEST)]
_Number = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]


class _Message(msgspec.Struct, gc=False):
    """The `message` of an event. One with `content` (RCS) or without `id` is not for this module."""

    id: _Id
    owner: str | None = None
    application_id: _Text | None = msgspec.field(default=None, name="applicationId")
    time: str | None = None
    segment_count: _Number | None = msgspec.field(default=None, name="segmentCount")
    to: Annotated[tuple[_Text, ...], Meta(max_length=MAX_RECIPIENTS)] | None = None
    sender: _Text | None = msgspec.field(default=None, name="from")
    text: str | None = None
    tag: str | None = None
    media: tuple[str, ...] | None = None
    channel: str | None = None
    priority: str | None = None
    content: None = None


class TypedEvent(msgspec.Struct, gc=False):
    """An event as it was sent."""

    type: str
    message: _Message
    time: str | None = None
    description: str | None = None
    to: _Text | None = None
    error_code: _Number | None = msgspec.field(default=None, name="errorCode")
    carrier_name: str | None = msgspec.field(default=None, name="carrierName")
    event_time: str | None = msgspec.field(default=None, name="eventTime")


# Python 3.11 takes 0.15 us to look up a member of an enumeration.
_V2: Final = Api.V2
_DIRECTION_AND_VERDICT: Final = {
    True: (Direction.IN, TagVerdict.NOT_APPLICABLE),
    False: (Direction.OUT, TagVerdict.UNCHECKED),
}
_RECEIVED: Final = Status.RECEIVED

_DECODER: Final = msgspec.json.Decoder(list[TypedEvent])


def decode(body: bytes) -> Sequence[TypedEvent] | None:
    r"""The events of a body; None if the lenient way has to read it.

    A `\u` escape may give what no database stores (NUL, half of a surrogate pair). Bytes that are not UTF-8 msgspec
    notices only in the fields it knows.
    """
    if b"\\u" in body or not _is_utf8(body):
        return None
    try:
        events = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return events if all(event.type in STATUSES for event in events) else None


def event_of(told: TypedEvent, callback: Callback) -> Event:
    """The event that `bandwidth_v2.read_event` makes of the same object."""
    message, kind, code = told.message, told.type, told.error_code
    status, failure = judge(kind, code)
    facts = _typed_fields(told, message)
    recipient = told.to or (facts.recipients[0] if len(facts.recipients) == 1 else None)
    occurred_at = moment(told.time)
    direction, verdict = _DIRECTION_AND_VERDICT[status is _RECEIVED]
    return Event(
        id=event_id(
            api=_V2,
            message_id=message.id,
            recipient=recipient,
            type=kind,
            time=moment_text(occurred_at) if occurred_at else told.time,
            code=None if code is None else str(code),
        ),
        api=_V2,
        message_id=message.id,
        direction=direction,
        type=kind,
        status=status,
        recipient=recipient,
        occurred_at=occurred_at,
        read_at=moment(told.event_time),
        code=code,
        description=told.description,
        failure=failure,
        tag_verdict=verdict,
        facts=facts,
        received_at=callback.received_at,
        route=callback.route,
        callback_id=callback.id,
    )


def _typed_fields(told: TypedEvent, message: _Message) -> MessageFields:
    media = _without_empty(message.media)
    return MessageFields(
        sender=message.sender,
        recipients=_without_empty(message.to),
        owner=message.owner,
        application_id=message.application_id,
        text=message.text,
        has_text=bool(message.text),
        media=media,
        has_media=bool(media),
        tag=message.tag,
        segment_count=message.segment_count,
        channel=message.channel,
        carrier_name=told.carrier_name,
        priority=message.priority,
        created_at=moment(message.time),
    )


def _without_empty(texts: tuple[str, ...] | None) -> tuple[str, ...]:
    if not texts:
        return ()
    return tuple(filter(None, texts)) if "" in texts else texts


def _is_utf8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def parse_event(fields: Fields, index: int, callback: Callback) -> Element:
    """The event that a recognised object is, or why it is none."""
    message = _object(fields.get("message"))
    message_id = text(message.get("id")) or text(message.get("messageId"))
    if not message_id:
        return Rejected(index, Quarantine.NO_MESSAGE_ID, f"{fields['type']} without a message id")
    if told := too_many(message.get("to")) or too_many(fields.get("to")):
        return Rejected(index, Quarantine.TOO_LARGE, told)
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


def _facts(fields: Fields, message: Fields) -> MessageFields:
    content = _object(message.get("content"))
    message_text, media = _text(message, content), urls(message.get("media")) or urls(content.get("media"))
    return MessageFields(
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
