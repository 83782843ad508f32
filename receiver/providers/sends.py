"""Registered sends: what the sender knows of a message before any callback, as an event of a kind of its own.

A send is what Bandwidth answered (v2: the body of the 202; v1: the request together with its `Location`, or a result of
the array), or an object with the same names. A registration is an entry of the journal with the route `registered`. Its
event has the lowest status and the last place in the order of its message, so it decides nothing that a callback said.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

from receiver.domain.events import (
    MAX_RECIPIENTS,
    REGISTERED,
    Api,
    Callback,
    Direction,
    Element,
    Event,
    MessageFields,
    Quarantine,
    Rejected,
    Status,
)
from receiver.providers.fields import (
    LARGEST,
    ParseError,
    Payload,
    moment,
    moment_text,
    parse_json,
    storable,
    with_storable_ids,
)

TYPE: Final = "message-registered"
"""The type of the event."""


class SendError(ValueError):
    """A send cannot be registered because of the field `name`."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail


def parse(callback: Callback) -> Iterator[Element]:
    """Yields the events of an entry of the journal that registers sends."""
    try:
        sends = parse_json(callback.body)
    except ParseError as error:
        yield Rejected(0, Quarantine.UNREADABLE, str(error))
        return
    if type(sends) is not list:
        yield Rejected(0, Quarantine.UNREADABLE, "an entry that registers sends must be an array")
        return
    for index, send in enumerate(sends):
        try:
            yield event_of(normalized(send), callback)
        except SendError as error:
            yield Rejected(index, Quarantine.UNREADABLE, str(error))


def expanded(given: object) -> list[object]:
    """The sends in one given object: v1's array of results, with the array of requests beside it, has several.

    Raises SendError.
    """
    if type(given) is not dict:
        return [given]
    request, results = given.get("request"), given.get("results")
    if request is None and results is None:
        return [given]
    if type(results) is list:
        requests = request if type(request) is list else [{}] * len(results) if request is None else None
        if requests is None or len(requests) != len(results):
            raise SendError("results", "must have one result for each member of request, in the same order")
        return [_joined(*pair) for pair in zip(requests, results, strict=True)]
    return [_joined(request, {name: value for name, value in given.items() if name != "request"})]


def _joined(request: object, answer: object) -> object:
    """A request and the answer to it as one object."""
    if type(request) is not dict:
        raise SendError("request", "must be the object that was sent to Bandwidth")
    return {**request, **answer} if type(answer) is dict else answer


def normalized(given: object) -> Payload:
    """A send with its usual names, without unknown fields and without passwords in URLs. Raises SendError."""
    if type(given) is not dict:
        raise SendError("send", "must be an object")
    _refuse_unsent(given)
    id_ = _id(given)
    api = _api(given, id_)
    numbers = _texts(given, "to") or _texts(given, "recipients")
    if len(numbers) > MAX_RECIPIENTS:
        raise SendError("to", f"has {len(numbers)} recipients, and {MAX_RECIPIENTS} are allowed")
    send: Payload = {"api": api.value, "id": id_, "to": list(numbers)}
    send |= {name: _text(given, name) for name in _TEXTS}
    send |= {name: _number(given, name) for name in _NUMBERS}
    send |= {name: _without_password(_text(given, name)) for name in _URLS}
    send |= {"media": list(_texts(given, "media")), "time": _time(given), "receiptRequested": _requested(given)}
    send["receiptExpected"] = _flag(given, "receiptExpected")
    if api is Api.V1 and send["receiptExpected"] is None and "callbackExpected" not in given:
        send["callbackExpected"] = _is_reported(given, send)
    elif given.get("callbackExpected") is not None:
        send["callbackExpected"] = _flag(given, "callbackExpected")
    return {name: value for name, value in send.items() if value not in (None, [])}


_TEXTS: Final = ("from", "owner", "applicationId", "text", "tag", "channel", "priority")
_NUMBERS: Final = ("segmentCount", "callbackTimeout")
_URLS: Final = ("callbackUrl", "fallbackUrl")
_MESSAGE: Final = re.compile(r"/messages/([^/?#]+)/?(?:[?#].*)?$")
_OF_V1: Final = frozenset({"location", "Location", "receiptRequested", *_URLS, "callbackTimeout"})


