"""Looking up one message at Bandwidth: v1 `GET /users/{userId}/messages/{messageId}`, v2 `GET …/messages?messageId=`.

An answer proves a status, and is parsed by the rules of the callbacks with the same words. Only a final status is an
event: a later callback or look-up repeats everything else. Bandwidth's answers have no time of the event, only that of
the message; v2's have neither text nor tag.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from msgspec import structs

from receiver.domain.events import RECONCILED, Callback, Element, Event, Quarantine, Rejected, Status
from receiver.providers import bandwidth_v1, bandwidth_v2
from receiver.providers.base import Lookup
from receiver.providers.fields import ParseError, Payload, number, parse_json, text, too_many, urls, with_storable_ids

_FINAL: Final = frozenset({Status.UNCONFIRMED, Status.DELIVERED, Status.FAILED, Status.READ})
# v2's words for a final status, and the type of the callback that says the same. The documents of 2020 have
# DLR_EXPIRED for what is UNDELIVERED today: no receipt of the carrier came.
_V2_TYPES: Final = {
    "DELIVERED": "message-delivered",
    "READ": "message-read",
    "FAILED": "message-failed",
    "UNDELIVERED": "message-failed",
    "DLR_EXPIRED": "message-failed",
}
_V2_UNPROVEN: Final = frozenset({"UNDELIVERED", "DLR_EXPIRED"})
_V2_CHANNELS: Final = {"sms": "SMS", "mms": "MMS", "rcs": "RBM"}


def query_of(message_id: str) -> str:
    """The query of an entry of the journal that is an answer about a message."""
    return urlencode({"messageId": message_id})


def _looked_up_id(entry: Callback) -> str | None:
    return dict(parse_qsl(entry.query, keep_blank_values=True, errors="replace")).get("messageId")


def _parsed(parse: Callable[[Any, str, Callback], Iterator[Element]]) -> Callable[[Callback], Iterator[Element]]:
    """A parser of answers, from one of their JSON and the id that was looked up."""

    def parse_entry(entry: Callback) -> Iterator[Element]:
        message_id = _looked_up_id(entry)
        try:
            payload = parse_json(entry.body)
        except ParseError as error:
            yield Rejected(0, Quarantine.UNREADABLE, str(error))
            return
        if not message_id:
            yield Rejected(0, Quarantine.UNREADABLE, "the entry names no message in its query")
            return
        yield from parse(payload, message_id, entry)

    return parse_entry


def _reconciled(element: Element, index: int) -> Iterator[Element]:
    """The event of an answer if it is final, or the rejected element.

    Its id is its own. If it were that of the callback with the same words, the one that comes second would be dropped,
    with its tag and its fields. It begins with a letter after f: among the events without a time, which are ordered by
    their ids, it is after every callback, whose fields then win.
    """
    if type(element) is not Event:
        yield element
    elif element.status in _FINAL or _is_last_of_v1(element):
        digest = hashlib.sha256(f"{element.id}/{element.status}".encode()).hexdigest()
        yield with_storable_ids(structs.replace(element, id=f"{RECONCILED}-{digest[:21]}"), index)


# --- v1 ---


def _parse_v1(payload: Any, message_id: str, entry: Callback) -> Iterator[Element]:
    if type(payload) is not dict:
        yield Rejected(0, Quarantine.UNREADABLE, "the answer is not one message", message_id)
        return
    if (text(payload.get("id")) or text(payload.get("messageId"))) != message_id or payload.get("direction") != "out":
        yield Rejected(0, Quarantine.UNREADABLE, "the answer is about another message", message_id)
        return
    if detail := too_many(payload.get("to")):
        yield Rejected(0, Quarantine.TOO_LARGE, detail, message_id)
        return
    kind = "mms" if urls(payload.get("media")) else "sms"
    element = bandwidth_v1.parse_event({**payload, "eventType": kind, "messageId": message_id}, 0, entry)
    if type(element) is Event and _may_have_receipts(payload) and element.status not in _FINAL:
        return
    yield from _reconciled(element, 0)


def _may_have_receipts(payload: Payload) -> bool:
    requested = text(payload.get("receiptRequested"))
    return payload.get("deliveryState") is not None or (requested or "none").lower() != "none"


def _is_last_of_v1(event: Event) -> bool:
    """Whether this is `sent` of v1 without receipts: nothing more is ever said of such a message."""
    return event.api == "v1" and event.status is Status.SENT and event.delivery_state is None


# --- v2 ---


def _parse_v2(payload: Any, message_id: str, entry: Callback) -> Iterator[Element]:
    items = payload.get("messages") if type(payload) is dict else None
    if type(items) is not list:
        yield Rejected(0, Quarantine.UNREADABLE, "the answer has no list of messages", message_id)
        return
    # Everything else in a list that was not filtered is about messages that were not looked up.
    ours = [(index, item) for index, item in enumerate(items) if _is_of(item, message_id)]
    if not ours:
        yield Rejected(0, Quarantine.NO_MESSAGE_ID, "the answer does not have the message", message_id)
    for index, item in ours:
        yield from _parse_item(item, message_id, index, entry, is_only=len(ours) == 1)


def _is_of(item: object, message_id: str) -> bool:
    return (
        type(item) is dict
        and text(item.get("messageId")) == message_id
        and (text(item.get("messageDirection")) or "OUTBOUND").upper() == "OUTBOUND"
    )


def _parse_item(item: Payload, message_id: str, index: int, entry: Callback, *, is_only: bool) -> Iterator[Element]:
    """The event of one recipient of a message."""
    status, recipient = (text(item.get("messageStatus")) or "").upper(), text(item.get("destinationTn"))
    kind = _V2_TYPES.get(status)
    if kind is None:
        return
    if not recipient and not is_only:
        yield Rejected(
            index, Quarantine.UNREADABLE, "several recipients, and one of them without destinationTn", message_id
        )
        return
    code = number(item.get("errorCode")) or None
    payload = {
        "type": kind,
        "to": recipient,
        "errorCode": code if kind == "message-failed" else None,
        "carrierName": item.get("carrierName"),
        "message": {
            "id": message_id,
            "from": item.get("sourceTn"),
            "to": [recipient] if recipient and number(item.get("recipientCount")) == 1 else [],
            "time": item.get("receiveTime"),
            "segmentCount": item.get("segmentCount"),
            "channel": _V2_CHANNELS.get((text(item.get("messageType")) or "").lower()),
        },
    }
    element = bandwidth_v2.parse_event(payload, index, entry)
    if type(element) is Event and status in _V2_UNPROVEN and code is None:
        element = structs.replace(element, status=Status.UNCONFIRMED, failure=None)
    yield from _reconciled(element, index)


V1: Final = Lookup(
    target=lambda user, id_: f"/users/{quote(user, safe='')}/messages/{quote(id_, safe='')}",
    parse=_parsed(_parse_v1),
    unknown_status=404,
)
V2: Final = Lookup(
    target=lambda account, id_: f"/users/{quote(account, safe='')}/messages?{query_of(id_)}",
    parse=_parsed(_parse_v2),
)
