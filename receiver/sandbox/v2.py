"""Version 2 of the messages API: messages as they are answered, listed and posted."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from receiver.domain.events import Api, Direction
from receiver.providers.bandwidth_codes import proves_nothing, reason
from receiver.sandbox.messages import Message, instant
from receiver.sandbox.timeline import Kind, Step
from receiver.sandbox.v2_requests import ListRequest

USER_AGENT: Final = "BandwidthAPI/v2"

_TYPES: Final = {
    Kind.SENDING: "message-sending",
    Kind.SENT: "message-sent",
    Kind.DELIVERED: "message-delivered",
    Kind.FAILED: "message-failed",
    Kind.READ: "message-read",
    Kind.UNFAMILIAR: "message-pondered",
}
_DESCRIPTIONS: Final = {
    Kind.SENDING: "Message is sending to carrier.",
    Kind.SENT: "Message sent to carrier",
    Kind.DELIVERED: "Message delivered to carrier.",
    Kind.READ: "Message read",
    Kind.RECEIVED: "Incoming message received",
    Kind.UNFAMILIAR: "Message is being thought about",
}
_LISTED: Final = {
    Kind.SENDING: "SENDING",
    Kind.SENT: "SENT",
    Kind.DELIVERED: "DELIVERED",
    Kind.FAILED: "FAILED",
    Kind.READ: "DELIVERED",
    Kind.RECEIVED: "RECEIVED",
}


def representation(message: Message) -> dict[str, Any]:
    """A message as the answer to its sending shows it."""
    shown = {
        "id": message.id,
        "owner": message.owner,
        "applicationId": message.application_id,
        "time": instant(message.created_at, "microseconds"),
        "segmentCount": message.segment_count,
        "direction": message.direction,
        "to": list(message.recipients),
        "from": message.sender,
        "media": list(message.media) or None,
        "text": message.text or "",
        "tag": message.tag,
        "priority": message.priority,
        "expiration": message.expiration,
    }
    return {name: value for name, value in shown.items() if value is not None}


def event(message: Message, step: Step, speed: float) -> dict[str, Any]:
    """The event that tells of a step."""
    occurred_at = instant(message.occurred_at(step, speed), "microseconds")
    description = _DESCRIPTIONS.get(step.kind)
    if step.kind is Kind.FAILED and step.code is not None:
        description = reason(Api.V2, step.code).name
    fields = {
        "time": occurred_at,
        "type": message.event if step.kind is Kind.RECEIVED else _TYPES[step.kind],
        "to": step.recipient,
        "description": description,
        "errorCode": step.code,
        "eventTime": occurred_at if step.kind is Kind.READ else None,
        "carrierName": message.carrier_name,
        "message": _inbound(message) if message.direction is Direction.IN else _outbound(message),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _outbound(message: Message) -> dict[str, Any]:
    """The message in a status: without its text, and without what concerns its sending alone."""
    shown = {name: value for name, value in representation(message).items() if name != "expiration"}
    return {**shown, "text": ""}


def _inbound(message: Message) -> dict[str, Any]:
    """The message as it came in; RCS has text and media in `content`, or a reply in their place."""
    shown = {**representation(message), "channel": message.channel}
    if message.channel == "RBM":
        shown.pop("text")
        media = shown.pop("media", None)
        if message.reply is None:
            content = {"text": message.text, "media": {"fileUrl": media[0]} if media else None}
            shown["content"] = {name: value for name, value in content.items() if value is not None}
    if message.reply is not None:
        shown |= _reply(message)
    return {name: value for name, value in shown.items() if value is not None}


def _reply(message: Message) -> dict[str, Any]:
    reply = message.reply
    assert reply is not None  # noqa: S101
    if message.event == "suggestion-response":
        return {
            "suggestionResponse": {
                "text": reply.text,
                "postbackData": reply.postback_data,
                "pairedMessageId": reply.paired_message_id,
            }
        }
    return {"locationResponse": {"latitude": reply.latitude, "longitude": reply.longitude}}


def items(asked: ListRequest, messages: Iterable[Message], now: datetime, speed: float) -> list[dict[str, Any]]:
    """The deliveries that are asked for, sorted, out of the messages of an account."""
    found = [
        item
        for message in messages
        if message.api is Api.V2 and asked.message_id in (None, message.id)
        for item in _items(message, now, speed)
        if _fits(item, message, asked)
    ]
    field, descending = asked.sort
    found.sort(key=lambda item: str(item.get(field) or ""), reverse=descending)
    return found


def _items(message: Message, now: datetime, speed: float) -> Iterable[dict[str, Any]]:
    """A message as the list shows it: one item for each recipient."""
    happened = message.happened(now, speed)
    inbound = message.direction is Direction.IN
    for recipient in [message.owner] if inbound else message.recipients:
        last = _last([step for step in happened if step.recipient == recipient])
        yield {
            "messageId": message.id,
            "accountId": message.user,
            "sourceTn": message.sender,
            "destinationTn": recipient,
            "messageStatus": _status(last),
            "messageDirection": "INBOUND" if inbound else "OUTBOUND",
            "messageType": "mms" if message.is_mms else "sms",
            "segmentCount": message.segment_count,
            "errorCode": (last and last.code) or 0,
            "receiveTime": instant(message.created_at, "milliseconds"),
            "carrierName": message.carrier_name,
            "messageLength": len(message.text or ""),
            "attachmentCount": len(message.media),
            "recipientCount": len(message.recipients),
        }


def _last(steps: list[Step]) -> Step | None:
    """The step that a recipient is at: a failure, whatever came after it, else the last one."""
    failed = (step for step in steps if step.kind is Kind.FAILED)
    return next(failed, steps[-1] if steps else None)


def _status(last: Step | None) -> str:
    if last is None:
        return "ACCEPTED"
    return "UNDELIVERED" if last.kind is Kind.FAILED and proves_nothing(Api.V2, last.code) else _LISTED[last.kind]


def _fits(item: dict[str, Any], message: Message, asked: ListRequest) -> bool:
    return (
        _has_number(item["sourceTn"], asked.source_tn)
        and _has_number(item["destinationTn"], asked.destination_tn)
        and asked.message_status in (None, item["messageStatus"])
        and asked.message_direction in (None, item["messageDirection"])
        and asked.message_type in (None, item["messageType"])
        and asked.error_code in (None, item["errorCode"])
        and (asked.from_date_time is None or message.created_at >= asked.from_date_time)
        and (asked.to_date_time is None or message.created_at < asked.to_date_time)
    )


def _has_number(number: str, asked: tuple[str, ...]) -> bool:
    """Whether a number is one of those asked for; one alone may be the beginning of it."""
    digits = number.removeprefix("+")
    return not asked or digits in asked or (len(asked) == 1 and len(asked[0]) >= 4 and digits.startswith(asked[0]))