def event_of(send: Payload, callback: Callback) -> Event:
    """The event of a normalized send; `callback` is the entry of the journal. Raises SendError."""
    expected = send.get("receiptExpected")
    api = Api(send["api"])
    if expected is None:
        expected = send.get("receiptRequested") == "all" if api is Api.V1 else True
    text, media = send.get("text"), tuple(send.get("media", ()))
    event = Event(
        id=_event_id(send),
        api=api,
        message_id=send["id"],
        direction=Direction.OUT,
        type=TYPE,
        status=Status.UNKNOWN,
        recipient=None,
        occurred_at=None,
        receipt_expected=expected,
        callback_expected=bool(expected or send.get("callbackExpected")),
        fields=MessageFields(
            sender=send.get("from"),
            recipients=tuple(send.get("to", ())),
            owner=send.get("owner"),
            application_id=send.get("applicationId"),
            text=text,
            has_text=bool(text),
            media=media,
            has_media=bool(media),
            tag=send.get("tag"),
            segment_count=send.get("segmentCount"),
            channel=send.get("channel"),
            priority=send.get("priority"),
            created_at=moment(send.get("time")),
            callback_url=send.get("callbackUrl"),
            callback_timeout=send.get("callbackTimeout"),
            fallback_url=send.get("fallbackUrl"),
            receipt_requested=send.get("receiptRequested"),
        ),
        received_at=callback.received_at,
        route=REGISTERED,
        callback_id=callback.id,
    )
    checked = with_storable_ids(event, 0)
    if type(checked) is Rejected:
        raise SendError("id", checked.detail)
    return event


def _event_id(send: Payload) -> str:
    """The identity of a registration: the same send registered twice is one event.

    It begins with a letter after f. Among the events without a time, which are ordered by their ids, a registration is
    then the last, so that every field that a callback has wins.
    """
    digest = hashlib.sha256(orjson.dumps(send, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"{REGISTERED}-{digest[:21]}"


def _refuse_unsent(given: Payload) -> None:
    if given.get("result") == "error":
        error = given.get("error")
        reason = error.get("message") or error.get("code") if type(error) is dict else None
        raise SendError("result", f"Bandwidth refused this message{f': {storable(str(reason))}' if reason else ''}")
    if given.get("direction") not in (None, "out"):
        raise SendError("direction", "must be out: only messages that were sent are registered")


def _id(given: Payload) -> str:
    named = _text(given, "id") or _text(given, "messageId")
    for name in ("location", "Location"):
        location = _text(given, name)
        if named is None and location is not None:
            if found := _MESSAGE.search(location):
                return found[1]
            raise SendError(name, "must be the address of a message: …/messages/ID")
    if named is not None:
        return named
    raise SendError("id", "is missing: give the id of the message, or the Location that v1 answered")


def _api(given: Payload, id_: str) -> Api:
    """The API as given; else v1 for what only v1 has, and for its ids, which begin with m-."""
    name = given.get("api")
    if name is None:
        return Api.V1 if id_.startswith("m-") or not _OF_V1.isdisjoint(given) else Api.V2
    if name not in list(Api):
        raise SendError("api", f"must be one of {', '.join(Api)}")
    return Api(name)


def _is_reported(given: Payload, send: Payload) -> bool:
    """Whether v1 sends any callback about a message: to its callbackUrl; where the request is not known, it may."""
    is_request = "from" in given or "text" in given or "receiptRequested" in given
    return send["callbackUrl"] is not None or not is_request


def _text(given: Payload, name: str) -> str | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if type(value) is not str:
        raise SendError(name, "must be a text")
    return storable(value)


def _texts(given: Payload, name: str) -> tuple[str, ...]:
    value = given.get(name)
    members = value if type(value) is list else [] if value in (None, "") else [value]
    if not all(type(member) is str and member for member in members):
        raise SendError(name, "must be a text, or a list of texts that are not empty")
    return tuple(storable(member) for member in members)


def _number(given: Payload, name: str) -> int | None:
    value = given.get(name)
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if value is not None and not (type(value) is int and 0 <= value <= LARGEST):
        raise SendError(name, "must be a whole number")
    return value


def _flag(given: Payload, name: str) -> bool | None:
    value = given.get(name)
    if value is not None and type(value) is not bool:
        raise SendError(name, "must be true or false")
    return value


def _time(given: Payload) -> str | None:
    value: Any = given.get("time")
    if value in (None, ""):
        return None
    time = moment(value)
    if time is None:
        raise SendError("time", "must be a time of RFC 3339: 2026-01-31T12:00:00Z")
    return moment_text(time)


def _requested(given: Payload) -> str | None:
    value = _text(given, "receiptRequested")
    if value is not None and value.lower() not in ("none", "error", "all"):
        raise SendError("receiptRequested", "must be none, error or all")
    return value.lower() if value is not None else None


_PASSWORD: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")


def _without_password(url: str | None) -> str | None:
    """A URL without user and password: those of a callback URL are the ones that this receiver accepts."""
    return _PASSWORD.sub(r"\1", url) if url is not None else None
