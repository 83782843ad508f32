"""Version 2 of Bandwidth's messaging API: one event from one element of a callback's array.

`type` alone decides the status: `description`, `direction` and the presence of a code contradict it in some of
Bandwidth's own samples.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from receiver.domain.events import (
    MAX_RECIPIENTS,
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
from receiver.providers.fields import (
    LARGEST,
    LONGEST,
    Payload,
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
    """The `message` of an event. `content` (RCS) or a missing `id` fails the typed decoding."""

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
    """An event as Bandwidth documents it."""

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
    r"""The events of a body of the documented types; None if the body needs the lenient parser.

    A `\u` escape may encode a character that no database stores (NUL, half of a surrogate pair). The check for UTF-8 is
    ours because msgspec finds invalid bytes only in the fields it knows.
    """
    if b"\\u" in body or not _is_utf8(body):
        return None
    try:
        events = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return events if all(event.type in STATUSES for event in events) else None


def event_of(typed: TypedEvent, callback: Callback) -> Event:
    """The event of a typed object, equal to what `parse_event` returns for the same JSON."""
    message, kind, code = typed.message, typed.type, typed.error_code
    status, failure = status_and_failure(kind, code)
    fields = _typed_fields(typed, message)
    recipient = typed.to or (fields.recipients[0] if len(fields.recipients) == 1 else None)
    occurred_at = moment(typed.time)
    direction, verdict = _DIRECTION_AND_VERDICT[status is _RECEIVED]
    return Event(
        id=event_id(
            api=_V2,
            message_id=message.id,
            recipient=recipient,
            type=kind,
            time=moment_text(occurred_at) if occurred_at else typed.time,
            code=None if code is None else str(code),
        ),
        api=_V2,
        message_id=message.id,
        direction=direction,
        type=kind,
        status=status,
        recipient=recipient,
        occurred_at=occurred_at,
        read_at=moment(typed.event_time),
        code=code,
        description=typed.description,
        failure=failure,
        tag_verdict=verdict,
        fields=fields,
        received_at=callback.received_at,
        route=callback.route,
        callback_id=callback.id,
    )


def _typed_fields(typed: TypedEvent, message: _Message) -> MessageFields:
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
        carrier_name=typed.carrier_name,
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
    # The same event has three spellings in three editions of the specification.
    "request-location-response": Status.RECEIVED,
    "requested-location-response": Status.RECEIVED,
    "location-request-response": Status.RECEIVED,
    "message-queued": Status.QUEUED,
    "message-sending": Status.SENDING,
    "message-sent": Status.SENT,
    "message-delivered": Status.DELIVERED,
    "message-read": Status.READ,
    "message-failed": Status.FAILED,
    # From the beta of 2017; today this is message-failed with code 4432.
    "message-rejected-forbidden-country": Status.FAILED,
    # The multichannel envelope of April to July 2025 has these types.
    "QUEUED": Status.QUEUED,
    "SENDING": Status.SENDING,
    "DELIVERED": Status.DELIVERED,
    "FAILED": Status.FAILED,
}
_REFUSALS: Final = frozenset({"message-rejected-forbidden-country"})


def recognises(payload: Payload) -> bool:
    """Whether an object is a v2 event of a known type."""
    kind = payload.get("type")
    return type(kind) is str and kind in STATUSES


def parse_event(payload: Payload, index: int, callback: Callback) -> Element:
    """Parses a recognised object into an event, or rejects it; `index` is its place in the callback."""
    message = _object(payload.get("message"))
    message_id = text(message.get("id")) or text(message.get("messageId"))
    if not message_id:
        return Rejected(index, Quarantine.NO_MESSAGE_ID, f"{payload['type']} without a message id")
    if detail := too_many(message.get("to")) or too_many(payload.get("to")):
        return Rejected(index, Quarantine.TOO_LARGE, detail)
    return _event(payload, message, message_id, callback)


def _event(payload: Payload, message: Payload, message_id: str, callback: Callback) -> Event:
    kind, code = payload["type"], number(payload.get("errorCode"))
    status, failure = status_and_failure(kind, code)
    fields = _fields(payload, message)
    recipient = _recipient(payload.get("to"), fields.recipients)
    occurred_at = moment(payload.get("time"))
    inbound = status is Status.RECEIVED
    return Event(
        id=event_id(
            api=Api.V2,
            message_id=message_id,
            recipient=recipient,
            type=kind,
            time=moment_text(occurred_at) if occurred_at else text(payload.get("time")),
            code=number_text(payload.get("errorCode")),
        ),
        api=Api.V2,
        message_id=message_id,
        direction=Direction.IN if inbound else Direction.OUT,
        type=kind,
        status=status,
        recipient=recipient,
        occurred_at=occurred_at,
        read_at=moment(payload.get("eventTime")),
        code=code,
        description=text(payload.get("description")),
        failure=failure,
        tag_verdict=TagVerdict.NOT_APPLICABLE if inbound else TagVerdict.UNCHECKED,
        fields=fields,
        received_at=callback.received_at,
        route=callback.route,
        callback_id=callback.id,
    )


def status_and_failure(kind: str, code: int | None) -> tuple[Status, Failure | None]:
    """The status of an event and, if it is a failure, its side."""
    status = STATUSES[kind]
    if status is not Status.FAILED:
        return status, None
    if kind in _REFUSALS:
        return status, Failure.REFUSED
    if proves_nothing(Api.V2, code):
        return Status.UNCONFIRMED, None
    return status, failure_side(Api.V2, code)


def _recipient(to: object, recipients: tuple[str, ...]) -> str | None:
    """The number that an event is about: the number it names, else the only recipient of the message."""
    named = texts(to) or recipients
    return named[0] if len(named) == 1 else None


def _fields(payload: Payload, message: Payload) -> MessageFields:
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
        carrier_name=text(payload.get("carrierName")),
        priority=text(message.get("priority")),
        created_at=moment(message.get("time")),
    )


def _text(message: Payload, content: Payload) -> str | None:
    """The text of a message; RCS has it in `content`. That of a tapped suggestion is not used: its sender wrote it."""
    message_text = text(message.get("text"))
    return message_text or text(content.get("text")) or message_text


def _object(value: object) -> Payload:
    return value if type(value) is dict else {}
