"""Version 1 of the messages API (Catapult): messages as they are shown, listed and posted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from receiver.domain.events import Api, Direction, number_key
from receiver.providers.bandwidth_codes import reason
from receiver.sandbox.messages import Message, instant
from receiver.sandbox.timeline import Kind, Receipts, Step, is_refusal
from receiver.sandbox.v1_requests import ListRequest

USER_AGENT: Final = "BandwidthAPI/v1"
_DELIVERED_TO_CARRIER: Final = "Message delivered to carrier"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a message is, in v1's words."""

    state: str
    delivery_state: str | None = None
    code: int | None = None


def standing(message: Message, now: datetime, speed: float) -> Standing:
    """How far a message is by now."""
    if message.direction is Direction.IN:
        return Standing("received")
    happened = message.happened(now, speed)
    if not happened:
        first = message.script.steps[0]
        moment = message.created_at + (message.occurred_at(first, speed) - message.created_at) / 2
        return Standing("queued" if now < moment else "sending")
    return _said(message, happened[-1])


def _said(message: Message, step: Step) -> Standing:
    """What a step says in v1's words."""
    if step.kind is Kind.FAILED:
        refused = message.is_mms or step.code is None or is_refusal(Api.V1, step.code)
        told = "not-delivered" if step.code is not None else None
        return Standing("error" if refused else "sent", told, step.code)
    if step.kind is Kind.DELIVERED:
        return Standing("sent", "delivered", step.code)
    return Standing("sent", "waiting" if step.kind is Kind.WAITING else None)


def list_path(user: str) -> str:
    """Where the messages of a user are to be found."""
    return f"/v1/users/{quote(user, safe='')}/messages"


def path(user: str, message_id: str) -> str:
    """Where a message is to be found."""
    return f"{list_path(user)}/{message_id}"


def representation(message: Message, now: datetime, speed: float) -> dict[str, Any]:
    """A message as GET shows it."""
    told = standing(message, now, speed)
    terms = message.destination
    outbound = message.direction is Direction.OUT
    shown = {
        "id": message.id,
        "messageId": message.id,
        "from": message.sender,
        "to": message.recipients[0],
        "text": message.text_at(now),
        "time": instant(message.created_at, "milliseconds"),
        "direction": message.direction,
        "state": told.state,
        "media": list(message.media),
        "callbackUrl": terms.url if outbound else None,
        "callbackTimeout": int(terms.seconds * 1000) if outbound and terms.url else None,
        "fallbackUrl": terms.fallback if outbound else None,
        "receiptRequested": message.receipts if message.receipts is not Receipts.NONE else None,
        **_delivery(told),
    }
    return {name: value for name, value in shown.items() if value is not None}


def _delivery(told: Standing) -> dict[str, Any]:
    """The delivery fields; the code is a text on the wire."""
    code = told.code
    return {
        "deliveryState": told.delivery_state,
        "deliveryCode": None if code is None else str(code),
        "deliveryDescription": None if code is None else _description(code),
    }


def _description(code: int) -> str:
    return _DELIVERED_TO_CARRIER if code == 0 else reason(Api.V1, code).name


def event(message: Message, step: Step, uri: str) -> dict[str, Any]:
    """The event that tells of a step."""
    inbound = message.direction is Direction.IN
    told = Standing("received") if inbound else _said(message, step)
    fields = {
        "eventType": "rcs" if step.kind is Kind.UNFAMILIAR else "mms" if message.is_mms else "sms",
        "direction": message.direction,
        "messageId": message.id,
        "messageUri": uri,
        "from": message.sender,
        "to": message.recipients[0],
        "text": message.text or "",
        "applicationId": message.application_id,
        "media": list(message.media) or None,
        "time": instant(message.created_at, "milliseconds"),
        "state": told.state,
        **_delivery(told),
        "segmentCount": message.segment_count,
        "tag": message.tag,
    }
    return {name: value for name, value in fields.items() if value is not None}


def query(told: Mapping[str, Any]) -> str:
    """An event as the query string of a GET; media is one parameter of its own kind, in brackets without quotes."""
    return "&".join(f"{name}={_parameter(name, value)}" for name, value in told.items())


def _parameter(name: str, value: Any) -> str:
    text = f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
    return quote(text, safe=":" if name == "time" else "")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list, and the parameter that asks for the next one (None: there is none)."""

    messages: tuple[Message, ...]
    next: tuple[str, int] | None


def page(asked: ListRequest, messages: Iterable[Message], now: datetime, speed: float) -> Page:
    """One page of the messages that are asked for, out of those of a user, oldest first."""
    fitting = [message for message in messages if _fits(message, standing(message, now, speed), asked)]
    fitting.sort(key=lambda message: message.sort_key, reverse=asked.sort_order == "desc")
    start = asked.page * asked.size
    shown = tuple(fitting[start : start + asked.size])
    if len(fitting) <= start + asked.size:
        return Page(shown, None)
    return Page(shown, ("sortKeyLT" if asked.sort_order == "desc" else "sortKeyGT", shown[-1].sort_key))


def _fits(message: Message, told: Standing, asked: ListRequest) -> bool:
    """Whether a message, which is so far, is asked for."""
    return (
        asked.from_ in (None, number_key(message.sender))
        and asked.to in (None, number_key(message.recipients[0]))
        and (asked.from_date_time is None or message.created_at >= asked.from_date_time)
        and (asked.to_date_time is None or message.created_at < asked.to_date_time)
        and asked.direction in (None, message.direction)
        and asked.state in (None, told.state)
        and asked.delivery_state in (None, told.delivery_state)
        and (asked.sort_key_gt is None or message.sort_key > asked.sort_key_gt)
        and (asked.sort_key_lt is None or message.sort_key < asked.sort_key_lt)
    )
