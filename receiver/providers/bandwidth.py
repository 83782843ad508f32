"""Bandwidth: its two APIs, and the parser of their callbacks.

Every member of a callback's array becomes an event, or is rejected with a reason. The API version is recognised per
event, not by URL: a v1 object that is posted to the v2 URL is parsed as v1, and the reverse.
"""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import structs

from receiver.domain.events import Api, Callback, Element, Event, Quarantine, Rejected
from receiver.providers import bandwidth_lookups, bandwidth_v1, bandwidth_v2, fields
from receiver.providers.bandwidth_codes import CODES
from receiver.providers.base import CallbackUrl, Provider
from receiver.providers.fields import LONGEST, ParseError, Payload, quoted, text, with_storable_ids

_VOICE_EVENTS: Final = frozenset(
    {
        # v1
        "answer",
        "conference",
        "conference-member",
        "conference-playback",
        "conference-speak",
        "dtmf",
        "gather",
        "hangup",
        "incomingcall",
        "playback",
        "recording",
        "reject",
        "speak",
        "timeout",
        "transcription",
        # v2; all other voice events of v2 have a callId or a conferenceId
        "bridgeComplete",
        "disconnect",
        "initiate",
        "redirect",
        "transferAnswer",
        "transferComplete",
        "transferDisconnect",
    }
)
# The keys by which events of other products, sent to the same URL, are recognised.
_FOREIGN_KEYS: Final = {
    "msgId": "international A2P",
    "internalTicketNumber": "toll-free verification",
    "callId": "voice",
    "callUri": "voice",
    "conferenceId": "voice",
    "conferenceUri": "voice",
    "recordingId": "voice",
}
_KINDS: Final = {type(None): "null", bool: "a boolean", str: "a string", list: "an array"}
_NO_OBJECT: Final = {kind: f"{name} in place of an object" for kind, name in _KINDS.items()}


def parse(callback: Callback) -> Iterator[Element]:
    """Yields the elements of a callback, one by one, so that other work can run in between; an empty array has none."""
    typed = bandwidth_v2.decode(callback.body) if callback.method != "GET" else None
    if typed is None:
        return parse_leniently(callback)
    return (bandwidth_v2.event_of(event, callback) for event in typed)


def parse_leniently(callback: Callback) -> Iterator[Element]:
    """Yields the same elements, also from a body that is malformed or not of the documented types."""
    try:
        members = _members(callback)
    except ParseError as error:
        yield Rejected(0, Quarantine.UNREADABLE, str(error))
        return
    for index, member in enumerate(members):
        yield _parse_member(member, index, callback)


def _members(callback: Callback) -> list[Any]:
    parsed = fields.parse_query(callback.query) if _in_query(callback) else fields.parse_json(callback.body)
    return parsed if type(parsed) is list else [parsed]


def _in_query(callback: Callback) -> bool:
    """Whether the event is in the query string: of a GET, or of a GET that was relayed as a POST without a body."""
    if callback.method != "GET":
        return not callback.body and "eventType=" in callback.query
    if not callback.query:
        raise ParseError("a GET without a query string")
    return True


def _parse_member(member: object, index: int, callback: Callback) -> Element:
    if type(member) is not dict:
        return Rejected(index, Quarantine.UNREADABLE, _NO_OBJECT.get(type(member), "a number in place of an object"))
    if bandwidth_v2.recognises(member):
        element = with_storable_ids(bandwidth_v2.parse_event(member, index, callback), index)
    elif bandwidth_v1.recognises(member):
        element = with_storable_ids(bandwidth_v1.parse_event(member, index, callback), index)
    else:
        element = _unrecognised(member, index)
    return element if type(element) is Event else structs.replace(element, message_id=_message_id(member))


def _message_id(payload: Payload) -> str | None:
    """The message id that a rejected element names, if it can be found without parsing the element."""
    message = payload.get("message")
    found = text(message.get("id")) if type(message) is dict else text(payload.get("messageId"))
    return found if found and len(found) <= LONGEST else None


def _unrecognised(payload: Payload, index: int) -> Rejected:
    product = _foreign_product(payload)
    if product:
        return Rejected(index, Quarantine.FOREIGN_PRODUCT, f"an event of {product}")
    return Rejected(index, Quarantine.UNKNOWN_TYPE, _unfamiliar(payload))


def _foreign_product(payload: Payload) -> str | None:
    if text(payload.get("eventType")) in _VOICE_EVENTS:
        return "voice"
    if _FOREIGN_KEYS.keys().isdisjoint(payload):
        return None
    return next(product for key, product in _FOREIGN_KEYS.items() if key in payload)


def _unfamiliar(payload: Payload) -> str:
    """Describes for people the type that an unfamiliar object names."""
    for name in ("type", "eventType"):
        if kind := text(payload.get(name)):
            return f"{name} {quoted(kind, 80)} is unfamiliar"
    return "neither a type nor an eventType"


V1: Final = Provider(
    api=Api.V1,
    title="Bandwidth v1 (Catapult)",
    fields="callbackUrl, incomingMessageUrl; then fallbackUrl",
    source="/bandwidth/v1",
    urls=(
        CallbackUrl("/callbacks/bandwidth/v1", ("GET", "POST")),
        CallbackUrl("/callbacks/bandwidth/v1/fallback", ("GET", "POST"), "fallback"),
    ),
    parse=parse,
    expects_receipt=bandwidth_v1.expects_receipt,
    codes=CODES[Api.V1],
    user_in_url=True,
    lookup=bandwidth_lookups.V1,
)
V2: Final = Provider(
    api=Api.V2,
    title="Bandwidth v2 (Messaging)",
    fields="InboundCallbackUrl, OutboundCallbackUrl",
    source="/bandwidth/v2",
    urls=(
        CallbackUrl("/callbacks/bandwidth/v2"),
        CallbackUrl("/callbacks/bandwidth/v2/fallback", route="fallback"),
    ),
    parse=parse,
    codes=CODES[Api.V2],
    lookup=bandwidth_lookups.V2,
)
