"""v1 (Catapult) of the messages API: representations, lists and callbacks of messages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from receiver.domain.events import Api, Direction, number_key
from receiver.providers.registry import entry, reason
from receiver.sandbox.messages import SandboxMessage, timestamp
from receiver.sandbox.scenario import Kind, Receipts, Step, is_refused
from receiver.sandbox.v1_requests import ListRequest

USER_AGENT: Final = "BandwidthAPI/v1"


@dataclass(frozen=True, slots=True)
class V1Status:
    """The status of a message as v1 reports it."""

    state: str
    delivery_state: str | None = None
    code: int | None = None


def status_at(message: SandboxMessage, now: datetime, speed: float) -> V1Status:
    """Returns the status of a message at `now`."""
    if message.direction is Direction.IN:
        return V1Status("received")
    past_steps = message.past_steps(now, speed)
    if not past_steps:
        first = message.scenario.steps[0]
        sending_at = message.created_at + (message.occurred_at(first, speed) - message.created_at) / 2
        return V1Status("queued" if now < sending_at else "sending")
    return _status_after(message, past_steps[-1])


def _status_after(message: SandboxMessage, step: Step) -> V1Status:
    """Returns the status that a step leads to."""
    if step.kind is Kind.FAILED:
        refused = message.is_mms or step.code is None or is_refused(Api.V1, step.code)
        delivery_state = "not-delivered" if step.code is not None else None
        return V1Status("error" if refused else "sent", delivery_state, step.code)
    if step.kind is Kind.DELIVERED:
        return V1Status("sent", "delivered", step.code)
    return V1Status("sent", "waiting" if step.kind is Kind.WAITING else None)


def list_path(user: str) -> str:
    """The path of a user's messages."""
    return f"/v1/users/{quote(user, safe='')}/messages"


def path(user: str, message_id: str) -> str:
    """The path of a message."""
    return f"{list_path(user)}/{message_id}"


def representation(message: SandboxMessage, now: datetime, speed: float) -> dict[str, Any]:
    """Returns a message as GET shows it."""
    status = status_at(message, now, speed)
    target = message.target
    outbound = message.direction is Direction.OUT
    fields = {
        "id": message.id,
        "messageId": message.id,
        "from": message.sender,
        "to": message.recipients[0],
        "text": message.text_at(now),
        "time": timestamp(message.created_at, "milliseconds"),
        "direction": message.direction,
        "state": status.state,
        "media": list(message.media),
        "callbackUrl": target.url if outbound else None,
        "callbackTimeout": int(target.timeout * 1000) if outbound and target.url else None,
        "fallbackUrl": target.fallback_url if outbound else None,
        "receiptRequested": message.receipts if message.receipts is not Receipts.NONE else None,
        **_delivery(status),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _delivery(status: V1Status) -> dict[str, Any]:
    """Returns the delivery fields. The code is a number, and a string in callbacks."""
    code = status.code
    return {
        "deliveryState": status.delivery_state,
        "deliveryCode": code,
        "deliveryDescription": None if code is None else _description(code),
    }


def _description(code: int) -> str:
    """The text of a code in v1's documents; captured callbacks have the same."""
    listed = entry(Api.V1, code)
    return (listed and listed.earlier_name) or reason(Api.V1, code).name


def event(message: SandboxMessage, step: Step, uri: str) -> dict[str, Any]:
    """Returns the event that reports a step."""
    inbound = message.direction is Direction.IN
    status = V1Status("received") if inbound else _status_after(message, step)
    code = None if status.code is None else str(status.code)
    fields = {
        "eventType": "rcs" if step.kind is Kind.UNKNOWN_TYPE else "mms" if message.is_mms else "sms",
        "direction": message.direction,
        "messageId": message.id,
        "messageUri": uri,
        "from": message.sender,
        "to": message.recipients[0],
        "text": message.text or "",
        "applicationId": message.application_id,
        "media": list(message.media) or None,
        "time": timestamp(message.created_at, "milliseconds"),
        "state": status.state,
        **_delivery(status),
        "deliveryCode": code,
        "segmentCount": message.segment_count,
        "tag": message.tag,
    }
    return {name: value for name, value in fields.items() if value is not None}


def query(event: Mapping[str, Any]) -> str:
    """Returns an event as the query string of a GET callback.

    All media URLs are one parameter: a list in brackets, without quotes.
    """
    return "&".join(f"{name}={_parameter(name, value)}" for name, value in event.items())


def _parameter(name: str, value: Any) -> str:
    text = f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
    return quote(text, safe=":" if name == "time" else "")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list, and the query parameter of the next page (None: this is the last page)."""

    messages: tuple[SandboxMessage, ...]
    next: tuple[str, int] | None


def page(parameters: ListRequest, messages: Iterable[SandboxMessage], now: datetime, speed: float) -> Page:
    """Returns the requested page of a user's messages, which come oldest first."""
    matching = [message for message in messages if _matches(message, status_at(message, now, speed), parameters)]
    matching.sort(key=lambda message: message.sort_key, reverse=parameters.sort_order == "desc")
    start = parameters.page * parameters.size
    messages_on_page = tuple(matching[start : start + parameters.size])
    if len(matching) <= start + parameters.size:
        return Page(messages_on_page, None)
    return Page(
        messages_on_page,
        ("sortKeyLT" if parameters.sort_order == "desc" else "sortKeyGT", messages_on_page[-1].sort_key),
    )


def _matches(message: SandboxMessage, status: V1Status, parameters: ListRequest) -> bool:
    """Whether a message with this status matches the parameters."""
    return (
        parameters.from_ in (None, number_key(message.sender))
        and parameters.to in (None, number_key(message.recipients[0]))
        and (parameters.from_date_time is None or message.created_at >= parameters.from_date_time)
        and (parameters.to_date_time is None or message.created_at < parameters.to_date_time)
        and parameters.direction in (None, message.direction)
        and parameters.state in (None, status.state)
        and parameters.delivery_state in (None, status.delivery_state)
        and (parameters.sort_key_gt is None or message.sort_key > parameters.sort_key_gt)
        and (parameters.sort_key_lt is None or message.sort_key < parameters.sort_key_lt)
    )
