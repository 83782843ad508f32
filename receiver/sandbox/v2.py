"""v2 of the messages API: representations, lists and callbacks of messages."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from receiver.domain.events import Api, Direction
from receiver.providers.bandwidth_codes import proves_nothing
from receiver.providers.registry import reason
from receiver.sandbox.messages import SandboxMessage, timestamp
from receiver.sandbox.scenario import Kind, Step
from receiver.sandbox.v2_requests import ListRequest

USER_AGENT: Final = "BandwidthAPI/v2"

_TYPES: Final = {
    Kind.SENDING: "message-sending",
    Kind.SENT: "message-sent",
    Kind.DELIVERED: "message-delivered",
    Kind.FAILED: "message-failed",
    Kind.READ: "message-read",
    Kind.UNKNOWN_TYPE: "message-pondered",
}
_DESCRIPTIONS: Final = {
    Kind.SENDING: "Message is sending to carrier.",
    Kind.SENT: "Message sent to carrier",
    Kind.DELIVERED: "Message delivered to carrier.",
    Kind.READ: "Message read",
    Kind.RECEIVED: "Incoming message received",
    Kind.UNKNOWN_TYPE: "Message is being thought about",
}
_LIST_STATUSES: Final = {
    Kind.SENDING: "SENDING",
    Kind.SENT: "SENT",
    Kind.DELIVERED: "DELIVERED",
    Kind.FAILED: "FAILED",
    Kind.READ: "DELIVERED",
    Kind.RECEIVED: "RECEIVED",
}


def representation(message: SandboxMessage) -> dict[str, Any]:
    """Returns a message as in the answer to its sending."""
    fields = {
        "id": message.id,
        "owner": message.owner,
        "applicationId": message.application_id,
        "time": timestamp(message.created_at, "microseconds"),
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
    return {name: value for name, value in fields.items() if value is not None}


def event(message: SandboxMessage, step: Step, speed: float) -> dict[str, Any]:
    """Returns the event that reports a step."""
    occurred_at = timestamp(message.occurred_at(step, speed), "microseconds")
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


def _outbound(message: SandboxMessage) -> dict[str, Any]:
    """Returns the message of a status event, which has an empty text and no expiration."""
    fields = {name: value for name, value in representation(message).items() if name != "expiration"}
    return {**fields, "text": ""}


def _inbound(message: SandboxMessage) -> dict[str, Any]:
    """Returns an inbound message. RCS has text and media in `content`, or a reply instead."""
    fields = {**representation(message), "channel": message.channel}
    if message.channel == "RBM":
        fields.pop("text")
        media = fields.pop("media", None)
        if message.reply is None:
            content = {"text": message.text, "media": {"fileUrl": media[0]} if media else None}
            fields["content"] = {name: value for name, value in content.items() if value is not None}
    if message.reply is not None:
        fields |= _reply(message)
    return {name: value for name, value in fields.items() if value is not None}


def _reply(message: SandboxMessage) -> dict[str, Any]:
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


def list_items(
    parameters: ListRequest, messages: Iterable[SandboxMessage], now: datetime, speed: float
) -> list[dict[str, Any]]:
    """Returns the items of an account's messages that match the parameters, sorted."""
    items = [
        item
        for message in messages
        if message.api is Api.V2 and parameters.message_id in (None, message.id)
        for item in _message_items(message, now, speed)
        if _matches(item, message, parameters)
    ]
    field, descending = parameters.sort
    items.sort(key=lambda item: str(item.get(field) or ""), reverse=descending)
    return items


def _message_items(message: SandboxMessage, now: datetime, speed: float) -> Iterable[dict[str, Any]]:
    """Yields the list items of a message: one for each recipient."""
    past_steps = message.past_steps(now, speed)
    inbound = message.direction is Direction.IN
    for recipient in [message.owner] if inbound else message.recipients:
        current = _current_step([step for step in past_steps if step.recipient == recipient])
        yield {
            "messageId": message.id,
            "accountId": message.user,
            "sourceTn": message.sender,
            "destinationTn": recipient,
            "messageStatus": _status(current),
            "messageDirection": "INBOUND" if inbound else "OUTBOUND",
            "messageType": "mms" if message.is_mms else "sms",
            "segmentCount": message.segment_count,
            "errorCode": (current and current.code) or 0,
            "receiveTime": timestamp(message.created_at, "milliseconds"),
            "carrierName": message.carrier_name,
            "messageLength": len(message.text or ""),
            "attachmentCount": len(message.media),
            "recipientCount": len(message.recipients),
        }


def _current_step(steps: list[Step]) -> Step | None:
    """Returns the step that decides a recipient's status: the first failure, else the last step."""
    failed = (step for step in steps if step.kind is Kind.FAILED)
    return next(failed, steps[-1] if steps else None)


def _status(step: Step | None) -> str:
    if step is None:
        return "ACCEPTED"
    return (
        "UNDELIVERED" if step.kind is Kind.FAILED and proves_nothing(Api.V2, step.code) else _LIST_STATUSES[step.kind]
    )


def _matches(item: dict[str, Any], message: SandboxMessage, parameters: ListRequest) -> bool:
    return (
        _has_number(item["sourceTn"], parameters.source_tn)
        and _has_number(item["destinationTn"], parameters.destination_tn)
        and parameters.message_status in (None, item["messageStatus"])
        and parameters.message_direction in (None, item["messageDirection"])
        and parameters.message_type in (None, item["messageType"])
        and parameters.error_code in (None, item["errorCode"])
        and (parameters.from_date_time is None or message.created_at >= parameters.from_date_time)
        and (parameters.to_date_time is None or message.created_at < parameters.to_date_time)
    )


def _has_number(number: str, wanted: tuple[str, ...]) -> bool:
    """Whether a number matches a parameter. A single value of at least four digits also matches as a prefix."""
    digits = number.removeprefix("+")
    return not wanted or digits in wanted or (len(wanted) == 1 and len(wanted[0]) >= 4 and digits.startswith(wanted[0]))
