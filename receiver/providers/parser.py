"""Taking a callback apart: every member of its array becomes an event, or is kept raw with a reason."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import structs

from receiver.domain.callbacks import Callback, Element, Rejected
from receiver.domain.events import Event, Quarantine
from receiver.providers import bandwidth_v1, bandwidth_v2, json_body, query_string
from receiver.providers.fields import LONGEST, Fields, quoted, text
from receiver.providers.json_body import ParseError

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
        # v2, whose other events all have a callId or a conferenceId
        "bridgeComplete",
        "disconnect",
        "initiate",
        "redirect",
        "transferAnswer",
        "transferComplete",
        "transferDisconnect",
    }
)
# By which key an event of another product, sent to the same URL, gives itself away.
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


def read(callback: Callback) -> Iterator[Element]:
    """The elements of a callback, one by one, so that other work can go on in between; an empty array has none."""
    typed = bandwidth_v2.decode(callback.body) if callback.method != "GET" else None
    if typed is None:
        return read_leniently(callback)
    return (bandwidth_v2.event_of(event, callback) for event in typed)


def read_leniently(callback: Callback) -> Iterator[Element]:
    """The same elements, from a body that need not be well formed or of the documented types."""
    try:
        members = _members(callback)
    except ParseError as error:
        yield Rejected(0, Quarantine.UNREADABLE, str(error))
        return
    for index, member in enumerate(members):
        yield _read_member(member, index, callback)


def _members(callback: Callback) -> list[Any]:
    parsed = query_string.parse(callback.query) if _in_query(callback) else json_body.parse(callback.body)
    return parsed if type(parsed) is list else [parsed]


def _in_query(callback: Callback) -> bool:
    """Whether the event is in the query string: in a GET's, and in that of a GET relayed as a POST without body."""
    if callback.method != "GET":
        return not callback.body and "eventType=" in callback.query
    if not callback.query:
        raise ParseError("a GET without a query string")
    return True


def _read_member(member: object, index: int, callback: Callback) -> Element:
    if type(member) is not dict:
        return Rejected(index, Quarantine.UNREADABLE, _NO_OBJECT.get(type(member), "a number in place of an object"))
    if bandwidth_v2.recognises(member):
        element = _of_sane_length(bandwidth_v2.parse_event(member, index, callback), index)
    elif bandwidth_v1.recognises(member):
        element = _of_sane_length(bandwidth_v1.parse_event(member, index, callback), index)
    else:
        element = _not_ours(member, index)
    return element if type(element) is Event else structs.replace(element, message_id=_message_id(member))


def _message_id(fields: Fields) -> str | None:
    """The message that an element speaks of, as far as that can be told without parsing it."""
    message = fields.get("message")
    found = text(message.get("id")) if type(message) is dict else text(fields.get("messageId"))
    return found if found and len(found) <= LONGEST else None


def _of_sane_length(element: Element, index: int) -> Element:
    """An element, unless an id or a number of it is longer than any ever was: no database could look it up."""
    if type(element) is not Event:
        return element
    facts = element.facts
    looked_up = (element.message_id, element.recipient, facts.sender, facts.application_id, *facts.recipients)
    if all(told is None or len(told) <= LONGEST for told in looked_up):
        return element
    return Rejected(index, Quarantine.UNREADABLE, f"an id or a number has more than {LONGEST} characters")


def _not_ours(fields: Fields, index: int) -> Rejected:
    product = _foreign_product(fields)
    if product:
        return Rejected(index, Quarantine.FOREIGN_PRODUCT, f"an event of {product}")
    return Rejected(index, Quarantine.UNKNOWN_TYPE, _unfamiliar(fields))


def _foreign_product(fields: Fields) -> str | None:
    if text(fields.get("eventType")) in _VOICE_EVENTS:
        return "voice"
    if _FOREIGN_KEYS.keys().isdisjoint(fields):
        return None
    return next(product for key, product in _FOREIGN_KEYS.items() if key in fields)


def _unfamiliar(fields: Fields) -> str:
    """What an unfamiliar object calls itself, in words for people."""
    for name in ("type", "eventType"):
        if kind := text(fields.get(name)):
            return f"{name} {quoted(kind, 80)} is unfamiliar"
    return "neither a type nor an eventType"
