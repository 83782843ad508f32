"""The messages of the demo: an endless sequence of requests to the sandbox. The same seed gives the same requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final

from receiver import tags

V1: Final = "/v1/users/u-demo/messages"
V2: Final = "/api/v2/users/u-demo/messages"
INBOUND: Final = "/sandbox/inbound"

_OUR_NUMBERS: Final = ("+19195550101", "+19195550102", "+19195550103")
_OTHER_NUMBERS: Final = tuple(f"+1{area}55501{number:02}" for area in (206, 303, 415, 602, 704) for number in range(20))
_TEXTS: Final = (
    "Your order {} is on its way.",
    "Order {} was delivered to your door.",
    "Reminder: your appointment {} is tomorrow at 10:30.",
    "Your table {} is booked. See you at eight!",
    "We have received your payment for invoice {}. Thank you.",
    "Ticket {} was answered; reply STOP to hear no more of it.",
)
# For v2 only: v1 rejects characters that are not in GSM 03.38.
_UNICODE_TEXTS: Final = ("Order {} is packed \N{PACKAGE}", "Rendez-vous {} confirmé, à bientôt ☕")
_REPLIES: Final = ("Thanks!", "Yes", "Can I come at nine instead?", "STOP", "Who is this?")
_MEDIA_URL: Final = "https://media.example.com/{}.jpg"
_GROUP_SIZE: Final = 3
_ALL_RECEIPTS: Final = {"receiptRequested": "all"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the sandbox, and the number of messages in it."""

    path: str
    body: Any
    messages: int = 1


@dataclass(frozen=True, slots=True)
class MessageSettings:
    """The v1 callback URL, and the key that signs the tags."""

    v1_callback_url: str
    kid: str
    key: str


def generate_requests(settings: MessageSettings, *, seed: int) -> Iterator[Request]:
    """Yields requests without end, in rounds. A round has requests of every kind, in random order."""
    random, order_numbers = Random(seed), count(10_001)  # noqa: S311
    while True:
        kinds = [*_KINDS]
        random.shuffle(kinds)
        for kind in kinds:
            yield _request(kind, settings, random, next(order_numbers))


_KINDS: Final = (
    *("v2 sms",) * 5,
    *("v1 sms",) * 2,
    "v2 mms",
    "v2 group",
    "v1 array",
    "v1 mms",
    *("v2 inbound",) * 2,
    "v2 inbound group",
    "v1 inbound",
)


def _request(kind: str, settings: MessageSettings, random: Random, order: int) -> Request:
    own_number, others = random.choice(_OUR_NUMBERS), random.sample(_OTHER_NUMBERS, _GROUP_SIZE)
    match kind:
        case "v2 sms":
            texts = _UNICODE_TEXTS if random.random() < 0.2 else _TEXTS
            return Request(V2, _v2(settings, own_number, others[:1], order, _text(random, texts, order)))
        case "v2 mms":
            media = {"media": [_MEDIA_URL.format(order)]}
            return Request(V2, _v2(settings, own_number, others[:1], order, _text(random, _TEXTS, order)) | media)
        case "v2 group":
            return Request(V2, _v2(settings, own_number, others, order, _text(random, _TEXTS, order)))
        case "v1 sms":
            return Request(V1, _v1(settings, random, own_number, others[0], order) | _ALL_RECEIPTS)
        case "v1 mms":
            return Request(
                V1, _v1(settings, random, own_number, others[0], order) | {"media": _MEDIA_URL.format(order)}
            )
        case "v1 array":
            messages = [_v1(settings, random, own_number, recipient, order) | _ALL_RECEIPTS for recipient in others]
            return Request(V1, messages, messages=_GROUP_SIZE)
        case "v2 inbound group":
            return Request(INBOUND, _inbound(random, "v2", own_number, others[0]) | {"others": others[1:]})
        case "v2 inbound":
            return Request(INBOUND, _inbound(random, "v2", own_number, others[0]))
        case _:
            return Request(INBOUND, _inbound(random, "v1", own_number, others[0]))


def _v2(settings: MessageSettings, sender: str, to: Sequence[str], order: int, text: str) -> dict[str, Any]:
    return {
        "from": sender,
        "to": [*to],
        "text": text,
        "applicationId": "demo",
        "tag": _tag(settings, sender, to, order),
    }


def _v1(settings: MessageSettings, random: Random, sender: str, to: str, order: int) -> dict[str, Any]:
    return {
        "from": sender,
        "to": to,
        "text": _text(random, _TEXTS, order),
        "callbackUrl": settings.v1_callback_url,
        "callbackHttpMethod": random.choice(("get", "post")),
        "tag": _tag(settings, sender, [to], order),
    }


def _inbound(random: Random, api: str, own_number: str, sender: str) -> dict[str, Any]:
    return {"api": api, "from": sender, "to": own_number, "text": random.choice(_REPLIES)}


def _text(random: Random, texts: Sequence[str], order: int) -> str:
    return random.choice(texts).format(order)


def _tag(settings: MessageSettings, sender: str, recipients: Sequence[str], order: int) -> str:
    return tags.sign(f"order-{order}", settings.key, kid=settings.kid, sender=sender, recipients=recipients)
